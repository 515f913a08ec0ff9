"""The parts of a runner's process, without agents and broker: its name, its folder, and what it does when."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd import __version__
from taskherd.errors import Misconfigured, Unavailable
from taskherd.runner import app, orphans
from taskherd.runner.app import RunnerProcess, make_isolation, name_of
from taskherd.runner.orphans import Orphans
from taskherd.runner.sole_consumer import CONFIRM_EVERY
from taskherd.runner.workspaces.cgroups import CONTROLLERS
from taskherd.settings import Settings

ONE, TWO, THREE = (UUID(int=number) for number in (1, 2, 3))


def settings(root: Path, **fields: Any) -> Settings:
    """Return the settings of a runner whose folder is this."""
    given = {"amqp_url": "amqp://127.0.0.1:1", "runner_name": "r", "runner_pool": "pool", "amqp_prefix": "p", **fields}
    return Settings(runner_root=str(root), ops_port=0, **given)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Build-7.example.com", "build-7-example-com"),
        ("_a__b.", "a-b"),
        ("...", "runner"),
        ("x" * 65, "x" * 64),
    ],
)
def test_a_runner_is_named_after_its_host(host: str, name: str) -> None:
    """In the characters that names have."""
    assert name_of(host) == name


def test_a_runner_has_another_name_than_its_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests for the one would be for the other."""
    with pytest.raises(Misconfigured, match="r is also the name of the pool"):
        RunnerProcess(settings(tmp_path, runner_pool="r"))
    monkeypatch.setattr(socket, "gethostname", lambda: "Host")
    assert RunnerProcess(settings(tmp_path, runner_name=""))._name == "host"


def test_a_folder_has_one_runner(tmp_path: Path) -> None:
    """It is made if need be, for this user alone; the next runner may have it when its process has ended."""
    root = tmp_path / "a" / "b"
    first = app._lock_root(root)
    assert root.stat().st_mode & 0o777 == 0o700
    assert (root / "lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(Misconfigured, match="is in use by another runner"):
        app._lock_root(root)
    assert not os.get_inheritable(first)
    os.close(first)
    os.close(app._lock_root(root))
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match=r"cannot be used \(Not a directory\); expected a writable folder"):
        app._lock_root(tmp_path / "file" / "a")


def test_agents_are_separated_as_the_settings_say(tmp_path: Path) -> None:
    """By nothing, unless they say so."""
    plain = make_isolation(settings(tmp_path))
    assert (plain.users, plain.cgroups) == (None, None)
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "cgroup.controllers").write_text("cpu\n")
    with capture_logs() as logged:
        separated = make_isolation(settings(tmp_path, runner_cgroup=str(cgroup), runner_sandbox_paths="/opt/a::/opt/b"))
    assert separated.cgroups is not None
    assert [entry["missing"] for entry in logged] == [", ".join(sorted(CONTROLLERS - {"cpu"}))]
    assert (separated.sandbox._paths, separated.sandbox._checker_uid) == (("/opt/a", "/opt/b"), None)
    assert separated.sandbox._hidden == Path(settings(tmp_path).runner_root).resolve()
    users = make_isolation(settings(tmp_path, runner_agent_uids="200000-200003"))
    assert users.users is not None
    assert users.sandbox._checker_uid == 200000


class Parts:
    """A process whose parts note what is done to them."""

    def __init__(self, root: Path, **fields: Any) -> None:
        self.process = RunnerProcess(settings(root, **fields))
        self.deeds: list[Any] = []
        self.builds: dict[UUID, int] = {}
        self.discarded: set[UUID] = set()
        self.consuming = True
        self.failure: Exception | None = None
        self.process._dispatcher = self.process._consumer = self.process._sender = self  # type: ignore[assignment]

    def discard(self, task_id: UUID) -> bool:
        """Note it, and return whether it is the first time."""
        self.deeds.append(("discard", task_id))
        is_first = task_id not in self.discarded
        self.discarded.add(task_id)
        return is_first

    def end_taken_over(self, task_id: UUID, build_number: int) -> None:
        """Note it."""
        self.deeds.append(("end", task_id, build_number))

    async def stop(self) -> None:
        """Note it."""
        self.deeds.append("stop consuming")
        if self.failure is not None:
            raise self.failure

    async def flush(self) -> None:
        """Note it."""
        self.deeds.append("flush")

    def resubscribe(self) -> None:
        """Note it."""
        self.deeds.append("resubscribe")

    async def detach(self) -> None:
        """Note it."""
        self.deeds.append("detach")

    async def close(self) -> None:
        """Note it."""
        self.deeds.append("close")

    def hurry(self) -> None:
        """Note it."""
        self.deeds.append("hurry")

    async def ready(self) -> dict[str, str | None]:
        """Return the reasons why the process is not ready."""
        return await self.process._readiness.reasons()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition is met."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("off", [-3_600, 3_600])
def test_the_time_is_that_of_the_wall_clock_whatever_the_monotonic_clock_has_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    """That one stands still while the machine is suspended, and the wall clock may be set."""
    now, monotonic = RunnerProcess(settings(tmp_path))._make_context().now, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + off)
    before = datetime.now(UTC)
    assert before <= now() <= datetime.now(UTC)


async def test_metrics_say_what_the_process_is(tmp_path: Path) -> None:
    """From its start; counters begin at zero."""
    given = settings(tmp_path)
    process = RunnerProcess(given)
    metrics = process.metrics
    assert metrics.build_info.labels(__version__)._value.get() == 1
    assert metrics.process_info.labels("runner", given.installation)._value.get() == 1
    assert metrics.failpoint_armed._value.get() == 0
    assert await process._readiness.reasons() == {"broker": "not known yet", "consumers": "not known yet"}
    samples = [each for metric in metrics.runner_requests.collect() for each in metric.samples]
    assert {each.value for each in samples if each.name.endswith("_total")} == {0}


async def test_a_runner_that_is_to_stop_takes_no_more_from_its_pool(tmp_path: Path) -> None:
    """What is asked of itself still comes; each time that it has its queues, it looks for orphans."""
    parts = Parts(tmp_path)

    async def obtain() -> list[str]:
        return ["p.work.pool", "p.work.r"]

    async def count() -> int:
        return 0

    parts.process._hellos.obtain_queues = obtain  # type: ignore[method-assign]
    parts.process._sole_consumer._count = count
    parts.process._sole_consumer._consumes = lambda: False
    channel: Any = None
    assert [source.queue for source in await parts.process._prepare(channel)] == ["p.work.pool", "p.work.r"]
    assert parts.process._connected.is_set()
    parts.process.stop()
    assert [source.queue for source in await parts.process._prepare(channel)] == ["p.work.r"]


async def test_a_further_signal_shortens_a_drain(tmp_path: Path) -> None:
    """The first one begins it; without a drain there is nothing to shorten."""
    parts = Parts(tmp_path)
    parts.process._drain = None
    parts.process.stop()
    parts.process.stop()
    assert parts.process._stopping.is_set()
    draining = Parts(tmp_path)
    draining.process._drain = draining  # type: ignore[assignment]
    draining.process.stop()
    assert draining.deeds == []
    draining.process.stop()
    draining.process.stop()
    assert draining.deeds == ["hurry", "hurry"]


@pytest.mark.parametrize(("mode", "drains", "wait"), [("keep", False, 0), ("pause", True, 0), ("wait:3s", True, 3)])
def test_how_a_runner_drains_is_a_setting(tmp_path: Path, mode: str, *, drains: bool, wait: float) -> None:
    """Most of the grace time is for it."""
    process = RunnerProcess(settings(tmp_path, runner_drain=mode, grace=20))
    assert (process._drain is not None) is drains
    if process._drain is not None:
        assert (process._drain._wait, process._drain._grace) == (wait, 18)


async def test_orphans_are_looked_for_after_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted meanwhile is removed, and counted once; at the first one there may be no tasks yet."""
    parts = Parts(tmp_path)
    asked: list[list[UUID]] = []

    async def find(_client: object, runner: str, tasks: list[UUID], _on_error: object) -> Orphans:
        assert runner == "r"
        asked.append(tasks)
        return Orphans(deleted=[ONE], unknown=[TWO], elsewhere=[THREE])

    def were_asked(rounds: int) -> bool:
        return len(asked) == parts.deeds.count(("discard", ONE)) == rounds

    monkeypatch.setattr(orphans, "find_orphans", find)
    parts.builds = {ONE: 1, TWO: 2, THREE: 3}
    looking = asyncio.create_task(parts.process._find_orphans())
    await asyncio.sleep(0.01)
    assert asked == []
    with capture_logs() as logged:
        for rounds in (1, 2):
            parts.process._connected.set()
            await parts.until(partial(were_asked, rounds))
    await asyncio.sleep(0)
    assert parts.deeds == [("end", THREE, 3), ("discard", ONE)] * 2
    assert parts.process.metrics.runner_orphans._value.get() == 1
    assert asked == [[ONE, TWO, THREE]] * 2
    assert [entry["task_id"] for entry in logged if "was deleted" in entry["event"]] == [str(ONE)]
    unknown = [entry["folder"] for entry in logged if "does not know" in entry["event"]]
    assert unknown == [str(tmp_path / str(TWO))] * 2
    looking.cancel()
    later = Parts(tmp_path)
    looking = asyncio.create_task(later.process._find_orphans())
    later.process._connected.set()
    await later.until(lambda: not later.process._connected.is_set())
    later.builds = {ONE: 1, THREE: 3}
    later.process._connected.set()
    await later.until(lambda: ("discard", ONE) in later.deeds)
    assert later.deeds == [("end", THREE, 3), ("discard", ONE)]
    looking.cancel()


async def test_deleted_tasks_are_looked_for_from_time_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that has moved may be deleted later; only a connection tells that one has moved."""
    parts = Parts(tmp_path)
    parts.builds = {ONE: 1, THREE: 3}

    async def find(*_: object) -> Orphans:
        return Orphans(deleted=[ONE], elsewhere=[THREE])

    monkeypatch.setattr(orphans, "find_orphans", find)
    monkeypatch.setattr(app, "LOOK_EVERY", 0.01)
    looking = asyncio.create_task(parts.process._find_orphans())
    await parts.until(lambda: len(parts.deeds) == 2)
    assert parts.deeds == [("discard", ONE)] * 2
    parts.process._connected.set()
    await parts.until(lambda: ("end", THREE, 3) in parts.deeds)
    looking.cancel()


async def test_a_runner_is_ready_while_it_consumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is to stop, and as far as no other runner has its name."""
    sleep = asyncio.sleep
    parts = Parts(tmp_path)
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))
    updating = asyncio.create_task(parts.process._update_readiness())
    taken = "another runner has the name"
    for consuming, problem, reason in (
        (True, None, None),
        (False, None, "not consuming"),
        (False, taken, taken),
        (True, taken, taken),
        (True, None, None),
    ):
        parts.consuming, parts.process._sole_consumer.problem = consuming, problem
        for _ in range(4):
            await sleep(0)
        assert (await parts.ready())["consumers"] == reason
    parts.process.stop()
    await asyncio.wait_for(updating, 30)


async def test_a_runner_begins_anew_if_another_one_has_come_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks from time to time; without the broker it sees nothing."""
    sleep, parts, slept = asyncio.sleep, Parts(tmp_path), list[float]()
    seen: list[bool | Unavailable | Misconfigured] = [
        True, Unavailable("no broker"), Misconfigured("amqp_url", "no right"), False, True
    ]  # fmt: skip

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0 if seen else 600)

    async def look() -> bool:
        found = seen.pop(0)
        if isinstance(found, bool):
            return found
        raise found

    monkeypatch.setattr(asyncio, "sleep", note)
    parts.process._sole_consumer.look = look  # type: ignore[method-assign]
    watching = asyncio.create_task(parts.process._watch_name())
    while len(slept) < 6:
        await sleep(0)
    assert parts.deeds == ["resubscribe"]
    assert slept == [CONFIRM_EVERY] * 6
    watching.cancel()


@pytest.mark.parametrize("failure", [None, Unavailable("no broker"), TimeoutError()])
async def test_a_runner_shuts_down_in_order(tmp_path: Path, failure: Exception | None) -> None:
    """It sends what it can, leaves its agents to the next runner, and ends with the error of what has failed."""
    parts = Parts(tmp_path)
    parts.failure = failure

    async def fail() -> None:
        raise RuntimeError("unexpected")

    waiting = asyncio.create_task(asyncio.sleep(600))
    await parts.process._shut_down([waiting], 20)
    assert parts.deeds == ["stop consuming", *(["flush"] if failure is None else []), "detach", "close"]
    assert waiting.cancelled()
    assert (await parts.ready())["consumers"] == "stopping"
    failing = asyncio.create_task(fail())
    await asyncio.wait({failing})
    with pytest.raises(RuntimeError, match="unexpected"):
        await parts.process._shut_down([failing], 20)


async def test_a_shutdown_takes_its_grace_time(tmp_path: Path) -> None:
    """What is not sent then is sent by the next runner."""
    parts = Parts(tmp_path)

    async def flush() -> None:
        parts.deeds.append("flush")
        await asyncio.Event().wait()

    parts.flush = flush  # type: ignore[method-assign]
    await asyncio.wait_for(parts.process._shut_down([asyncio.create_task(asyncio.sleep(600))], 0.05), 30)
    assert parts.deeds == ["stop consuming", "flush", "detach", "close"]
