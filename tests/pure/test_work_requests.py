"""Work requests: to which runner and pool each of them goes, how long it lasts, and what waits for a broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import chain, repeat
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.liveness import Timeouts
from taskherd.errors import Unavailable
from taskherd.messages import work
from taskherd.observability.metrics import Metrics
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker.context import RequestRetryPolicy
from taskherd.worker.work_requests import MAX_OF_TARGET, send, targets
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

TIMEOUT = timedelta(seconds=30)
BEFORE = TIMEOUT - timedelta(microseconds=1)
START, STOP, DELETE = "workspace.start", "workspace.stop", "workspace.delete"


def row(kind: str, runner: str | None, sent_before: timedelta | None) -> WorkRequestRow:
    """Return a request, first sent so long before noon."""
    return WorkRequestRow(
        request_id=UUID(int=1),
        task_id=UUID(int=2),
        build_number=1,
        type=kind,
        input_id=None,
        target_runner=runner,
        attempt=1,
        created_at=NOON - timedelta(hours=1),
        next_at=NOON,
        first_sent_at=None if sent_before is None else NOON - sent_before,
    )


@pytest.mark.parametrize(
    ("kind", "runner", "sent_before", "expected"),
    [
        (START, None, None, ["gpu"]),
        (work.AGENT_ANSWER, None, None, []),
        (work.AGENT_ANSWER, None, TIMEOUT, []),
        (START, "r1", None, ["r1"]),
        (START, "r1", BEFORE, ["r1"]),
        (START, "r1", TIMEOUT, ["r1", "gpu"]),
        (DELETE, "r1", BEFORE, ["r1"]),
        (DELETE, "r1", TIMEOUT, ["r1", "gpu"]),
        (STOP, "r1", TIMEOUT, ["r1"]),
        (work.AGENT_ANSWER, "r1", TIMEOUT, ["r1"]),
    ],
)
def test_where_a_request_goes(
    kind: str, runner: str | None, sent_before: timedelta | None, expected: list[str]
) -> None:
    """To the task's runner; a start or delete also to its pool, but only once the runner has had its time to answer."""
    assert targets(row(kind, runner, sent_before), "gpu", NOON, TIMEOUT) == expected


@pytest.mark.parametrize("run", [{}, {"pool": ""}, {"pool": 7}])
def test_a_template_without_a_pool_has_the_default_one(run: dict[str, object]) -> None:
    """Also if an older release stored something that is no name."""
    assert replace(DETAILS, run=run).pool == "default"


@pytest.mark.parametrize(("first", "most", "wait"), [(60, 600, 60), (600, 60, 60)])
def test_the_first_attempt_of_a_new_request_is_counted(first: float, most: float, wait: float) -> None:
    """Its second one is due after the first wait, or the longest if that is shorter, more or less."""
    policy = RequestRetryPolicy(timedelta(seconds=first), timedelta(seconds=most), TIMEOUT, TIMEOUT)
    new = replace(row(START, None, None), attempt=0)
    sent = policy.first_attempt(new, NOON)
    assert replace(sent, next_at=new.next_at) == replace(new, attempt=1, first_sent_at=NOON)
    assert 0.9 * wait <= (sent.next_at - NOON).total_seconds() <= 1.1 * wait


HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
DETAILS = WorkRequestDetails(
    UUID(int=2), "a-name", UUID(int=3), "alice", UUID(int=4), "A prompt", {"pool": "gpu"}, None, None, None
)


class Broker:
    """A broker of which ``outcome`` says what becomes of each message; it notes the messages in their groups."""

    def __init__(self, outcome: Callable[[OutgoingMessage], PublishOutcome | Unavailable]) -> None:
        self._outcome = outcome
        self.groups: list[list[OutgoingMessage]] = []
        self.metrics = Metrics()
        self.told: list[str] = []

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Take a group of messages."""
        self.groups.append(list(messages))
        return [self._outcome(message) for message in messages]

    async def send(self, *rows: WorkRequestRow) -> list[OutgoingMessage]:
        """Send these requests at noon, and return the messages."""
        context = partial_context(
            work_publisher=self,
            names=TopologyNames("test"),
            metrics=self.metrics,
            on_unconfirmed=self.told.append,
            timeouts=Timeouts(HOUR, HOUR, HOUR, HOUR, HOUR, MINUTE),
            request_retry=RequestRetryPolicy(MINUTE, MINUTE, HOUR, TIMEOUT),
        )
        await send(context, [(each, DETAILS) for each in rows], NOON)
        return [message for group in self.groups for message in group]

    def sent(self, kind: str) -> float:
        """Return the number of requests of a type that count as sent."""
        return self.metrics.registry.get_sample_value("taskherd_requests_sent_total", {"type": kind}) or 0


def confirm(_: OutgoingMessage) -> PublishOutcome:
    """Confirm every message."""
    return PublishOutcome.CONFIRMED


@pytest.mark.parametrize(
    ("age", "seconds"), [(timedelta(seconds=20), 40.0), (timedelta(seconds=59.5), 1.0), (2 * MINUTE, 1.0)]
)
async def test_an_interrupt_does_not_outlive_its_timeout(age: timedelta, seconds: float) -> None:
    """The queue keeps it for what is left of that, at least a second; others stay for their own time."""
    interrupt = replace(row(work.AGENT_INTERRUPT, "r1", None), created_at=NOON - age, interrupt_id=UUID(int=5))
    first, second = await Broker(confirm).send(interrupt, row(STOP, "r1", None))
    assert (first.expiration, second.expiration) == (seconds, HOUR.total_seconds())


async def test_a_request_to_two_targets_has_a_message_for_each() -> None:
    """Each of its targets has a message, mandatory, so that a missing queue is noticed; it counts once."""
    broker = Broker(confirm)
    messages = await broker.send(row(DELETE, "r1", TIMEOUT), row(STOP, "r2", None))
    assert {message.routing_key for message in messages} == {
        work.routing_key(DELETE, "r1"), work.routing_key(DELETE, "gpu"), work.routing_key(STOP, "r2")
    }  # fmt: skip
    assert all(message.mandatory and message.exchange == "test.work" for message in messages)
    assert [json.loads(message.body)["owner"]["username"] for message in messages] == ["alice"] * 3
    assert (broker.sent(DELETE), broker.sent(STOP)) == (1, 1)


async def test_one_target_that_hangs_holds_up_no_other() -> None:
    """Of several to it no more than a group wait for the broker, and all to others are sent."""
    hanging = work.routing_key(STOP, "r1")
    broker = Broker(lambda message: Unavailable("hangs") if message.routing_key == hanging else confirm(message))
    rows = [row(STOP, runner, None) for runner in ("r1", "r2") for _ in range(MAX_OF_TARGET + 1)]
    await broker.send(*rows)
    sizes = {
        key: [len(group) for group in broker.groups if group[0].routing_key == key]
        for key in (hanging, work.routing_key(STOP, "r2"))
    }
    assert sizes == {hanging: [MAX_OF_TARGET], work.routing_key(STOP, "r2"): [MAX_OF_TARGET, 1]}
    assert broker.told == ["requests to r1: hangs"]


async def test_one_request_that_is_not_confirmed_holds_up_none_to_its_target() -> None:
    """As long as the broker confirms another one of the group."""
    outcomes: Iterator[PublishOutcome | Unavailable]
    outcomes = chain([Unavailable("late")], repeat(PublishOutcome.CONFIRMED))
    broker = Broker(lambda _: next(outcomes))
    await broker.send(*[row(STOP, "r1", None)] * (MAX_OF_TARGET + 1))
    assert [len(group) for group in broker.groups] == [MAX_OF_TARGET, 1]
    assert broker.told == ["requests to r1: late"]
