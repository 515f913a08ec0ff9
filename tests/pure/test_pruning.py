"""What maintenance deletes, from which age on and how much of it at a time; without a database and a broker."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain import builds
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.task import TaskState
from taskherd.domain.updates import TimerCheck
from taskherd.errors import Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import (
    command_log,
    erasure,
    parked_reports,
    partitions,
    rates,
    stats,
    task_actions,
    task_index,
    workers,
)
from taskherd.store.parked_reports import ParkedReport
from taskherd.store.stats import Counts
from taskherd.worker import maintenance as maintenance_module
from taskherd.worker.context import Retention
from taskherd.worker.maintenance import Maintenance
from taskherd.worker.rates import Rates
from taskherd.worker.timer_checks import TimerChecks
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

PARKED, COMMANDS, HISTORY, LOGS, DELETED, ACTIONS = (timedelta(days=days) for days in range(1, 7))
FULL = 500
"""How many rows one transaction deletes."""


class Tables:
    """Tables of which so many rows are left to delete, and the checks that erase tasks."""

    def __init__(self) -> None:
        self.left: dict[str, list[int]] = defaultdict(list)
        self.asked: list[tuple[Any, ...]] = []
        self.checks: list[dict[UUID, TimerCheck]] = []
        self.due: list[UUID] = []
        self.parked: list[ParkedReport] = []
        self.tasks: dict[UUID, TaskState] = {}
        self.refused: set[str] = set()
        self.letters: list[OutgoingMessage] = []
        self.metrics, self.rates = Metrics(), Rates()
        context = partial_context(
            engine="engine", metrics=self.metrics, now=lambda: NOON, names=TopologyNames("test"), rates=self.rates,
            retention=Retention(PARKED, 0, COMMANDS, HISTORY, LOGS, DELETED, ACTIONS), dead_publisher=self,
            directory_cache=_Cache(),
        )  # fmt: skip
        self.maintenance = Maintenance(context, cast("TimerChecks", self), lambda: 0)

    def deleting(self, name: str) -> Callable[..., Any]:
        """Return a function that deletes the next number of rows of a table, and notes what it was asked for."""

        async def delete(_: object, *arguments: Any, **named: Any) -> int:
            self.asked.append((name, *arguments, *named.items()))
            return self.left[name].pop(0) if self.left[name] else 0

        return delete

    async def due_tasks(self, _: object, before: datetime, limit: int) -> list[UUID]:
        """Return the tasks to erase."""
        self.asked.append(("due", before, limit))
        return self.due

    async def lock_expired(self, _: object, before: datetime, limit: int) -> list[ParkedReport]:
        """Return the reports that have expired."""
        self.asked.append(("lock_expired", before, limit))
        return self.parked

    async def states(self, _: object, ids: Collection[UUID]) -> dict[UUID, TaskState]:
        """Return the states of the tasks that exist."""
        return {each: self.tasks[each] for each in ids if each in self.tasks}

    async def count(self, _: object, template_pools: object) -> Counts:
        """Count rows."""
        assert template_pools == "pools"
        labels = ("active", "claude", "gpu")
        return Counts({labels: 5}, {("healthy", *labels[1:]): 4}, {labels[1:]: 3}, 2, 1, self.oldest)

    oldest: datetime | None = NOON - timedelta(seconds=30)

    async def run(self, checks: Mapping[UUID, TimerCheck]) -> int:
        """Erase all tasks but one."""
        self.checks.append(dict(checks))
        return len(checks) - 1

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Confirm the dead letters that are not refused."""
        self.letters += messages
        return [
            Unavailable("the queue is full") if message.body.decode() in self.refused else PublishOutcome.CONFIRMED
            for message in messages
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}", labels)


class _Cache:
    template_pools = "pools"


@asynccontextmanager
async def _no_transaction(engine: object) -> AsyncIterator[None]:
    assert engine == "engine"
    yield


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Return tables and the maintenance of them."""
    tables = Tables()
    for module, name in (
        (command_log, "prune"), (partitions, "prune_feed"), (partitions, "prune"), (partitions, "ensure_ahead"),
        (partitions, "limit_lock_waits"), (rates, "prune"), (task_actions, "prune"), (task_index, "prune"),
        (workers, "prune"), (erasure, "delete_contents"), (parked_reports, "delete"),
    ):  # fmt: skip
        label = f"{module.__name__.rpartition('.')[2]}.{name}"
        monkeypatch.setattr(module, name, tables.deleting(label))
    monkeypatch.setattr(erasure, "due", tables.due_tasks)
    monkeypatch.setattr(parked_reports, "lock_expired", tables.lock_expired)
    monkeypatch.setattr(maintenance_module, "load_states", tables.states)
    monkeypatch.setattr(stats, "counts", tables.count)
    monkeypatch.setattr(maintenance_module, "transaction", _no_transaction)
    return tables


async def test_each_table_is_pruned_by_an_age_of_its_own(tables: Tables) -> None:
    """Rates after eight days, workers after ten minutes, the others as the settings say."""
    await tables.maintenance.run_maintenance(NOON, None)
    lock_wait = ("partitions.limit_lock_waits", timedelta(milliseconds=200))
    assert tables.asked == [
        lock_wait,
        ("partitions.ensure_ahead", NOON),
        lock_wait,
        ("partitions.prune", ("events_before", NOON - HISTORY), ("logs_before", NOON - LOGS)),
        ("workers.prune", NOON - timedelta(minutes=10)),
        ("task_index.prune",),
        ("partitions.prune_feed", NOON - HISTORY, FULL),
        ("command_log.prune", NOON - COMMANDS, FULL),
        ("rates.prune", NOON - timedelta(days=8), FULL),
        ("task_actions.prune", NOON - ACTIONS, 20, FULL),
        ("due", NOON - DELETED, 100),
    ]


@pytest.mark.parametrize("table", ["partitions.prune_feed", "command_log.prune", "rates.prune", "task_actions.prune"])
@pytest.mark.parametrize(("deleted", "rounds"), [([FULL - 1, 9], 1), ([FULL, FULL, 0, 9], 3), ([FULL] * 999, 200)])
async def test_rows_are_deleted_part_by_part(tables: Tables, table: str, deleted: list[int], rounds: int) -> None:
    """Until few are left, and no more in one run than may be."""
    tables.left[table] = list(deleted)
    await tables.maintenance._prune(NOON)
    assert [asked[0] for asked in tables.asked].count(table) == rounds


async def test_the_contents_of_deleted_tasks_are_erased_first(tables: Tables) -> None:
    """Part by part; then the tasks themselves, and only those that are count."""
    tables.due = [UUID(int=number) for number in range(3)]
    tables.left["erasure.delete_contents"] = [FULL, FULL, FULL - 1, 9]
    assert await tables.maintenance.erase_once(NOON) == 2
    assert tables.asked[1:] == [("erasure.delete_contents", tables.due, FULL, NOON - COMMANDS)] * 3
    assert tables.checks == [dict.fromkeys(tables.due, TimerCheck(None, erase=True))]
    assert tables.value("tasks_erased_total") == 2


async def test_tasks_whose_contents_are_not_all_erased_wait(tables: Tables) -> None:
    """The next run goes on with them, and there is nothing to do without any."""
    tables.due = [UUID(int=1)]
    tables.left["erasure.delete_contents"] = [FULL] * 999
    assert await tables.maintenance.erase_once(NOON) == 0
    assert (len(tables.asked), tables.checks) == (1 + 200, [])
    tables.due = []
    tables.asked.clear()
    assert await tables.maintenance.erase_once(NOON) == 0
    assert tables.asked == [("due", NOON - DELETED, 100)]


def parked(*numbers: int) -> list[ParkedReport]:
    """Return parked reports of tasks with these numbers, which are their ids too."""
    return [ParkedReport(number, UUID(int=number), NOON, f"report {number}") for number in numbers]


async def test_reports_that_expire_are_dead_letters(tables: Tables) -> None:
    """Each with its task as routing key, and why it is one; then they are deleted and counted."""
    tables.parked = parked(1, 2)
    assert await tables.maintenance.expire_parked_once(NOON) == 2
    assert tables.asked == [("lock_expired", NOON - PARKED, 200), ("parked_reports.delete", [1, 2])]
    first, second = tables.letters
    assert (first.exchange, first.routing_key, first.body) == ("test.dead", str(UUID(int=1)), b"report 1")
    assert (second.routing_key, second.body) == (str(UUID(int=2)), b"report 2")
    headers = first.headers or {}
    assert headers["x-taskherd-reason"] == "parked_expired"
    assert headers["x-taskherd-detail"] == "The task was not created in time."
    assert headers["x-taskherd-time"] == (second.headers or {})["x-taskherd-time"]
    assert tables.value("dead_lettered_total", reason="parked_expired") == 2
    assert tables.rates._letters == {(NOON, "parked_expired"): 2}


async def test_what_a_create_has_rejected_says_why(tables: Tables) -> None:
    """If that can still be told: a build number far too high is the sender's mistake, however long it was parked."""
    heartbeat = {"type": "agent.heartbeat", "task_id": str(UUID(int=1)), "seq": 1}
    reports = [json.dumps({**heartbeat, "build_number": number}) for number in (1_002, 1_001)] + ["no report"]
    tables.parked = [ParkedReport(number, UUID(int=1), NOON, each) for number, each in enumerate(reports)]
    tables.tasks = {UUID(int=1): builds.initial_state(UUID(int=1), NOON)}
    assert await tables.maintenance.expire_parked_once(NOON) == 3
    found = [(each.headers or {}) for each in tables.letters]
    assert [each["x-taskherd-reason"] for each in found] == ["build_out_of_range", *["parked_expired"] * 2]
    assert [each["x-taskherd-detail"] for each in found] == [
        ReportOutcome.BUILD_OUT_OF_RANGE.detail, *["The create of the task rejected the report."] * 2
    ]  # fmt: skip
    assert tables.value("dead_lettered_total", reason="build_out_of_range") == 1
    assert tables.rates._letters == {(NOON, "build_out_of_range"): 1, (NOON, "parked_expired"): 2}


async def test_a_report_whose_dead_letter_is_not_confirmed_stays_parked(tables: Tables) -> None:
    """The others are deleted, and the failure is told."""
    tables.parked, tables.refused = parked(1, 2, 3), {"report 2"}
    with pytest.raises(Unavailable, match="full"):
        await tables.maintenance.expire_parked_once(NOON)
    assert tables.asked[1:] == [("parked_reports.delete", [1, 3])]
    assert tables.value("dead_lettered_total", reason="parked_expired") == 2


async def test_without_expired_reports_nothing_is_done(tables: Tables) -> None:
    """Neither published nor deleted."""
    assert await tables.maintenance.expire_parked_once(NOON) == 0
    assert (tables.letters, tables.asked) == ([], [("lock_expired", NOON - PARKED, 200)])


@pytest.mark.parametrize(("size", "count"), [(1024 * 1024, 4), (1024 * 1024 + 1, 3), (5 * 1024 * 1024, 1)])
async def test_reports_that_expire_together_have_four_mebibytes(tables: Tables, size: int, count: int) -> None:
    """Or are one that is larger."""
    tables.parked = [ParkedReport(number, UUID(int=number), NOON, "x" * size) for number in range(6)]
    assert await tables.maintenance.expire_parked_once(NOON) == count


async def test_what_is_counted_is_shown(tables: Tables) -> None:
    """Tasks, agents and what waits, and for how long."""
    await tables.maintenance._count(NOON)
    pair = {"template": "claude", "pool": "gpu"}
    assert tables.value("tasks", status="active", **pair) == 5
    assert tables.value("agents", health="healthy", **pair) == 4
    assert tables.value("agents_stalled", **pair) == 3
    names = ("parked_reports", "outbox_events", "outbox_oldest_seconds")
    assert [tables.value(name) for name in names] == [2, 1, 30]
    tables.oldest = None
    await tables.maintenance._count(NOON)
    assert tables.value("outbox_oldest_seconds") == 0
