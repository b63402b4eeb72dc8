"""Tables of the papers as declarations, and how records become Markdown and CSV."""
