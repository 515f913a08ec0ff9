"""The laws of the demo: it comes to its end and judges itself, it can fail, and it leaves no process behind."""

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
from examples.demo.runner import Observations
from examples.demo.scenarios import Role, scenarios
from examples.demo.task_table import DemoTask
from taskherd.dev import dev
from taskherd.store import directory

ROOT = Path(__file__).parents[2]
DOZEN = 12


@contextmanager
def started(data: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo without a terminal, in this checkout; killed if it outlives the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def left(data: Path) -> list[str]:
    """The command lines of processes that have this folder in them or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(data) in word for word in words):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs_to_its_end_and_finds_all_as_expected(tmp_path: Path) -> None:
    """Exit code 0, no cross, the dead letters with their reasons, and nothing left running."""
    with started(tmp_path) as process:
        said, _ = process.communicate(timeout=290)
    assert process.returncode == 0, said
    assert "✗" not in said
    for word in ("SIGSEGV", "used up its time", "not_json", "SyntaxError", "p99", "everything is as expected"):
        assert word in said
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    """After Ctrl-C in the middle of the work: exit code 130, and nothing left running."""
    with started(tmp_path) as process:
        assert process.stdout is not None
        assert any("working: 1/" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert left(tmp_path) == []


def test_nothing_seen_is_nothing_as_expected() -> None:
    """Where no event came, every expectation fails: the demo can't succeed by not looking."""
    rows = {part.name: DemoTask(part) for part in scenarios()}
    findings = check(Evidence(rows, Observations()))
    findings += check_shutdown(rows.values(), {}, {}, [])
    assert not any(finding.met for finding in findings)


def test_every_part_has_a_job_of_at_least_three_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dozen parts, each role played; those without an agent of their own have real steps over this checkout."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cast = scenarios()
    assert len(cast) == DOZEN
    assert {part.role for part in cast} == set(Role)
    for part in cast:
        if part.role not in {Role.FIXES, Role.SENT}:
            assert len(jobs.steps(part.job, ROOT)) >= 3


def test_its_directory_has_room_beside_the_example() -> None:
    """What the demo adds to the example contradicts nothing in it: one more template for each part."""
    example = yaml.safe_load((ROOT / dev.EXAMPLE_DIRECTORY).read_bytes())
    both = directory.parse(templates.directory(example, scenarios(), ROOT))
    assert len(both.templates) == len(example["templates"]) + DOZEN


def test_the_seeded_mistake_is_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler refuses the last draft, and only that."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = [step.do() for step in jobs.steps("seeded", ROOT)]
    assert [each.succeeded for each in done] == [True, True, False]
    assert "SyntaxError" in done[-1].output
