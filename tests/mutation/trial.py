"""One trial: run the tests of one mutation in a room, until one fails."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.mutation.coverage_map import TestMap
from tests.mutation.plugin import TIMED_OUT
from tests.mutation.room import Room
from tests.mutation.source import Mutation

MAX_SECONDS = 420.0
"""Maximum sum of the usual durations of the tests of a trial, in seconds; further tests are left out."""

_NO_SQL = re.compile(r"PostgresSyntaxError|syntax error at or near|UndefinedColumnError|AmbiguousColumnError")
"""PostgreSQL refused to parse what a mutation made."""


class Outcome(StrEnum):
    """What a trial showed."""

    KILLED = "killed"
    """A test failed, and failed again when it was repeated."""
    TIMED_OUT = "timed out"
    """A test took several times as long as usual."""
    SURVIVED = "survived"
    """No test failed."""
    NOT_COVERED = "not covered"
    """No test executes the line."""
    INVALID = "invalid"
    """The mutated code cannot be compiled or imported, or is no SQL; another mutation is drawn."""
    EQUIVALENT = "equivalent"
    """The mutation changes no behaviour, as the list says."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a trial, the test that decided it, and how many of the tests that execute the line were run."""

    outcome: Outcome
    test: str = ""
    error: str = ""
    tests_run: int = 0
    tests_found: int = 0

    def record(self) -> dict[str, Any]:
        """Return the fields for a line of JSON."""
        return {
            "outcome": self.outcome.value,
            "test": self.test,
            "error": self.error,
            "tests_run": self.tests_run,
            "tests_found": self.tests_found,
        }


class Trials:
    """Tries mutations in a room, one at a time."""

    def __init__(self, room: Room, measured: TestMap, environment: Mapping[str, str]) -> None:
        self._room = room
        self._measured = measured
        self._environment = environment

    def run(self, mutation: Mutation, text: str, tests: Sequence[str]) -> Verdict:
        """Run the tests against the mutated code and return the verdict. The room is unchanged afterwards."""
        self._room.mutate(mutation, text)
        try:
            return self._try(mutation, tests)
        finally:
            self._room.restore(mutation, text)

    def _try(self, mutation: Mutation, tests: Sequence[str]) -> Verdict:
        module = "taskherd." + mutation.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        imported = self._room.run(["-W", "ignore", "-c", f"import {module}"], self._environment, 30)
        if imported.status != 0:
            return Verdict(Outcome.INVALID, error=imported.output)
        if not tests:
            return Verdict(Outcome.NOT_COVERED)
        selected = affordable(tests, self._measured)
        flaky: set[str] = set()
        while remaining := [test for test in selected if test not in flaky]:
            failed = self._run_tests(remaining)
            if failed is None:
                break
            name, error = failed
            if _NO_SQL.search(error):
                return Verdict(Outcome.INVALID, name, error)
            if TIMED_OUT in error or not name:
                return Verdict(Outcome.TIMED_OUT, name, error, len(selected), len(tests))
            if "::" not in name or self._run_tests([name]):
                return Verdict(Outcome.KILLED, name, error, len(selected), len(tests))
            flaky.add(name)
        return Verdict(Outcome.SURVIVED, ", ".join(sorted(flaky)), "", len(selected), len(tests))

    def _run_tests(self, tests: Sequence[str]) -> tuple[str, str] | None:
        """Run tests in this order until one fails, and return its id and error, or None if none fails.

        The id is empty if the whole run took too long.
        """
        seconds = self._measured.seconds
        limits = {test: time_limit(seconds[test]) for test in tests}
        given, outcomes = self._room.path / "tests.json", self._room.path / "outcomes.jsonl"
        given.write_text(json.dumps(limits))
        outcomes.unlink(missing_ok=True)
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        variables = {"MUTATION_TESTS": str(given), "MUTATION_OUTCOMES": str(outcomes)}
        plugins = ["-p", "no:xdist", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin"]
        total = 60 + max(limits.values()) + 3 * sum(seconds[test] for test in tests)
        command = ["-m", "pytest", "-x", "-q", *plugins, *files]
        ended = self._room.run(command, {**self._environment, **variables}, total)
        records = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
        for record in records:
            if "failed" in record:
                return record["failed"], record["error"]
        if ended.status is None:
            return "", "the run was stopped at its time limit"
        if ended.status != 0:
            return files[0], ended.output
        return None


def affordable(tests: Sequence[str], measured: TestMap) -> list[str]:
    """Return the first tests, as many as usually take ``MAX_SECONDS`` together, and at least one."""
    selected: list[str] = []
    seconds = 0.0
    for test in tests:
        seconds += measured.seconds[test]
        if selected and seconds > MAX_SECONDS:
            break
        selected.append(test)
    return selected


def time_limit(seconds: float) -> float:
    """Return the time limit of a test that usually takes ``seconds``, in seconds."""
    return 30 + 5 * seconds
