"""What a batch loads and saves of usage and of agents' requests; without a database."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.commands import Answer, Pause, Send
from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import AgentUsage, JobStatus
from taskherd.domain.request_values import RequestState
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.usage import TaskUsage, UsageAmounts, UsageKey, UsageLedger
from taskherd.domain.value import replace
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.metrics import Metrics
from taskherd.store import agent_requests as requests_store
from taskherd.store import usage as usage_store
from taskherd.store.agent_requests import AgentRequestRow, LoadedRequest
from taskherd.store.usage import Account, GrownUsage
from taskherd.worker.agent_requests import load_requests, save_requests
from taskherd.worker.usage import count_usage, load_ledgers, save_usage
from tests.harness.agent_requests import IDS, agent_request, approval
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded

CONNECTION: Any = "connection"
UNKNOWN, ACTOR = UUID(int=99), UUID(int=14)
RUNNING = folded(unchanged_core(), [build(3, job=JobStatus.SUCCEEDED)])
ONE, TWO, SUM = (UsageAmounts(tokens, {}) for tokens in ((1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)))


def update(state: Any = RUNNING, **fields: Any) -> TaskUpdate:
    """Return the update of a task with this state."""
    task = make_task(TASK, state=state)
    return TaskUpdate(task, task, **fields)


def usage(number: int | None, task_id: UUID = TASK) -> AgentUsage:
    """Return a report of usage about this build."""
    return AgentUsage(task_id=task_id, build_number=number, seq=1, input_tokens=1)


class Usage:
    """The usage that is stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: dict[UsageKey, UsageAmounts] = {}
        self.asked: list[Mapping[UUID, int]] = []
        self.saved: list[tuple[Any, Any]] = []
        monkeypatch.setattr(usage_store, "load", self.load)
        monkeypatch.setattr(usage_store, "save", self.save)

    async def load(self, connection: object, lowest: Mapping[UUID, int]) -> dict[UUID, dict[UsageKey, UsageAmounts]]:
        """Return what is known."""
        assert connection is CONNECTION
        self.asked.append(lowest)
        return {task_id: dict(self.known) for task_id in lowest}

    async def save(self, connection: object, grown: Any, booked: Any) -> None:
        """Note what is saved."""
        assert connection is CONNECTION
        self.saved.append((list(grown), dict(booked)))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Usage:
    """Return the usage that is stored."""
    return Usage(monkeypatch)


WITH_USAGE = replace(RUNNING, usage=TaskUsage(TWO))


@pytest.mark.parametrize(
    ("numbers", "state", "lowest"),
    [
        ([], WITH_USAGE, None),
        ([5], WITH_USAGE, 5),
        ([None], WITH_USAGE, 3),
        ([5, 4, 6], WITH_USAGE, 4),
        ([None, 5], WITH_USAGE, 3),
        ([None, 2], WITH_USAGE, 2),
        ([5], RUNNING, 0),
    ],
)
async def test_usage_is_read_from_the_first_build_that_a_batch_is_about(
    stored: Usage, numbers: list[int | None], state: Any, lowest: int | None
) -> None:
    """All of it if the total is not known; nothing of a task that does not exist, or that has no report."""
    updates = {TASK: update(state)}
    await load_ledgers(CONNECTION, updates, [*map(usage, numbers), usage(1, UNKNOWN)])
    assert stored.asked == ([] if lowest is None else [{TASK: lowest}])
    assert (updates[TASK].usage is None) is (lowest is None)
    assert updates[TASK].task is updates[TASK].before


async def test_a_total_that_is_not_known_is_restored(stored: Usage) -> None:
    """From the rows of all builds; one that is known is left as it is."""
    stored.known = {UsageKey(1, "a"): ONE, UsageKey(2, "b"): TWO}
    restored, kept = update(), update(WITH_USAGE)
    await load_ledgers(CONNECTION, {TASK: restored}, [usage(2)])
    assert restored.existing_task.state.usage == TaskUsage(SUM)
    assert restored.usage == UsageLedger(stored.known)
    await load_ledgers(CONNECTION, {TASK: kept}, [usage(2)])
    assert kept.existing_task.state.usage == TaskUsage(TWO)


async def test_what_is_new_is_saved_and_booked(stored: Usage) -> None:
    """Booked by model, on the day in UTC; what has no new usage is not saved."""
    known = {UsageKey(1, "a"): SUM, UsageKey(2, "a"): TWO, UsageKey(2, "b"): TWO, UsageKey(3, "b"): TWO}
    new = {UsageKey(1, "a"): ONE, UsageKey(2, "a"): TWO, UsageKey(2, "b"): ONE}
    updates = {TASK: update(usage=UsageLedger(known, new)), UNKNOWN: update(), ACTOR: update(usage=UsageLedger(known))}
    at = datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    await save_usage(CONNECTION, updates, at)
    ((grown, booked),) = stored.saved
    assert grown == [GrownUsage(TASK, key, known[key], growth) for key, growth in new.items()]
    day = at.astimezone(UTC).date()
    assert day.day == 28
    owner = (day, UUID(int=2), UUID(int=1), UUID(int=3))
    assert booked == {Account(*owner, "a"): SUM, Account(*owner, "b"): ONE}
    await save_usage(CONNECTION, {TASK: update(usage=UsageLedger(known))}, at)
    assert len(stored.saved) == 1


def test_usage_is_counted_by_type_and_currency() -> None:
    """With its template and pool, or with all others that metrics do not name."""
    pool, metrics = TemplatePool("claude", "gpu"), Metrics()
    cache = SimpleNamespace(metric_label=lambda pair: pair if pair == pool else OTHER)
    amounts = UsageAmounts((1, 2, 0, 4), {"EUR": Decimal("0.5"), "USD": Decimal(2)})
    count_usage(
        partial_context(metrics=metrics, directory_cache=cache), [(pool, amounts), (TemplatePool("x", "y"), ONE)]
    )
    value = metrics.registry.get_sample_value
    labels = {"template": "claude", "pool": "gpu"}
    tokens = [value("taskherd_usage_tokens_total", {"type": each, **labels}) for each in TYPES]
    assert tokens == [1, 2, None, 4]
    costs = [value("taskherd_usage_cost_total", {"currency": each, **labels}) for each in ("EUR", "USD")]
    assert costs == [0.5, 2]
    assert value("taskherd_usage_tokens_total", {"type": "input", "template": "other", "pool": "other"}) == 1


TYPES = ("input", "output", "cache_read", "cache_write")


class Requests:
    """The requests of agents that are stored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[LoadedRequest] = []
        self.asked: list[set[tuple[UUID, UUID]]] = []
        self.counted: list[set[UUID]] = []
        self.saved: list[Any] = []
        for name in ("load", "numbers", "save", "show"):
            monkeypatch.setattr(requests_store, name, getattr(self, name))

    async def load(self, connection: object, keys: Collection[tuple[UUID, UUID]]) -> list[LoadedRequest]:
        """Return the requests."""
        assert connection is CONNECTION
        self.asked.append(set(keys))
        return self.rows

    async def numbers(self, connection: object, tasks: Collection[UUID]) -> list[tuple[UUID, int, int]]:
        """Return how many requests the builds have."""
        assert connection is CONNECTION
        self.counted.append(set(tasks))
        return [(task_id, 3, 7) for task_id in tasks]

    async def save(self, connection: object, rows: Sequence[AgentRequestRow]) -> None:
        """Note what is saved."""
        assert connection is CONNECTION
        self.saved.append(rows)

    async def show(self, connection: object, shown: Mapping[tuple[UUID, UUID], RequestState]) -> None:
        """Note what shows differently."""
        assert connection is CONNECTION
        self.saved.append(shown)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Return the requests that are stored."""
    return Requests(monkeypatch)


QUESTION, APPROVAL = agent_request(IDS[0], 3), approval(IDS[1], 3)
LATER, LATEST = NOON + timedelta(minutes=1), NOON + timedelta(minutes=2)
ROW = AgentRequestRow(
    TASK, IDS[0], UUID(int=2), UUID(int=1), 3, RequestState.OPEN, canonical_json(QUESTION), NOON, LATER
)
ANSWERED = ROW._replace(
    shown=RequestState.ANSWERED, answer_option_id="yes", answer_text="core", answered_by=ACTOR, answered_at=LATER,
    answer_command_id=UUID(int=15), delivered_at=LATEST,
)  # fmt: skip


def command(kind: Any, **fields: Any) -> Any:
    """Return a command for the task."""
    return kind(command_id=UUID(int=16), task_id=TASK, actor_id=ACTOR, **fields)


async def test_requests_are_read_that_a_batch_is_about(asked: Requests) -> None:
    """Reported or answered ones of tasks that exist; other messages are about none."""
    updates = {TASK: update()}
    stranger = agent_request(IDS[3], 3, task_id=UNKNOWN)
    await load_requests(CONNECTION, updates, [usage(1)], [command(Pause), command(Send, input="Go on")])
    await load_requests(CONNECTION, updates, [stranger], [])
    assert (asked.asked, updates[TASK].requests) == ([], None)
    answer = command(Answer, request_id=IDS[2])
    await load_requests(CONNECTION, updates, [QUESTION, APPROVAL, stranger], [answer])
    assert asked.asked == [{(TASK, IDS[0]), (TASK, IDS[1]), (TASK, IDS[2])}]
    assert asked.counted == []


async def test_a_text_may_be_the_answer_to_a_question(asked: Requests) -> None:
    """So the question is read with it."""
    updates = {TASK: update()}
    asked.rows = [LoadedRequest(ROW, "")]
    await load_requests(CONNECTION, updates, [QUESTION], [])
    asking = updates[TASK].existing_task
    assert [*asking.state.agent_requests] == [IDS[0]]
    updates = {TASK: TaskUpdate(asking, asking)}
    await load_requests(CONNECTION, updates, [], [command(Send, input="core")])
    assert asked.asked[-1] == {(TASK, IDS[0])}


async def test_what_is_read_of_a_request_is_written_again_unchanged(asked: Requests) -> None:
    """Its report, its times and its answer, with the name of who gave it."""
    for row, name in ((ROW, ""), (ANSWERED, "alice")):
        updates = {TASK: update()}
        asked.rows = [LoadedRequest(row, name)]
        asked.saved.clear()
        await load_requests(CONNECTION, updates, [QUESTION], [])
        ledger = updates[TASK].requests
        assert ledger is not None
        record = ledger.known[IDS[0]]
        assert (record.report, record.since, record.received_at) == (QUESTION, NOON, LATER)
        assert (record.answer is None) is (row is ROW)
        assert record.answer is None or record.answer.actor_name == "alice"
        ledger.changed.add(IDS[0])
        await save_requests(partial_context(failpoint=lambda _: None), CONNECTION, updates)
        assert asked.saved == [[row]]


async def test_the_requests_of_a_build_are_counted_for_a_new_one_that_pulls(asked: Requests) -> None:
    """Not for one that is known already, nor for those whose answers are sent."""
    pulling = agent_request(IDS[0], 3, pull=True)
    updates = {TASK: update()}
    await load_requests(CONNECTION, updates, [QUESTION, agent_request(IDS[2], 3, task_id=UNKNOWN, pull=True)], [])
    assert asked.counted == []
    await load_requests(CONNECTION, updates, [usage(3), pulling], [])
    ledger = updates[TASK].requests
    assert ledger is not None
    assert (asked.counted, ledger.numbers[3]) == ([{TASK}], 7)
    asked.rows = [LoadedRequest(ROW._replace(report=canonical_json(pulling)), "")]
    updates = {TASK: update()}
    await load_requests(CONNECTION, updates, [pulling], [])
    assert asked.counted == [{TASK}]


async def test_a_row_that_is_no_request_is_an_error(asked: Requests) -> None:
    """It is nothing that a batch could go on with."""
    asked.rows = [LoadedRequest(ROW._replace(report=canonical_json(usage(3))), "")]
    with pytest.raises(TypeError, match=r"agent\.usage"):
        await load_requests(CONNECTION, {TASK: update()}, [QUESTION], [])


@pytest.mark.parametrize("shown", [{}, {IDS[1]: RequestState.WITHDRAWN}])
@pytest.mark.parametrize("changes", [False, True])
async def test_only_requests_that_changed_are_written(
    asked: Requests, shown: dict[UUID, RequestState], *, changes: bool
) -> None:
    """Or how others show; with neither nothing is written, and no failpoint reached."""
    updates = {TASK: update(shown_requests=shown), UNKNOWN: update()}
    asked.rows = [LoadedRequest(ROW, "")]
    await load_requests(CONNECTION, updates, [QUESTION], [])
    ledger = updates[TASK].requests
    assert ledger is not None
    ledger.changed.update([IDS[0]] if changes else [])
    reached: list[Failpoint] = []
    await save_requests(partial_context(failpoint=reached.append), CONNECTION, updates)
    expected: list[Any] = [[ROW]] if changes else []
    expected += [{(TASK, each): state for each, state in shown.items()}] if shown else []
    assert asked.saved == expected
    assert reached == ([Failpoint.AGENT_REQUESTS_SAVED] if expected else [])
