"""The report: how many mutations tests noticed, per package and in total, and the others with their lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.mutation.trial import Outcome

NOTICED = (Outcome.KILLED, Outcome.TIMED_OUT)
UNNOTICED = (Outcome.SURVIVED, Outcome.NOT_COVERED)


def score(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many mutations were noticed, and of how many; equivalent ones do not count."""
    noticed = sum(record["outcome"] in NOTICED for record in records)
    return noticed, noticed + sum(record["outcome"] in UNNOTICED for record in records)


def render(
    records: Sequence[Mapping[str, Any]], branches: Mapping[str, tuple[int, int]], packages: Sequence[str]
) -> str:
    """Return the report as text."""
    head: tuple[str, ...] = ("package", "noticed", "of", "score", "timed out", "equivalent", "branches")
    rows = [head]
    for package in (*packages, "total"):
        own = [record for record in records if package in ("total", record["package"])]
        noticed, tried = score(own)
        if package == "total":
            taken, all_branches = (sum(pair[index] for pair in branches.values()) for index in (0, 1))
        else:
            taken, all_branches = branches.get(package, (0, 0))
        counts = [
            str(sum(record["outcome"] == outcome for record in own))
            for outcome in (Outcome.TIMED_OUT, Outcome.EQUIVALENT)
        ]
        shares = percent(noticed, tried), *counts, percent(taken, all_branches)
        rows.append((package, str(noticed), str(tried), *shares))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    survivors = [describe(record) for record in records if record["outcome"] in UNNOTICED]
    listed = [describe(record) for record in records if record["outcome"] == Outcome.EQUIVALENT]
    slow = [describe(record) for record in records if record["outcome"] == Outcome.TIMED_OUT]
    sections = [("Timed out:", slow), ("Equivalent:", listed), ("Survivors:", survivors)]
    texts = ["\n".join([title, *entries]) for title, entries in sections if entries]
    return "\n\n".join([*texts, "\n".join(table)]) + "\n"


def describe(record: Mapping[str, Any]) -> str:
    """Return one mutation as text: its place, what was run, and the lines before and after."""
    if record["outcome"] == Outcome.NOT_COVERED:
        tests = "no test executes it"
    elif record["outcome"] == Outcome.TIMED_OUT:
        tests = record["test"]
    elif record["outcome"] == Outcome.EQUIVALENT:
        tests = record["error"]
    else:
        tests = f"passed {record['tests_run']} of {record['tests_found']} tests"
    lines = [f"  - {line}" for line in record["before"]] + [f"  + {line}" for line in record["after"]]
    return "\n".join([f"src/taskherd/{record['path']}:{record['line']}: {record['operator']}; {tests}", *lines])


def percent(part: int, whole: int) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
