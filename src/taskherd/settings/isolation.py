"""The values of the settings that separate agents from each other and from their runner."""

from __future__ import annotations

MAX_UID = 2**32 - 2
"""Maximum user id; the next one means "no change" to setresuid(2)."""


def parse_uids(uids: str) -> tuple[int, int] | None:
    """Return the first and last id of a range such as ``200000-265535``, or None for "".

    Raise ``ValueError`` for any other text, and for a range without 0 < first < last.
    """
    if not uids:
        return None
    first, _, last = uids.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) < int(last) <= MAX_UID):
        message = "not a range of user ids"
        raise ValueError(message)
    return int(first), int(last)


def check_uids(uids: str) -> str:
    """Return the range unchanged. Raise ``ValueError`` if it is not one."""
    parse_uids(uids)
    return uids


def check_paths(paths: str) -> str:
    """Return the paths unchanged. Raise ``ValueError`` if one of them is not absolute, or is the root itself."""
    if not all(path.startswith("/") and path.strip("/") for path in paths.split(":") if path):
        message = "not a list of absolute paths"
        raise ValueError(message)
    return paths
