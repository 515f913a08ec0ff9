"""In which messages the reports of all tasks leave, in what order, and what becomes of those that are not confirmed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pytest

from taskherd import retry
from taskherd.broker.publisher import PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.messages.limits import MAX_MESSAGE_BYTES
from taskherd.observability.metrics import Metrics
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.report_sender import ReportSender


class Published:
    """What was published, and what the broker says to it."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, bytes]] = []
        self.outcome = PublishOutcome.CONFIRMED
        self.outcomes: Iterator[PublishOutcome] = iter(())
        """The outcomes of the next messages, before those that all have."""

    async def publish(self, exchange: str, routing_key: str, body: bytes, *, mandatory: bool) -> PublishOutcome:
        """Record a message."""
        assert mandatory
        self.messages.append((exchange, routing_key, body))
        return next(self.outcomes, self.outcome)

    @property
    def reports(self) -> list[list[Any]]:
        """The reports of each message."""
        bodies = [json.loads(body) for _, _, body in self.messages]
        return [body if isinstance(body, list) else [body] for body in bodies]


class Sending:
    """A sender, and the outboxes that it sends from."""

    def __init__(self, folder: Path) -> None:
        self.published = Published()
        self.metrics = Metrics()
        self.errors: list[str] = []
        names = TopologyNames("herd")
        self.sender = ReportSender(cast("Any", self.published), names, "r1", self.metrics, self.errors.append)
        self._folder = folder

    def outbox(self, name: str) -> Outbox:
        """Open an outbox."""
        return Outbox(self._folder / name, Budget(10**9), self.sender.schedule)

    @property
    def counted(self) -> float:
        """Number of reports that were counted as sent."""
        return float(self.metrics.runner_reports._value.get())


@pytest.fixture
def sending(tmp_path: Path) -> Sending:
    """Return a sender without reports."""
    return Sending(tmp_path)


async def cancel(running: asyncio.Task[None]) -> None:
    """Cancel a task that runs for ever."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def numbered(letter: str, count: int) -> list[str]:
    """Return reports that say which they are."""
    return [f'"{letter}{number}"' for number in range(count)]


async def test_each_task_has_a_share_of_a_message(sending: Sending) -> None:
    """Twenty reports of one task, a hundred in all; a task that has more waits until the others had their turn."""
    outboxes = {letter: sending.outbox(letter) for letter in "abcdef"}
    for letter, outbox in outboxes.items():
        outbox.append(numbered(letter, 21))
    assert [await sending.sender.send_once() for _ in range(4)] == [100, 25, 1, 0]
    assert sending.published.reports == [
        [f"{letter}{number}" for letter in "abcde" for number in range(20)],
        [*(f"f{number}" for number in range(20)), *(f"{letter}20" for letter in "abcde")],
        ["f20"],
    ]
    await sending.sender.wait_sent()


async def test_a_single_report_is_no_array(sending: Sending) -> None:
    """It goes to the exchange of reports with the key of its runner, and is counted once it is confirmed."""
    outbox = sending.outbox("a")
    outbox.append(['{"seq":1}'])
    assert await sending.sender.send_once() == 1
    assert sending.published.messages == [("herd.reports", "runner.r1", b'{"seq":1}')]
    assert (len(outbox), sending.counted) == (0, 1)


async def test_a_message_is_filled_up_to_512_kib(sending: Sending) -> None:
    """What does not fit comes first in the next one; a report that is larger by itself is sent alone."""
    half = MAX_MESSAGE_BYTES // 2
    for name, sizes in (("a", [half]), ("b", [half - 10, 100]), ("c", [2 * MAX_MESSAGE_BYTES]), ("d", [5])):
        sending.outbox(name).append([f'"{name * (size - 2)}"' for size in sizes])
    await sending.sender.flush()
    assert [[(report[0], len(report) + 2) for report in message] for message in sending.published.reports] == [
        [("a", half), ("b", half - 10)],
        [("c", 2 * MAX_MESSAGE_BYTES)],
        [("d", 5), ("b", 100)],
    ]


async def test_reports_that_are_not_confirmed_stay(sending: Sending) -> None:
    """They are sent again, and not counted before."""
    outbox = sending.outbox("a")
    outbox.append(numbered("a", 2))
    sending.published.outcome = PublishOutcome.UNROUTED
    with pytest.raises(
        Unavailable, match=r"no queue is bound to exchange herd\.reports; run `taskherd topology apply`"
    ):
        await sending.sender.send_once()
    assert (len(outbox), sending.counted) == (2, 0)
    sending.published.outcome = PublishOutcome.CONFIRMED
    assert await sending.sender.send_once() == 2
    assert (len(outbox), sending.counted) == (0, 2)
    assert sending.published.reports == [["a0", "a1"]] * 2


async def test_nothing_more_is_sent_of_a_task_that_was_dropped(sending: Sending) -> None:
    """All is sent then, if it was the last one with reports."""
    first, second = sending.outbox("a"), sending.outbox("b")
    first.append(numbered("a", 1))
    second.append(numbered("b", 1))
    sending.sender.drop(first)
    sending.sender.drop(first)
    assert await sending.sender.send_once() == 1
    assert sending.published.reports == [["b0"]]
    second.append(numbered("b", 1))
    sending.sender.drop(second)
    await sending.sender.wait_sent()
    assert await sending.sender.send_once() == 0


async def test_the_sender_waits_for_reports_and_tries_again(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer after each failure in a row, and shortly after the first one that follows a success."""
    failures: list[int] = []

    def delay(number: int) -> float:
        failures.append(number)
        return 0

    monkeypatch.setattr(retry, "delay", delay)
    await asyncio.wait_for(sending.sender.wait_sent(), 30)  # there is nothing to send
    outbox = sending.outbox("a")
    outcomes = [*[PublishOutcome.UNROUTED] * 3, PublishOutcome.CONFIRMED, PublishOutcome.UNROUTED]
    sending.published.outcomes = iter([*outcomes, PublishOutcome.CONFIRMED])
    running = asyncio.create_task(sending.sender.run())
    await asyncio.sleep(0)
    outbox.append(numbered("a", 1))
    await asyncio.wait_for(sending.sender.wait_sent(), 60)
    assert failures == [1, 2, 3]
    assert sending.errors == ["no queue is bound to exchange herd.reports; run `taskherd topology apply`"] * 3
    outbox.append(['"more"'])
    await asyncio.wait_for(sending.sender.wait_sent(), 60)
    assert (failures, len(sending.errors)) == ([1, 2, 3, 1], 4)
    assert sending.published.reports == [*[["a0"]] * 4, *[["more"]] * 2]
    await cancel(running)


async def test_heartbeats_are_sent_in_messages_of_100(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """About as often as is wanted; those that cannot be sent are not sent later."""
    monkeypatch.setattr(random, "uniform", lambda *_: 0)
    rounds = chain([range(201), range(300, 302), range(400, 401)], repeat(()))
    ended = asyncio.Event()

    def heartbeats() -> list[bytes]:
        current = [str(number).encode() for number in next(rounds)]
        if not current:
            ended.set()
        return current

    confirmed = PublishOutcome.CONFIRMED
    sending.published.outcomes = iter([confirmed, confirmed, confirmed, PublishOutcome.UNROUTED, confirmed])
    running = asyncio.create_task(sending.sender.send_heartbeats(10, heartbeats))
    await asyncio.wait_for(ended.wait(), 60)
    assert sending.published.reports == [[*range(100)], [*range(100, 200)], [200], [300, 301], [400]]
    assert [error.partition(";")[0] for error in sending.errors] == ["no queue is bound to exchange herd.reports"]
    assert sending.counted == 202
    await cancel(running)
