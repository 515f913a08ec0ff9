"""Parse and format durations: ``500ms``, ``30s``, ``10m``, ``24h``, or plain seconds."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|m|h)?\s*", re.ASCII)
HOW_TO_WRITE = "a duration such as 500ms, 30s, 10m or 24h, or plain seconds"
"""Description of the accepted forms, for error messages and documentation."""


def parse(value: object) -> float:
    """Return a duration in seconds; raise ``ValueError`` if ``value`` is not a finite duration of zero or more."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNITS[match[2] or "s"]
    message = "not a duration"
    raise ValueError(message)


def render(seconds: float) -> str:
    """Format ``seconds`` as ``parse`` reads it, in the largest unit in which it is a whole number."""
    for unit in ("h", "m", "s", "ms"):
        count = round(seconds / _UNITS[unit], 6)
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
