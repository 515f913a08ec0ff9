"""The demo: it succeeds, it can fail, and it leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from examples.demo import jobs, templates
from examples.demo.checks import Evidence, check, check_shutdown
from examples.demo.people_checks import check_people
from examples.demo.scenario_runner import Observations
from examples.demo.scenarios import Role, scenarios
from examples.demo.task_table import DemoTask
from taskherd.directory_file.example import EXAMPLE
from taskherd.directory_file.parse import parse

ROOT = Path(__file__).parents[2]
COUNT = 14
"""Number of scenarios."""


@contextmanager
def started(data: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the demo without a terminal in this checkout; it is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def leftovers(data: Path) -> list[str]:
    """Return the command lines of processes that have this folder in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(data) in text for text in texts):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_meets_all_expectations(tmp_path: Path) -> None:
    """The demo exits with 0, all expectations are met, dead letters have reasons, and no process is left.

    It stays until Ctrl-C, with a request that waits for an answer.
    """
    with started(tmp_path, STAY="1") as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "the board stays at" in line:
                process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 0, output
    assert "✗" not in output
    for text in (
        "SIGSEGV",
        "exceeded its time limit",
        "not_json",
        "SyntaxError",
        "p99",
        "waits for your answer",
        "everything is as expected",
    ):
        assert text in output
    assert leftovers(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_interrupt_stops_everything(tmp_path: Path) -> None:
    """After Ctrl-C while agents work, the demo exits with 130 and no process is left."""
    with started(tmp_path) as process:
        assert process.stdout is not None
        assert any("working: 1/" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert leftovers(tmp_path) == []


def test_without_events_no_expectation_is_met() -> None:
    """If no event arrived, every expectation fails, so the demo cannot succeed by observing nothing."""
    rows = {scenario.name: DemoTask(scenario) for scenario in scenarios()}
    evidence = Evidence(rows, Observations())
    expectations = [*check(evidence), *check_people(evidence)]
    expectations += check_shutdown(rows.values(), {}, {}, [])
    assert not any(each.met for each in expectations)


def test_every_scenario_has_a_job_of_at_least_three_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There are fourteen scenarios, with every role; all jobs that run steps have at least three on this checkout."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    all_scenarios = scenarios()
    assert len(all_scenarios) == COUNT
    assert {each.role for each in all_scenarios} == set(Role)
    for each in all_scenarios:
        if each.role not in {Role.FIXES, Role.ANSWERS, Role.ASKS, Role.INTERRUPTED}:
            assert len(jobs.steps(each.job, ROOT)) >= 3


def test_the_directory_adds_templates_to_the_example() -> None:
    """The demo's directory is valid and has the example's content and one template for each scenario."""
    example = yaml.safe_load(EXAMPLE.read_bytes())
    combined = parse(templates.directory(example, scenarios(), ROOT).encode())
    assert len(combined.templates) == len(example["templates"]) + COUNT


def test_the_broken_draft_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler rejects the last draft, and only that one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = [step.do() for step in jobs.steps("seeded", ROOT)]
    assert [each.succeeded for each in results] == [True, True, False]
    assert "SyntaxError" in results[-1].output
