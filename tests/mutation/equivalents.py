"""The list of mutations that change no behaviour, each with the reason, by the lines that they change."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A mutation without effect: its place, the lines before and after, and why no test can tell them apart."""

    path: str
    scope: str
    before: str
    after: str
    reason: str


def load(file: Path = FILE) -> list[Equivalent]:
    """Return the list."""
    return [Equivalent(**entry) for entry in tomllib.loads(file.read_text(encoding="utf-8"))["equivalent"]]


def identity(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return what identifies a mutation while lines move: file, function, and the changed lines before and after."""
    return record["path"], record["scope"], "\n".join(record["before"]), "\n".join(record["after"])


def find(record: Mapping[str, Any], entries: list[Equivalent]) -> Equivalent | None:
    """Return the entry for a mutation, None if it is not in the list."""
    wanted = identity(record)
    return next((each for each in entries if (each.path, each.scope, each.before, each.after) == wanted), None)
