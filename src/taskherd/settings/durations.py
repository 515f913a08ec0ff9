"""Durations as people write them: `500ms`, `30s`, `10m`, `24h`, or plain seconds."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_WRITTEN = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|m|h)?\s*", re.ASCII)
HOW_TO_WRITE = "a duration such as 500ms, 30s, 10m or 24h, or plain seconds"


def parse(written: object) -> float:
    """Return the seconds in `written`; raises ValueError for what is no finite duration of zero or more."""
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        seconds = float(written)
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    elif isinstance(written, str) and (match := _WRITTEN.fullmatch(written)):
        return float(match[1]) * _UNITS[match[2] or "s"]
    message = "not a duration"
    raise ValueError(message)


def render(seconds: float) -> str:
    """Return `seconds` the way `parse` reads it, in the largest unit that keeps it whole."""
    for unit in ("h", "m", "s", "ms"):
        count = round(seconds / _UNITS[unit], 6)
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


Seconds = Annotated[float, BeforeValidator(parse)]
"""Seconds as a float in Python; read from anything `parse` takes."""
