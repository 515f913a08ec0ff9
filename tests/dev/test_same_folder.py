"""``taskherd dev`` on a folder with processes: those of a running one stay, those of a killed one are ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskherd.dev import dev, processes, services
from taskherd.errors import Misconfigured
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

AGENT = "an agent"
WORKER = "a worker"


@pytest.fixture(autouse=True)
def external_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name services that are nowhere: nothing connects to them before the folder is locked."""
    monkeypatch.setenv(services.AMQP_URL, "amqp://somewhere/")
    monkeypatch.setenv(services.DATABASE_URL, "postgresql://somewhere/x")


@contextmanager
def child(data: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that looks like a worker or an agent of ``taskherd dev`` in this folder."""
    worker = processes.marked(os.environ, data / "worker")
    env = worker if kind == WORKER else {**os.environ, MARKER_VARIABLE: f"{data}/runner/some-task"}
    process = subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize("kind", [WORKER, AGENT])
def test_a_second_one_leaves_the_processes_of_the_first_alone(tmp_path: Path, kind: str) -> None:
    """It is refused before it ends anything."""
    with services.start(tmp_path, announce=lambda _: None), child(tmp_path, kind) as process:
        with pytest.raises(Misconfigured, match="in use by process"):
            dev.run(services_only=True, data=tmp_path)
        assert process.poll() is None


@pytest.mark.parametrize("kind", [WORKER, AGENT])
def test_leftovers_of_a_killed_one_are_ended_before_the_services_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A leftover worker would connect to the new services."""
    left: list[int] = []

    def interrupt(*_: object) -> None:
        left.extend(each.pid for each in processes.belonging_to(tmp_path / "worker"))
        left.extend(each.pid for each in processes.with_variable(MARKER_VARIABLE, f"{tmp_path}/"))
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "_rabbitmq", interrupt)
    with child(tmp_path, kind):
        assert dev.run(services_only=True, data=tmp_path) == 0
    assert left == []
