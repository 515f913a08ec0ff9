"""What tasks are called: which names are allowed, and what a task is called when nobody named it."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Callable, Container

MAX_NAME = 32
"""The longest name, in bytes; all its characters are ASCII."""

MAX_STEM = 27
"""The longest stem of a generated name; a hyphen and four hex digits follow it."""

MAX_DISPLAY = 64
"""The longest display name, in characters."""

MAX_READ = 1_000
"""How much of a prompt is read to find a name in it, in characters."""

DRAWS_OF_STEM = 16
"""How many suffixes are drawn for the prompt's own stem before random words take its place."""

MAX_DRAWS = 64
"""How many names are drawn at most."""

_NAME = re.compile(r"[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*")
_RESERVED = frozenset({"new", "create"})
_APOSTROPHES = re.compile("['\u2019]")
_NO_NAME = re.compile(r"[^a-z0-9]+")
_SUFFIXED = re.compile(r"(.+-.+)-[0-9a-f]{4}")
_LAST_RESORT = "task"


@value(frozen=True, slots=True)
class NameRandomness:
    """Where the randomness of a generated name comes from: two words with a hyphen between them, four hex digits."""

    words: Callable[[], str]
    digits: Callable[[], str]


def name_error(name: str) -> str | None:
    """What is wrong with an explicit task name, as a detail for the caller; None: nothing."""
    if not name:
        return "must be >= 1 character"
    if len(name.encode()) > MAX_NAME:
        return f"must be <= {MAX_NAME} characters"
    if name in _RESERVED:
        return f'cannot use "{name}" as a name'
    if not _NAME.fullmatch(name):
        return "must be alphanumeric with single hyphens between the parts"
    return None


def generate(prompt: str, taken: Container[str], randomness: NameRandomness) -> str:
    """A name for a task with this prompt, outside ``taken`` (lowercase names).

    The draws are bounded: a name that is taken can come back where nearly all are. The unique index has the last word.
    """
    stem = _stem(prompt)
    name = ""
    for draw in range(MAX_DRAWS):
        own = stem if draw < DRAWS_OF_STEM else ""
        name = f"{own or _stem(randomness.words()) or _LAST_RESORT}-{randomness.digits()}"
        if name not in taken:
            break
    return name


def display_name(prompt: str, name: str = "") -> str:
    """The prompt's beginning as a title; where the prompt holds no letter or digit, the words of ``name``."""
    text = " ".join(prompt[:MAX_READ].split())
    if not any(character.isalnum() for character in text):
        suffixed = _SUFFIXED.fullmatch(name)
        text = (suffixed[1] if suffixed else name).replace("-", " ")
    text = text[:1].upper() + text[1:]
    return text if len(text) <= MAX_DISPLAY else _full_words(text, MAX_DISPLAY - 1) + "…"


def _full_words(text: str, limit: int) -> str:
    """As many whole words as fit; the first word's beginning where not even that fits."""
    return text[: limit + 1].rpartition(" ")[0] or text[:limit]


def _stem(text: str) -> str:
    """The text's beginning as a name: ASCII letters in lower case, digits and single hyphens, cut between words."""
    plain = unicodedata.normalize("NFKD", text[:MAX_READ]).casefold()
    marked = (character for character in plain if not unicodedata.combining(character))
    stem = _NO_NAME.sub("-", _APOSTROPHES.sub("", "".join(marked))).strip("-")
    if len(stem) <= MAX_STEM:
        return stem
    return stem[: MAX_STEM + 1].rpartition("-")[0] or stem[:MAX_STEM]
