"""Names of tasks: validation of chosen names, and generation of names from prompts."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NAME = 32
"""Maximum length of the name of a task, in bytes; all its characters are ASCII."""

MAX_STEM = 27
"""Maximum length of the first part of a generated name; a hyphen and four hex digits follow it, or, shorter, eight."""

MAX_DISPLAY_NAME = 64
"""Maximum length of the display name of a task, in characters."""

MAX_PROMPT_READ = 1_000
"""Number of characters at the beginning of a prompt from which names are made."""

BIDI_CONTROL = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""A character that changes the direction of the text around it, with which a name can look like another one.

https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
"""

_NAME = re.compile(r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*")
_RESERVED = frozenset({"new", "create"})
_APOSTROPHES = re.compile("['\u2019]")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_GENERATED = re.compile(r"(.+-.+)-[0-9a-f]{4}(?:[0-9a-f]{4})?")
_LAST_RESORT = "task"
_DIGITS = 4


@value(frozen=True, slots=True)
class NameRandomness:
    """Sources of the random parts of a generated name: two words joined by a hyphen, and four hex digits."""

    words: Callable[[], str]
    digits: Callable[[], str]


def name_error(name: str) -> str | None:
    """Return why a chosen name is invalid, as the detail of an error, or None if it is valid."""
    if not name:
        return "must be >= 1 character"
    if len(name.encode()) > MAX_NAME:
        return f"must be <= {MAX_NAME} characters"
    if name in _RESERVED:
        return f'cannot use "{name}" as a name'
    if not _NAME.fullmatch(name):
        return "must be alphanumeric with single hyphens between the parts"
    return None


def draw(prompt: str, randomness: NameRandomness) -> tuple[str, str]:
    """Draw a name for a task from its prompt, and a longer one that is taken if that is in use.

    Of 10,000 tasks of an owner that begin with the same words every seventh draw of four digits is in use, so a batch
    of creates would nearly always have one. That the longer one is in use, too, is so unlikely that it is not drawn
    again; the unique index decides.
    """
    stem = _stem(prompt) or _stem(randomness.words()) or _LAST_RESORT
    short = f"{stem}-{randomness.digits()}"
    return short, f"{_cut_at_hyphen(stem, MAX_STEM - _DIGITS)}-{randomness.digits()}{randomness.digits()}"


def display_name(prompt: str, name: str = "") -> str:
    """Return the beginning of the prompt as a title, or the words of ``name`` if it contains no letter or digit."""
    text = " ".join(BIDI_CONTROL.sub("", prompt[:MAX_PROMPT_READ]).split())
    if not any(character.isalnum() for character in text):
        generated = _GENERATED.fullmatch(name)
        text = (generated[1] if generated else name).replace("-", " ")
    text = text[:1].upper() + text[1:]
    return text if len(text) <= MAX_DISPLAY_NAME else _cut_at_space(text, MAX_DISPLAY_NAME - 1) + "…"


def _cut_at_space(text: str, limit: int) -> str:
    """Truncate to ``limit`` characters at the end of a word, or within the first word if that is longer."""
    return text[: limit + 1].rpartition(" ")[0] or text[:limit]


def _stem(text: str) -> str:
    """Return the beginning of a text as lowercase ASCII letters, digits and single hyphens, cut between words."""
    decomposed = unicodedata.normalize("NFKD", text[:MAX_PROMPT_READ]).casefold()
    unaccented = (character for character in decomposed if not unicodedata.combining(character))
    stem = _NOT_IN_NAMES.sub("-", _APOSTROPHES.sub("", "".join(unaccented))).strip("-")
    return _cut_at_hyphen(stem, MAX_STEM)


def _cut_at_hyphen(stem: str, limit: int) -> str:
    if len(stem) <= limit:
        return stem
    return stem[: limit + 1].rpartition("-")[0] or stem[:limit]
