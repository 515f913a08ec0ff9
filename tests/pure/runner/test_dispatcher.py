"""What a dispatcher does with tasks whose files cannot be read for a while, and with supervisors that come late."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.runner import dispatcher
from taskherd.runner import journal as journals
from taskherd.runner.dispatcher import Dispatcher
from taskherd.runner.journal import Journal
from taskherd.runner.requests import PendingRequest
from taskherd.runner.workspaces.isolation import Isolation
from tests.pure.runner.test_supervisor import Runner


class Disk:
    """The disk that journals are on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = False
        self.looks = 0
        self._load = journals.load
        monkeypatch.setattr(journals, "load", self._load_or_fail)

    def _load_or_fail(self, path: Path) -> Journal | None:
        self.looks += 1
        if self.is_broken:
            raise OSError(5, "Input/output error")
        return self._load(path)


@pytest.fixture
async def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runner]:
    """Yield a runner without tasks, which looks at once again for what it could not read."""
    monkeypatch.setattr(dispatcher, "RESTART_AFTER", 0.001)
    started = Runner(tmp_path, monkeypatch)
    yield started
    await started.dispatcher.detach()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Return a disk that works."""
    return Disk(monkeypatch)


def reasons(logged: Any) -> list[str]:
    """Return why files of tasks could not be read."""
    return [entry["reason"] for entry in logged if entry["event"].startswith("cannot read the files of a task")]


async def test_requests_wait_for_files_that_cannot_be_read(runner: Runner, disk: Disk) -> None:
    """In their order, and a drain waits for them; the one look that is due is enough for all of them."""
    disk.is_broken = True
    with capture_logs() as logged:
        runner.deliver("start", 1)
        runner.deliver("stop", 2)
    assert reasons(logged) == ["[Errno 5] Input/output error"]
    assert not runner.dispatcher.drained
    with capture_logs() as logged:
        await runner.until(lambda: disk.looks >= 5)
    assert set(reasons(logged)) == {"[Errno 5] Input/output error"}
    assert (runner.consumer.acked, runner.workspaces) == ([], [])
    disk.is_broken = False
    await runner.until(lambda: runner.consumer.acked == [1, 2])
    await runner.until(runner.is_idle)
    assert runner.workspace.executed[-1] == ("stop", 2)
    await runner.until(lambda: runner.dispatcher.drained)
    await runner.execute("stop", 3)
    assert len(runner.workspaces) == 1


async def test_a_task_whose_journal_cannot_be_read_is_adopted_later(
    runner: Runner, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else gets its user meanwhile, nor that of one whose journal is damaged or another's."""
    await runner.execute("start", 1)
    await runner.dispatcher.detach()
    held: list[tuple[UUID, int | None]] = []
    monkeypatch.setattr(Isolation, "hold_user", lambda _, *given: held.append(given))
    next_one = Dispatcher(runner.context, runner.consumer)  # type: ignore[arg-type]
    disk.is_broken = True
    assert next_one.adopt_tasks() == 0
    task_id = runner.task.task_id
    assert held == [(task_id, runner.task.owner())]
    assert not next_one.drained
    before = disk.looks
    await runner.until(lambda: disk.looks > before + 1)
    content = runner.task.journal.read_bytes()
    runner.task.journal.write_bytes(b"damaged")
    disk.is_broken = False
    with capture_logs() as logged:
        await runner.until(lambda: next_one.drained)
    assert set(reasons(logged)) == {"its journal is damaged"}
    assert next_one.builds == {}
    later = Dispatcher(runner.context, runner.consumer)  # type: ignore[arg-type]
    assert later.adopt_tasks() == 0
    assert held == [(task_id, runner.task.owner())] * 2
    runner.task.journal.write_bytes(content)
    await runner.until(lambda: next_one.builds == {task_id: 1})
    await next_one.detach()


async def test_a_folder_with_another_tasks_journal_is_left_alone(runner: Runner) -> None:
    """It is neither adopted nor touched."""
    await runner.execute("start", 1)
    await runner.dispatcher.detach()
    content = runner.task.journal.read_text().replace(str(runner.task.task_id), str(UUID(int=9)))
    runner.task.journal.write_text(content)
    later = Dispatcher(runner.context, runner.consumer)  # type: ignore[arg-type]
    assert later.adopt_tasks() == 0
    assert later.drained
    assert runner.task.journal.read_text() == content


async def test_a_task_that_comes_late_is_held_too(runner: Runner) -> None:
    """Its start is left to the next runner."""
    runner.dispatcher.hold_starts()
    runner.deliver("input", 1)
    runner.supervisor.submit(PendingRequest(runner.request("start", 1), lambda: None))
    await runner.until(runner.is_idle)
    assert (runner.claims, runner.workspace.executed) == ([], [])
    runner.dispatcher.drain()
    assert runner.deliver("stop", 2)
    assert 2 not in runner.consumer.acked, "a drained runner dispatches nothing more"


async def test_a_dispatcher_that_has_ended_begins_nothing(runner: Runner, disk: Disk) -> None:
    """Also if a look was due."""
    disk.is_broken = True
    runner.deliver("stop", 1)
    await runner.dispatcher.detach()
    disk.is_broken = False
    looks = disk.looks
    runner.dispatcher._restart(runner.task.task_id)
    assert (disk.looks, runner.workspaces) == (looks, [])
