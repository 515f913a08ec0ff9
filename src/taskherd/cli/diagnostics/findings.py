"""What a check of ``taskherd doctor`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingState(StrEnum):
    """Result of a check: fine, worth attention, or a problem."""

    OK = "ok"
    NOTE = "note"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``advice`` says how to fix a problem."""

    what: str
    state: FindingState
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(what, FindingState.OK, found)


def note(what: str, found: str, advice: str) -> Finding:
    """Return a finding that is worth attention."""
    return Finding(what, FindingState.NOTE, found, advice)


def error(what: str, found: str, advice: str) -> Finding:
    """Return a finding that is a problem."""
    return Finding(what, FindingState.ERROR, found, advice)


def problems(what: str, found: tuple[str, ...], otherwise: str, advice: str) -> Finding:
    """Return an error that lists all problems, or a finding with the text ``otherwise`` if there are none."""
    return error(what, "\n".join(found), advice) if found else ok(what, otherwise)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is given in the singular: ``1 runner``, ``0 runners``."""
    return f"{number} {noun if number == 1 else noun + 's'}"
