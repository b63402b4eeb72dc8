"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Bad input: its text is one sentence that names the value, the rule and the way out.

    Command lines print the text alone, without a traceback, and exit with status 2.
    """
