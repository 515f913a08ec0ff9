"""Inputs through an agent's stdin, with this process as the agent: what was read counts, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest

from taskherd.domain.reports import InterruptOutcome
from taskherd.runner.agents import interrupting, stdin
from taskherd.runner.agents.context import NOT_RUNNING, DeliveryUnknown, NotDelivered, NotInterrupted
from taskherd.runner.agents.interrupting import end_agent, send_interrupt
from taskherd.runner.agents.self_reporting import SelfReportingFollower
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.contexts import make_context, reports_of
from tests.pure.runner.test_context import given_start, said


class Agent:
    """An agent whose stdin is open in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = RunFolder(folder)
        os.mkfifo(self.folder.input)
        self.descriptor = os.open(self.folder.input, os.O_RDWR | os.O_NONBLOCK)
        self.readers = [True]
        """Whether its stdin is open, at each look, and from the last one on."""
        self.recorded: list[int] = []
        """The bytes in the pipe when an attempt was recorded."""
        monkeypatch.setattr(stdin, "has_reader", self._has_reader)
        monkeypatch.setattr(stdin, "_POLL_INTERVAL", 0)

    def _has_reader(self, folder: RunFolder) -> bool:
        assert folder == self.folder
        return self.readers.pop(0) if len(self.readers) > 1 else self.readers[0]

    async def record(self) -> None:
        """Note an attempt."""
        self.recorded.append(self.unread)

    @property
    def unread(self) -> int:
        """The number of bytes in the pipe."""
        return stdin.unread_bytes(self.descriptor)

    @asynccontextmanager
    async def writing(self, text: str, *, within: float = 600) -> AsyncIterator[asyncio.Task[None]]:
        """Give it an input, and begin the block once there is some of it in the pipe."""
        work = stdin.write(self.folder, text, self.record, read_timeout=within)
        task = asyncio.create_task(work)
        async with asyncio.timeout(30):
            while not self.unread:  # noqa: ASYNC110 - a pipe tells nobody
                await asyncio.sleep(0)
        yield task

    async def error(self, task: asyncio.Task[None]) -> str:
        """Return the error of an input that was not delivered, of which nothing is left in the pipe."""
        with pytest.raises((NotDelivered, DeliveryUnknown)) as raised:
            await asyncio.wait_for(task, 30)
        assert self.unread == 0
        return f"{type(raised.value).__name__}: {raised.value}"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """Yield an agent, and close its stdin in the end."""
    started = Agent(tmp_path, monkeypatch)
    path = str(started.folder.input)
    yield started
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert sum(link.startswith(path) for link in links) == 1, "nobody else has left it open"
    os.close(started.descriptor)


async def test_an_input_is_delivered_once_all_of_it_is_read(agent: Agent) -> None:
    """The attempt is recorded before anything is written."""
    async with agent.writing("hellö") as task:
        assert os.read(agent.descriptor, 6) == "hellö".encode()
        await asyncio.sleep(0.01)
        assert not task.done()
        assert os.read(agent.descriptor, 99) == b"\n"
        await asyncio.wait_for(task, 30)
    assert agent.recorded == [0]


async def test_an_input_that_does_not_fit_is_written_in_parts(agent: Agent) -> None:
    """In order."""
    text, read = "".join(f"{number:07d}\n" for number in range(50_000)), b""
    async with agent.writing(text) as task, asyncio.timeout(60):
        while len(read) <= len(text):
            try:
                read += os.read(agent.descriptor, 50_000)
            except BlockingIOError:
                await asyncio.sleep(0)
        await task
    assert read.decode() == text + "\n"


async def test_what_is_not_read_in_time_is_taken_back(agent: Agent) -> None:
    """Of what was read in part, nobody knows what it means."""
    late = "The agent did not read the input from its stdin within 0.05 s."
    async with agent.writing("hello", within=0.05) as task:
        assert await agent.error(task) == f"NotDelivered: {late}"
    async with agent.writing("hello", within=0.05) as task:
        os.read(agent.descriptor, 4)
        assert await agent.error(task) == (
            f"DeliveryUnknown: {late} It received only a part of the input: 4 of 6 bytes."
        )  # fmt: skip


def test_no_more_is_taken_back_than_was_there(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that writes to its own stdin as fast as that is read does not keep the runner busy."""
    read, reads = os.read, list[int]()

    def refill(descriptor: int, size: int) -> bytes:
        reads.append(size)
        assert len(reads) < 99, "it is read without end"
        data = read(descriptor, size)
        os.write(agent.descriptor, data)
        return data

    os.write(agent.descriptor, b"x" * 60_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", refill)
        patch.setattr(stdin, "_READ_BYTES", 25_000)
        assert stdin._take_back(agent.descriptor) == 60_000
    assert reads == [25_000, 25_000, 10_000]


def test_what_the_agent_reads_meanwhile_is_not_taken_back(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes then is its own."""
    read = os.read

    def share(descriptor: int, size: int) -> bytes:
        assert read(agent.descriptor, 4) == b"hell"
        data = read(descriptor, size)
        os.write(agent.descriptor, b"more")
        return data

    os.write(agent.descriptor, b"hello\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", share)
        assert stdin._take_back(agent.descriptor) == 2
    assert agent.unread == 4


async def test_an_agent_that_ends_reads_no_more(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or that closes its stdin, which is looked at now and then."""
    monkeypatch.setattr(stdin, "READER_CHECK_INTERVAL", 0)
    agent.readers = [True, True, False]
    async with agent.writing("hello") as task:
        closed = "NotDelivered: The agent has closed its stdin, so it takes no inputs."
        assert await agent.error(task) == closed
    agent.readers = [True]
    async with agent.writing("hello") as task:
        os.read(agent.descriptor, 1)
        agent.folder.exit.write_text("{}")
        assert (await agent.error(task)).startswith("DeliveryUnknown: The agent exited before it read the input. It")


def without_descriptors(*_: object, **__: object) -> Never:
    """Fail as a process does that has no file descriptor left."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_what_is_not_read_is_taken_back_without_another_descriptor(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the agent would get what was told as not delivered, and perhaps was sent again."""
    async with agent.writing("hello", within=0.05) as task:
        monkeypatch.setattr(os, "open", without_descriptors)
        late = "The agent did not read the input from its stdin within 0.05 s."
        assert await agent.error(task) == f"NotDelivered: {late}"


async def test_an_input_is_awaited_though_nobody_can_look_for_a_reader(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors or threads, before it is written and meanwhile."""
    monkeypatch.setattr(stdin, "READER_CHECK_INTERVAL", 0)
    looks: list[bool] = []

    def fail(_: RunFolder) -> Never:
        looks.append(True)
        if len(looks) % 2:
            without_descriptors()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(stdin, "has_reader", fail)
    async with agent.writing("hello") as task, asyncio.timeout(30):
        while len(looks) < 4:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        assert not task.done()
        assert os.read(agent.descriptor, 99) == b"hello\n"
        await task


@pytest.mark.parametrize("opened", [0, 1])
async def test_nothing_is_written_without_the_descriptors_to_take_it_back(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, opened: int
) -> None:
    """The attempt is not recorded, and the outcome names the reason."""
    opens, descriptors = os.open, iter(range(opened))

    def open_some(*args: Any) -> int:
        for _ in descriptors:
            return opens(*args)
        without_descriptors()

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_some)
        with pytest.raises(NotDelivered, match=r"^The runner cannot open the agent's stdin: Too many open files\.$"):
            await stdin.write(agent.folder, "hello", agent.record)
    assert (agent.recorded, agent.unread) == ([], 0)


async def test_nothing_is_tried_without_a_reader(agent: Agent) -> None:
    """The attempt is not recorded."""
    agent.readers = [False]
    for prepare, words in (
        (lambda: None, "The agent has closed its stdin, so it takes no inputs."),
        (lambda: agent.folder.exit.write_text("{}"), "The agent exited before it read the input."),
        (agent.folder.input.unlink, NOT_RUNNING),
        (lambda: os.mkfifo(agent.folder.input), NOT_RUNNING),
    ):
        prepare()
        with pytest.raises(NotDelivered) as raised:
            await stdin.write(agent.folder, "hello", agent.record)
        assert str(raised.value) == words
    assert (agent.recorded, agent.unread) == ([], 0)


async def test_an_agent_that_takes_no_inputs_gets_none(tmp_path: Path) -> None:
    """Its template says so."""
    context = make_context(tmp_path, stdin="none")
    with pytest.raises(NotDelivered, match="The agent takes no inputs: its template has `stdin: none`"):
        await stdin.deliver(context, "hello", lambda: pytest.fail("nothing is tried"))


async def test_the_log_of_an_agent_that_reports_itself_has_its_inputs(agent: Agent, tmp_path: Path) -> None:
    """Its prompt is one; the next runner goes on with their ids, and reports nothing again."""
    context = make_context(tmp_path, agent="self")
    given_start(context)
    follower = SelfReportingFollower(context)
    for inputs in (0, 1):
        follower = SelfReportingFollower(context)
        following = asyncio.create_task(follower.follow())
        await asyncio.sleep(0)
        assert not follower.is_at_work
        if inputs:
            delivering = asyncio.create_task(follower.deliver("more", agent.record))
            async with asyncio.timeout(30):
                while not agent.unread:  # noqa: ASYNC110 - a pipe tells nobody
                    await asyncio.sleep(0)
            os.read(agent.descriptor, 99)
            await delivering
        following.cancel()
    logs = reports_of(context.outbox, "task.log")
    entries = [entry for report in logs for entry in report["entries"]]
    assert [(entry["type"], entry["content"]) for entry in entries] == [("input", "Do it"), ("input", "more")]
    assert entries[1]["id"] - entries[0]["id"] == 1
    assert [each for each in said(context) if each == ("ready",)] == [("ready",)]
    assert context.journal.ready_reported
    with pytest.raises(NotInterrupted, match="cannot be interrupted"):
        await follower.interrupt()
    context.folder.output.mkdir()
    (context.folder.output / f"{0:020d}").write_text("one\nlast words\n")
    await follower.conclude(ExitRecord("exited", code=1))
    assert ("failed", "The agent ended with exit status 1. Last output: last words") in said(context)


class Interrupted:
    """An agent that ends at one of the requests to stop it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, ends_at: int) -> None:
        monkeypatch.setattr(interrupting, "_POLL_INTERVAL", 0)
        monkeypatch.setattr(interrupting, "KILL_TIMEOUT", 0.01)
        self.deeds: list[str] = []
        self.ends_at = ends_at
        self.failure: OSError | None = None
        self.context = replace(
            make_context(folder, grace=0), stop_agent=self._stop, interrupt_agent=self._interrupt, save=self._save
        )

    def _stop(self) -> None:
        self.deeds.append("stop")
        if self.deeds.count("stop") == self.ends_at:
            self.context.folder.exit.write_text("{}")

    def _interrupt(self) -> None:
        self.deeds.append("interrupt")

    async def _save(self) -> None:
        self.deeds.append(f"saved {self.context.journal.interrupted}")
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("ends_at", [1, 2])
async def test_an_interrupted_agent_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_at: int) -> None:
    """After its grace time it is killed; that it is interrupted is recorded before, if it can be."""
    agent = Interrupted(tmp_path, monkeypatch, ends_at)
    agent.failure = OSError(28, "No space left on device")
    await send_interrupt(agent.context)
    assert await end_agent(agent.context) is InterruptOutcome.STOPPED
    assert agent.deeds == ["saved True", "interrupt", *["stop"] * ends_at]


async def test_an_agent_that_cannot_be_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To who looks after the machine."""
    agent = Interrupted(tmp_path, monkeypatch, 3)
    with pytest.raises(NotInterrupted, match="could not be ended; check the runner's machine"):
        await end_agent(agent.context)
    assert agent.deeds == ["stop", "stop"]
