"""How work requests are sent from memory and from the database; without either."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from taskherd import retry
from taskherd.errors import Retry, Unavailable
from taskherd.store.engine import StatementTimeout
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker import request_sender, work_requests
from taskherd.worker.context import WorkerContext
from taskherd.worker.request_sender import RequestSender
from tests.harness.contexts import Waits, partial_context
from tests.harness.histories import NOON

MAX_REQUESTS, MAX_SENDING = 3, 4
ROW = WorkRequestRow(UUID(int=1), UUID(int=2), 1, "workspace.stop", None, "r1", 1, NOON, NOON, NOON)
DETAILS = WorkRequestDetails(ROW.task_id, "name", UUID(int=3), "alice", UUID(int=4), "prompt", {}, None, None, None)
Started = tuple[WorkRequestRow, WorkRequestDetails]


def started(count: int) -> list[Started]:
    """Return so many new requests, each with its index as id."""
    return [(replace(ROW, request_id=UUID(int=index)), DETAILS) for index in range(count)]


class Sending:
    """What a sender has sent; new requests are sent as long as ``confirm`` is not set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.confirm = asyncio.Event()
        self.due: list[int | Exception] = []
        self.due_sent = asyncio.Event()
        self.limits: list[int] = []
        self.monotonic = 1000.0
        self.told: list[str] = []
        self.waits = Waits()
        self.sender = RequestSender(
            partial_context(now=lambda: NOON, on_error=self.told.append), 600, lambda: self.monotonic
        )

    async def look(self, *due: int | Exception) -> None:
        """Have it look for due requests, with these results, until it has had the last one."""
        self.due_sent.clear()
        self.due = list(due)
        self.sender.wake()
        await asyncio.wait_for(self.due_sent.wait(), 20)

    async def send(self, _: WorkerContext, requests: Sequence[Started], now: datetime) -> None:
        """Send new requests."""
        assert now == NOON
        self.batches.append([row.request_id.int for row, _ in requests])
        await self.confirm.wait()

    async def send_due(self, _: WorkerContext, now: datetime, limit: int) -> int:
        """Send so many due requests as the first of ``due`` says, or fail with it."""
        assert now == NOON
        self.limits.append(limit)
        result = self.due.pop(0)
        if not self.due:
            self.due_sent.set()
        if isinstance(result, Exception):
            raise result
        return result

    async def until_batches(self, count: int) -> None:
        """Wait until so many batches are sent."""
        async with asyncio.timeout(20):
            while len(self.batches) < count:  # noqa: ASYNC110 - a list sends no event
                await asyncio.sleep(0)


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Sending:
    """Return a sender that records what it sends."""
    sending = Sending()
    monkeypatch.setattr(work_requests, "MAX_REQUESTS", MAX_REQUESTS)
    monkeypatch.setattr(work_requests, "send", sending.send)
    monkeypatch.setattr(work_requests, "send_due", sending.send_due)
    monkeypatch.setattr(retry, "delay", sending.waits.delay)
    return sending


async def finish(running: asyncio.Task[Any], sending: Sending) -> None:
    """Stop the sender, and wait for its end; it looks for no more due requests."""
    sending.confirm.set()
    sending.sender.stop()
    await asyncio.wait_for(running, 20)


async def test_new_requests_are_sent_in_order_a_few_batches_at_a_time(sending: Sending) -> None:
    """While the broker confirms none, no more than the maximum are sent; what is left is sent before the end."""
    count = MAX_REQUESTS * (MAX_SENDING + 2) - 1
    sending.sender.send(started(count))
    running = asyncio.create_task(sending.sender.run())
    await sending.until_batches(MAX_SENDING)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(sending.batches) == MAX_SENDING
    await finish(running, sending)
    assert [index for batch in sending.batches for index in batch] == list(range(count))
    assert [len(batch) for batch in sending.batches] == [MAX_REQUESTS] * (MAX_SENDING + 1) + [MAX_REQUESTS - 1]


async def test_requests_that_come_while_it_runs_are_sent_at_once(sending: Sending) -> None:
    """It waits for no interval."""
    running = asyncio.create_task(sending.sender.run())
    for index in range(2):
        sending.sender.send(started(2)[index:][:1])
        await sending.until_batches(index + 1)
    await finish(running, sending)
    assert sending.batches == [[0], [1]]


async def test_the_memory_for_new_requests_is_bounded(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have no place are sent when they are due."""
    monkeypatch.setattr(request_sender, "MAX_BUFFER", 5)
    requests = started(9)
    for first, last in ((0, 4), (4, 7), (7, 9)):
        sending.sender.send(requests[first:last])
    running = asyncio.create_task(sending.sender.run())
    await finish(running, sending)
    assert sending.batches == [[0, 1, 2], [3, 4]]


async def test_the_size_of_new_requests_is_bounded(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their prompts may be large; there is room again when requests are sent."""
    monkeypatch.setattr(request_sender, "MAX_BUFFER_BYTES", 4 * len(DETAILS.prompt))
    running = asyncio.create_task(sending.sender.run())
    requests = started(12)
    sending.sender.send(requests[:3])
    await sending.until_batches(1)
    sending.sender.send(requests[3:6])
    await sending.until_batches(2)
    sending.sender.send(requests[6:9])
    sending.confirm.set()
    async with asyncio.timeout(20):
        while vars(sending.sender)["_bytes"]:  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0)
    sending.sender.send(requests[9:])
    await finish(running, sending)
    assert sending.batches == [[0, 1, 2], [3], [9, 10, 11]]


async def test_due_requests_are_sent_until_none_is_left(sending: Sending) -> None:
    """Batch by batch, also if large ones leave a batch of few, when it is told of some; and not before."""
    sending.due = [MAX_REQUESTS, 1, MAX_REQUESTS, MAX_REQUESTS - 1, 0]
    running = asyncio.create_task(sending.sender.run())
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(sending.due) == 5
    sending.sender.wake()
    await asyncio.wait_for(sending.due_sent.wait(), 20)
    await finish(running, sending)
    assert (sending.due, sending.told) == ([], [])


async def test_a_failure_to_send_due_requests_is_told_and_tried_again(sending: Sending) -> None:
    """At the next interval, or when there are new ones; whether the database is away or conflicts."""
    running = asyncio.create_task(sending.sender.run())
    for error in (Unavailable("the database restarts"), Retry("too many conflicts"), 0, Unavailable("again")):
        await sending.look(error)
    await finish(running, sending)
    assert sending.told == ["the database restarts", "too many conflicts", "again"]
    assert sending.waits.after == [1, 2, 1]


async def test_fewer_due_requests_are_read_at_once_while_that_takes_too_long(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as many each time, at least one; twice as many again after each minute in which it does not."""
    monkeypatch.setattr(work_requests, "MAX_REQUESTS", 10)
    running = asyncio.create_task(sending.sender.run())
    for _ in range(5):
        await sending.look(StatementTimeout("too slow"))
    await sending.look(Unavailable("no database"))
    assert sending.limits == [10, 5, 2, 1, 1, 1]
    assert sending.told == ["too slow"] * 5 + ["no database"]
    sending.limits.clear()
    for seconds in (59, 1, 59, 1, 60, 60, 60):
        sending.monotonic += seconds
        await sending.look(1, 0)
    assert sending.limits == [1, 1, 2, 2, 2, 2, 4, 4, 8, 8, 10, 10, 10, 10]
    sending.limits.clear()
    await sending.look(StatementTimeout("again"))
    sending.monotonic += 59
    await sending.look(1, 0)
    assert sending.limits == [10, 5, 5]
    await finish(running, sending)


async def test_how_much_waits_in_memory(sending: Sending) -> None:
    """20,000 requests, or 32 MiB of prompts, and one more if they are a byte less."""
    (row, details) = started(1)[0]
    sending.sender.send([(row, details)] * 20_001)
    running = asyncio.create_task(sending.sender.run())
    await finish(running, sending)
    assert sum(map(len, sending.batches)) == 20_000


@pytest.mark.parametrize(("size", "kept"), [(1024 * 1024, 32), (1024 * 1024 - 1, 33)])
async def test_how_many_bytes_wait_in_memory(sending: Sending, size: int, kept: int) -> None:
    """Of prompts."""
    (row, details) = started(1)[0]
    sending.sender.send([(row, replace(details, prompt="x" * size))] * 40)
    running = asyncio.create_task(sending.sender.run())
    await finish(running, sending)
    assert sum(map(len, sending.batches)) == kept
