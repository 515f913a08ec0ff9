"""Mutations of SQL in strings: conditions, order, locks, conflicts, joins and limits, by the text alone.

A change that PostgreSQL refuses to parse is found when a test runs it, and is not counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SQL = re.compile(r"\b(SELECT|INSERT INTO|DELETE FROM|WHERE|ORDER BY|JOIN|EXISTS|AND \w+\.\w+)\b")
"""What a string with SQL contains. Keywords are in capitals everywhere in the code, so that prose does not match."""

Change = tuple[str, int, int, str]
"""The operator, where the replaced text starts and ends in the string, and what replaces it."""

_REPLACEMENTS: tuple[tuple[str, str, str], ...] = (
    ("sql lock", r"\s*\bFOR UPDATE( OF \w+)?( SKIP LOCKED)?", ""),
    ("sql lock", r" SKIP LOCKED\b", ""),
    ("sql lock", r"pg_advisory_xact_lock\((?:[^()]|\([^()]*\))*\)", "1"),
    ("sql order", r"\s*\bORDER BY [\w., ]+?(?=\s*(?:LIMIT|FOR|ROWS|ON|\)|\n|\"|$))", ""),
    ("sql order", r"\bDESC\b", "ASC"),
    ("sql order", r"(?<=\bORDER BY )([\w.]+)(?=\s*(?:\bLIMIT|\bFOR|\)|\n|\"|$))", r"\1 DESC"),
    ("sql conflict", r"\s*\bON CONFLICT (\([\w, ]+\) )?DO NOTHING", ""),
    ("sql conflict", r"\bDO UPDATE\s+SET [^\n()]*(?=\n|\"|$)", "DO NOTHING"),
    ("sql comparison", r" <= ", " < "),
    ("sql comparison", r" >= ", " > "),
    ("sql comparison", r" < ", " <= "),
    ("sql comparison", r" > ", " >= "),
    ("sql comparison", r" <> ", " = "),
    ("sql null", r"\bIS NULL\b", "IS NOT NULL"),
    ("sql null", r"\bIS NOT NULL\b", "IS NULL"),
    ("sql null", r"\bIS NOT DISTINCT FROM\b", "IS DISTINCT FROM"),
    ("sql null", r"\bIS DISTINCT FROM\b", "IS NOT DISTINCT FROM"),
    ("sql null", r"\bCOALESCE\(([\w.$:]+), [^()]+\)", r"\1"),
    ("sql exists", r"\bNOT EXISTS\b", "EXISTS"),
    ("sql exists", r"(?<!NOT )(?<!IF )\bEXISTS(?= \()", "NOT EXISTS"),
    ("sql join", r"\bLEFT JOIN\b", "JOIN"),
    ("sql limit", r"\s*\bLIMIT (?!1\b)[\w:$]+", ""),
    ("sql bound", r"\bGREATEST\b", "LEAST"),
    ("sql bound", r"\bLEAST\b", "GREATEST"),
    ("sql bound", r"\bmin\(", "max("),
    ("sql bound", r"\bmax\(", "min("),
    ("sql arithmetic", r" \+ (?=\S)", " - "),
    ("sql arithmetic", r" - (?=\S)", " + "),
    ("sql distinct", r"\bDISTINCT (?!FROM\b|ON\b)", ""),
)
_CONDITIONS = re.compile(r"\b(?:WHERE|ON(?= \w+\.)|AND|OR)\b(?! CONFLICT)")
_CONDITION_END = re.compile(
    r"\b(?:AND|OR|ORDER|GROUP|LIMIT|RETURNING|FOR|ON|LEFT|CROSS|JOIN|UNION|WHERE|THEN|ELSE|END|HAVING|SET)\b|\"|;"
)
_BETWEEN = re.compile(r"\bBETWEEN\s+\S+\s*$")


def changes(text: str) -> Iterator[Change]:
    """Yield every change of one SQL text, as it is written in the source."""
    masked = mask(text)
    for operator, pattern, replacement in _REPLACEMENTS:
        for match in re.finditer(pattern, masked):
            yield operator, match.start(), match.end(), match.expand(replacement)
    yield from _conditions(masked)


def mask(text: str) -> str:
    """Return the text with what Python fills in (``{…}``) replaced by letters, comments by spaces."""
    filled, found = text, 1
    while found:  # what is filled in may be an f-string itself
        filled, found = re.subn(r"\{[^{}]*\}", lambda match: "x" * len(match[0]), filled)
    return re.sub(r"--[^\n]*", lambda match: " " * len(match[0]), filled)


def _conditions(text: str) -> Iterator[Change]:
    """Yield the changes that drop one condition of a conjunction, negate an equality, or swap AND and OR."""
    for keyword in _CONDITIONS.finditer(text):
        if keyword[0] in ("AND", "OR") and not _BETWEEN.search(text[: keyword.start()]):
            swapped = "OR" if keyword[0] == "AND" else "AND"
            yield "sql boolean", keyword.start(), keyword.end(), swapped
        end = _condition_end(text, keyword.end())
        condition = text[keyword.end() : end].rstrip()
        if not condition.strip():
            continue
        neutral = " false" if keyword[0] == "OR" else " true"
        yield "sql condition", keyword.end(), keyword.end() + len(condition), neutral
        for equality in re.finditer(r" = (?!ANY\b)", condition):
            place = keyword.end() + equality.start()
            yield "sql comparison", place, place + len(equality[0]), " <> "


def _condition_end(text: str, start: int) -> int:
    """Return where the condition that starts at ``start`` ends: at a keyword or a parenthesis outside of its own."""
    depth = 0
    place = start
    while place < len(text):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth < 0:
                return place
        elif depth == 0 and (match := _CONDITION_END.match(text, place)):
            keyword_starts = match[0] in '";' or not text[place - 1].isalnum()
            if keyword_starts and text[place - 4 : place] != "NOT ":
                return place
        place += 1
    return place
