"""Parsers of options that several commands have."""

from __future__ import annotations

import typer

from taskherd import durations


def parse_duration(written: str) -> float:
    """Return a duration in seconds, for the ``parser`` of an option."""
    try:
        return durations.parse(written)
    except ValueError:
        raise typer.BadParameter(f"{written!r}; expected {durations.HOW_TO_WRITE}") from None
