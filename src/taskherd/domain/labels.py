"""The labels of a task: texts by key, which people set to find their tasks again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LABELS: Final = 16
MAX_CHARACTERS: Final = 64
"""Maximum length of a key, and of a value."""

_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?", re.ASCII)


def changed(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the labels after changes, sorted by key; a value of None removes the label."""
    result = {**labels, **changes}
    return {key: value for key, value in sorted(result.items()) if value is not None}


def error(labels: Mapping[str, str]) -> str | None:
    """Return what is wrong with a task's labels in a sentence, or None.

    A value has no quotation mark, so that a search term can quote it.
    """
    if len(labels) > MAX_LABELS:
        return f"A task has at most {MAX_LABELS} labels."
    for key, value in labels.items():
        if len(key) > MAX_CHARACTERS or not _KEY.fullmatch(key):
            return (
                f"A key has 1 to {MAX_CHARACTERS} letters, digits, dots, slashes, underscores and hyphens, and begins"
                " and ends with a letter or digit."
            )
        if not 0 < len(value) <= MAX_CHARACTERS or not value.isprintable() or '"' in value or value != value.strip():
            return (
                f"A value has 1 to {MAX_CHARACTERS} printable characters without quotation marks, and no space at"
                " either end."
            )
    return None
