"""Values computed once by the authors' released code, in double precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def golden(file: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / file).read_text())


def losses_of(method: str) -> list[dict[str, Any]]:
    """The golden losses of one method; each names the file and commit it came from."""
    return list(golden(f"{method}.json").values())
