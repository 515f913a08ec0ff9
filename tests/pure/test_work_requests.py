"""Work requests: to which runner and pool each of them goes, how long it lasts, and what waits for a broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.liveness import Timeouts
from taskherd.errors import Unavailable
from taskherd.messages import work
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.metrics import Metrics
from taskherd.store import agent_requests, work_request_details
from taskherd.store import work_requests as store
from taskherd.store.agent_requests import StoredAnswer
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker import work_requests
from taskherd.worker.context import RequestRetryPolicy
from taskherd.worker.known_runners import KnownRunners
from taskherd.worker.work_requests import send, send_due, targets
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

TIMEOUT = timedelta(seconds=30)
MAX_OF_TARGET = 64
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
        self.details = DETAILS
        self.known = KnownRunners()
        self.make_token: Callable[[UUID, int], str] = lambda task_id, number: f"token of {task_id.int} and {number}"

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Take a group of messages."""
        self.groups.append(list(messages))
        await asyncio.sleep(0)
        return [self._outcome(message) for message in messages]

    async def send(self, *rows: WorkRequestRow) -> list[OutgoingMessage]:
        """Send these requests at noon, and return the messages."""
        context = partial_context(
            work_publisher=self,
            names=TopologyNames("test"),
            metrics=self.metrics,
            on_unconfirmed=self.told.append,
            make_agent_token=self.make_token,
            known_runners=self.known,
            timeouts=Timeouts(HOUR, HOUR, HOUR, HOUR, HOUR, MINUTE),
            request_retry=RequestRetryPolicy(MINUTE, MINUTE, HOUR, TIMEOUT),
        )
        await send(context, [(each, self.details) for each in rows], NOON)
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


@pytest.mark.parametrize(
    ("sent_before", "seconds"),
    [
        (None, 3600.0),
        (timedelta(0), 3600.0),
        (50 * MINUTE, 600.0),
        (HOUR - timedelta(seconds=0.5), 1.0),
        (2 * HOUR, 1.0),
    ],
)
async def test_an_input_does_not_outlive_its_time(sent_before: timedelta | None, seconds: float) -> None:
    """It counts from the first attempt, after which the input fails: no agent gets one that was told to have failed."""
    given = replace(row("agent.input", "r1", sent_before), input_id=UUID(int=5))
    first, second = await Broker(confirm).send(given, row(STOP, "r1", sent_before))
    assert (first.expiration, second.expiration) == (seconds, HOUR.total_seconds())


async def test_a_start_brings_what_its_agent_needs() -> None:
    """Its prompt, its preset, if there is one, and a token of the task and the build; other requests bring none."""
    broker = Broker(confirm)
    start = replace(row(START, None, None), build_number=3)
    (bare,) = await broker.send(start)
    broker.groups.clear()
    broker.details = replace(DETAILS, preset_id=UUID(int=6), preset_name="Small", preset_parameters={"size": "s"})
    first, stop = await broker.send(start, row(STOP, "r1", None))
    bodies = [json.loads(message.body) for message in (bare, first, stop)]
    assert [body.get("prompt") for body in bodies] == ["A prompt", "A prompt", None]
    assert [body.get("agent_token") for body in bodies] == ["token of 2 and 3"] * 2 + [None]
    preset = {"id": str(UUID(int=6)), "name": "Small", "parameters": {"size": "s"}}
    assert [body.get("preset") for body in bodies] == [None, preset, None]
    assert bodies[0]["build_id"] == str(work.build_id(UUID(int=2), 3))
    broker.groups.clear()
    broker.details = replace(broker.details, preset_name=None, preset_parameters=None)
    (unnamed,) = await broker.send(start)
    assert json.loads(unnamed.body)["preset"] == {"id": str(UUID(int=6)), "name": "", "parameters": {}}


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


async def test_large_requests_are_sent_in_smaller_groups() -> None:
    """Of one target a group ends where its prompts have 4 MiB, and none is encoded before the group that it is in."""
    broker = Broker(confirm)
    encoded: list[int] = []

    def make_token(_: UUID, number: int) -> str:
        encoded.append(len(broker.groups))
        return f"token {number}"

    broker.make_token = make_token
    broker.details = replace(DETAILS, prompt="x" * 1024 * 1024)
    await broker.send(*[row(START, None, None)] * 9, *[row(STOP, "r1", None)] * 3)
    by_target = {
        target: [len(group) for group in broker.groups if group[0].routing_key.endswith(f".{target}")]
        for target in ("gpu", "r1")
    }
    assert by_target == {"gpu": [4, 4, 1], "r1": [3]}
    starts = [number for number, group in enumerate(broker.groups) if len(group) != 3]
    assert encoded == [number for number in starts for _ in broker.groups[number]]
    broker.groups.clear()
    broker.details = replace(DETAILS, prompt="x" * (4 * 1024 * 1024 + 1))
    await broker.send(*[row(START, None, None)] * 2)
    assert [len(group) for group in broker.groups] == [1, 1]


@asynccontextmanager
async def _no_transaction(_: object) -> AsyncIterator[None]:
    yield


class Due:
    """Requests that are due, of which some deliver inputs and answers, and some are of tasks that are gone."""

    def __init__(self, *rows: WorkRequestRow) -> None:
        self.rows = list(rows)
        self.asked: list[tuple[Any, ...]] = []
        self.gone: set[UUID] = set()
        self.broker = Broker(confirm)
        self.failpoints: list[Failpoint] = []

    async def pick_due(
        self, _: object, now: datetime, limit: int, *, first_delay: float, max_delay: float
    ) -> list[WorkRequestRow]:
        """Return the requests."""
        self.asked.append(("due", now, limit, first_delay, max_delay))
        return self.rows

    async def read(
        self, _: object, task_ids: Sequence[UUID], *, with_prompt: Sequence[UUID]
    ) -> dict[UUID, WorkRequestDetails]:
        """Return the details of those tasks that exist; none is started."""
        assert not with_prompt
        return {task_id: replace(DETAILS, task_id=task_id) for task_id in task_ids if task_id not in self.gone}

    async def input_contents(self, _: object, input_ids: Sequence[UUID]) -> dict[UUID, str]:
        """Return the texts of inputs."""
        self.asked.append(("inputs", *input_ids))
        return {each: f"input {each.int}" for each in input_ids}

    async def answers(self, _: object, keys: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], StoredAnswer]:
        """Return answers."""
        self.asked.append(("answers", *keys))
        return {key: StoredAnswer(option_id=None, text=f"answer {key[1].int}") for key in keys if key[1].int != 404}

    async def check_targets(self, _: object, requests: Sequence[Any]) -> Sequence[Any]:
        """Check no target."""
        return requests

    def is_of_another_pool(self, name: str, pool: str) -> bool:
        """Return False: all runners are of the pools of their tasks."""
        assert name != pool
        return False

    async def send(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Send what is due, and return the number."""
        monkeypatch.setattr(store, "pick_due", self.pick_due)
        monkeypatch.setattr(work_request_details, "read", self.read)
        monkeypatch.setattr(work_request_details, "input_contents", self.input_contents)
        monkeypatch.setattr(agent_requests, "answers", self.answers)
        monkeypatch.setattr(work_requests, "transaction", _no_transaction)
        context = partial_context(
            engine="engine",
            work_publisher=self.broker,
            names=TopologyNames("test"),
            metrics=self.broker.metrics,
            known_runners=self,
            failpoint=self.failpoints.append,
            request_retry=RequestRetryPolicy(MINUTE, HOUR, HOUR, TIMEOUT),
            timeouts=Timeouts(HOUR, HOUR, HOUR, HOUR, HOUR, MINUTE),
        )
        return await send_due(context, NOON)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was sent."""
        return [json.loads(message.body) for group in self.broker.groups for message in group]


async def test_nothing_is_sent_if_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 500 requests are looked for, with their waits."""
    due = Due()
    assert await due.send(monkeypatch) == 0
    assert (due.asked, due.bodies, due.failpoints) == ([("due", NOON, 500, 60.0, 3600.0)], [], [])


async def test_what_is_due_is_sent_with_what_it_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs and answers are read if there are some; a request of a task that is gone only counts."""
    stop = row(STOP, "r1", None)
    due = Due(stop, replace(stop, task_id=UUID(int=9)))
    due.gone = {UUID(int=9)}
    assert await due.send(monkeypatch) == 2
    assert [body["type"] for body in due.bodies] == [STOP]
    assert due.failpoints == [Failpoint.REQUEST_SEND]
    assert len(due.asked) == 1
    given = replace(row("agent.input", "r1", None), input_id=UUID(int=5))
    answered, missing = (
        replace(row(work.AGENT_ANSWER, "r1", None), agent_request_id=UUID(int=number)) for number in (6, 404)
    )
    due = Due(given, answered, missing, stop)
    assert await due.send(monkeypatch) == 4
    assert [body.get("input", body.get("text")) for body in due.bodies] == ["input 5", "answer 6", None]
    assert [body["request_id"] for body in due.bodies] == [str(UUID(int=number)) for number in (1, 6, 1)]
    assert due.asked[1:] == [
        ("inputs", UUID(int=5)), ("answers", (UUID(int=2), UUID(int=6)), (UUID(int=2), UUID(int=404)))
    ]  # fmt: skip
    assert due.failpoints == [Failpoint.REQUEST_SEND, Failpoint.ANSWER_SEND, Failpoint.ANSWER_SENT]
