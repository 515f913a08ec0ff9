"""A mutation that no test notices is reported; one that a test notices is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mutation import equivalents, report
from tests.mutation.coverage_map import TestMap
from tests.mutation.room import Ended, Room
from tests.mutation.sample import draw
from tests.mutation.source import Mutation
from tests.mutation.trial import MAX_SECONDS, Outcome, Trials, affordable

CODE = "LIMIT = 3\n"
MUTATION = Mutation("store/example.py", 1, 8, 9, "4", "constant")
TEST = "tests/store/test_example.py::test_limit"
PURE_TEST = "tests/pure/test_example.py::test_limit"


class FakeRoom(Room):
    """A room whose runs end as given, each with the lines that the plugin would write."""

    def __init__(self, path: Path, runs: Sequence[tuple[int | None, Sequence[Mapping[str, Any]]]]) -> None:
        super().__init__("unused")
        self.path = path
        self.runs = list(runs)
        self.texts: list[str] = []
        (path / "src" / "taskherd" / "store").mkdir(parents=True)
        self.restore(MUTATION, CODE)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], limit: float) -> Ended:  # noqa: ARG002
        """Return how the next run ends."""
        self.texts.append((self.path / "src" / "taskherd" / MUTATION.path).read_text())
        if "-c" in arguments:
            return Ended(0, "")
        status, records = self.runs.pop(0)
        Path(environment["MUTATION_OUTCOMES"]).write_text("".join(json.dumps(record) + "\n" for record in records))
        return Ended(status, "")


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that runs a trial whose runs of the tests end as given, and returns its outcome."""

    def run(*runs: tuple[int | None, Sequence[Mapping[str, Any]]], tests: Sequence[str] = (TEST,)) -> Outcome:
        measured = TestMap()
        measured.seconds |= {TEST: 1.0, PURE_TEST: 1.0}
        room = FakeRoom(tmp_path, runs)
        verdict = Trials(room, measured, {}).run(MUTATION, CODE, tests)
        assert set(room.texts) == {"LIMIT = 4\n"}
        assert (tmp_path / "src" / "taskherd" / MUTATION.path).read_text() == CODE
        assert not room.runs
        return verdict.outcome

    return run


PASSED = (0, [{"test": TEST, "seconds": 1.0}])


def failed(test: str) -> tuple[int, list[Mapping[str, Any]]]:
    """Return a run in which a test failed."""
    return 1, [{"failed": test, "phase": "call", "error": "assert 4 == 3"}]


def test_a_mutation_that_no_test_notices_survives(outcome: Callable[..., Outcome]) -> None:
    """All tests pass."""
    assert outcome(PASSED) == Outcome.SURVIVED


@pytest.mark.parametrize("test", [TEST, PURE_TEST])
def test_a_mutation_is_killed_by_a_test_that_fails_twice(outcome: Callable[..., Outcome], test: str) -> None:
    """A test that fails and then passes is unreliable, not convincing."""
    assert outcome(failed(test), failed(test), tests=[test]) == Outcome.KILLED


@pytest.mark.parametrize("test", [TEST, PURE_TEST])
def test_an_unreliable_test_kills_nothing(outcome: Callable[..., Outcome], test: str) -> None:
    """What fails once only does not count; the remaining tests decide."""
    assert outcome(failed(test), PASSED, tests=[test]) == Outcome.SURVIVED


def test_a_file_that_cannot_be_collected_kills_at_once(outcome: Callable[..., Outcome]) -> None:
    """There is no test to repeat."""
    assert outcome((2, [])) == Outcome.KILLED


def test_a_time_out_is_told_apart(outcome: Callable[..., Outcome]) -> None:
    """A test that takes too long was noticed, and is listed, because a slow machine may be the reason."""
    slow = [{"failed": TEST, "phase": "call", "error": "Failed: Timeout (>35.0s) from pytest-timeout."}]
    assert outcome((1, slow)) == Outcome.TIMED_OUT


def test_a_run_that_is_stopped_is_a_time_out(outcome: Callable[..., Outcome]) -> None:
    """The mutated code may hang where no test can stop it."""
    assert outcome((None, [])) == Outcome.TIMED_OUT


def test_sql_that_cannot_be_parsed_is_no_mutation(outcome: Callable[..., Outcome]) -> None:
    """It would be noticed by any test, whatever that test is about."""
    refused = [{"failed": TEST, "phase": "call", "error": 'PostgresSyntaxError: syntax error at or near "AND"'}]
    assert outcome((1, refused)) == Outcome.INVALID


def test_a_line_that_no_test_executes_is_reported(outcome: Callable[..., Outcome]) -> None:
    """Without tests nothing can be noticed."""
    assert outcome(tests=[]) == Outcome.NOT_COVERED


def test_no_more_tests_run_than_time_allows() -> None:
    """The first test always runs; further ones as long as their usual durations fit."""
    measured = TestMap()
    measured.seconds |= {"a": MAX_SECONDS + 1, "b": 1.0}
    assert affordable(["a", "b"], measured) == ["a"]
    assert affordable(["b", "a"], measured) == ["b"]


def record(outcome: Outcome, package: str = "store") -> dict[str, Any]:
    """Return the record of a trial."""
    return {
        "path": "store/example.py", "line": 1, "operator": "constant", "package": package, "outcome": outcome,
        "before": ["LIMIT = 3"], "after": ["LIMIT = 4"], "scope": "", "test": "", "error": "",
        "tests_run": 2, "tests_found": 5,
    }  # fmt: skip


def test_survivors_are_printed_with_place_and_change() -> None:
    """The report shows what to test next, and the score of each package beside its branches."""
    text = report.render([record(Outcome.KILLED), record(Outcome.SURVIVED)], {"store": (3, 4)}, ["store"])
    survivor = "src/taskherd/store/example.py:1: constant; passed 2 of 5 tests\n  - LIMIT = 3\n  + LIMIT = 4"
    assert survivor in text
    assert text.count("LIMIT = 4") == 1
    assert "store    1        2   50.0 %  0          0           75.0 %" in text


def test_time_outs_count_and_equivalent_mutations_do_not() -> None:
    """A mutation without effect is neither noticed nor missed."""
    outcomes = (Outcome.KILLED, Outcome.TIMED_OUT, Outcome.EQUIVALENT, Outcome.NOT_COVERED)
    assert report.score([record(outcome) for outcome in outcomes]) == (2, 3)


def test_the_same_seed_draws_the_same_sample() -> None:
    """The sample depends on seed and code alone, and contains each mutation at most once."""
    candidates = [Mutation("store/a.py", line, 0, 0, "", "ab"[line % 2]) for line in range(50)]
    assert list(draw(candidates, 7)) == list(draw(candidates, 7)) != list(draw(candidates, 8))
    assert sorted(draw(candidates, 7)) == candidates


def test_every_equivalent_mutation_is_one_of_the_code_today() -> None:
    """An entry for code that has changed would hide nothing, and would have to be judged again."""
    from tests.mutation.room import ROOT  # noqa: PLC0415
    from tests.mutation.sample import PACKAGES  # noqa: PLC0415

    for entry in equivalents.load():
        assert entry.path.split("/")[0] in PACKAGES
        assert entry.reason
        text = (ROOT / "src" / "taskherd" / entry.path).read_text(encoding="utf-8")
        lines = {line.strip() for line in text.splitlines()}
        assert set(entry.before.split("\n")) <= lines, entry
