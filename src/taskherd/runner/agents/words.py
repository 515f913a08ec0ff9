"""Find what says something in words in an agent's output, for its status message and its last words.

Rules, borders, spinners, code fences and raw JSON are output too, but they tell a person nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import orjson

from taskherd.messages.limits import MAX_TEXT_CHARACTERS
from taskherd.messages.texts import sanitize
from taskherd.runner.agents.output import rendered_line

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_WORDS = 2_000
"""Number of characters at the end of a message in which its last words are looked for."""
MAX_LAST_LINES = 10
"""Maximum number of lines that count as an agent's last words."""
_DECORATION = "".join(
    character
    for character in map(chr, range(0x3001))
    if character.isspace() or "\u2500" <= character <= "\u259f" or "\u2800" <= character <= "\u28ff"
)
"""Spaces, box drawing and block elements (borders), and braille patterns (spinners)."""
_FENCE = re.compile(r"(?:```|~~~)")
_JSON_START = re.compile(r'[\[{]\s*["{\[]')
_JSON_MEMBER = re.compile(r'"(?:[^"\\]|\\.)*"\s*(?::|,?$)')
"""A line of an object or array that is printed over several lines."""
_SENTENCE_END = re.compile(
    r"""(?:(?<!\b[^\W\d_])(?<!\betc)(?<!\bvs)(?<!\bcf)\.|[!?…])["'’”)\]*_`]*(?=\s)|(?<=[。！？])"""  # noqa: RUF001 - theirs
)
"""Where a sentence ends: before a space, so not within ``app.py``, and not after an abbreviation such as ``e.g.``."""


def words_of(line: str) -> str:
    """Return a line as a person reads it, without control sequences and borders, or "" if it has no words.

    A line has words if it has a letter of any script, and is neither a code fence nor JSON.
    """
    text = sanitize(rendered_line(line), {}).strip(_DECORATION)
    return "" if not _has_letters(text) or _FENCE.match(text) or _is_json(text) else text


def last_with_words(lines: Iterable[str], default: str = "") -> str:
    """Return the words of the last line that has some, else ``default``."""
    return next(filter(None, map(words_of, reversed(list(lines)))), default)


def last_sentence(text: str, default: str = "", *, goes_on: bool = False) -> str:
    """Return the last sentence with words of a text, else ``default``.

    The unfinished end of a text that ``goes_on`` counts only if no sentence is before it; it would change all the time.
    """
    unfinished = ""
    for number, line in enumerate(reversed(text.split("\n"))):
        *sentences, rest = _split_sentences(words_of(line))
        if goes_on and number == 0:
            unfinished = rest
        else:
            sentences.append(rest)
        for sentence in filter(_has_letters, reversed(sentences)):
            return sentence
    return unfinished if _has_letters(unfinished) else default


def last_words(text: str) -> str:
    """Return the last lines with words, at most ``MAX_LAST_LINES`` of them and 2,000 characters."""
    kept: list[str] = []
    room = MAX_TEXT_CHARACTERS
    for line in filter(None, map(words_of, reversed(text.split("\n")))):
        room -= len(line) + 1
        if len(kept) == MAX_LAST_LINES or (kept and room < 0):
            break
        kept.insert(0, line[:MAX_TEXT_CHARACTERS])
    return "\n".join(kept)


def _split_sentences(line: str) -> list[str]:
    """Return the sentences of a line; what is last may go on, and may be empty."""
    ends = [end.end() for end in _SENTENCE_END.finditer(line)]
    return [line[begin:end].strip() for begin, end in pairwise([0, *ends, len(line)])]


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def _is_json(text: str) -> bool:
    """Return whether a line is JSON, a part of a longer JSON text, or JSON that was cut."""
    if _JSON_START.match(text) or _JSON_MEMBER.match(text):
        return True
    if text[0] not in "[{":
        return False
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
