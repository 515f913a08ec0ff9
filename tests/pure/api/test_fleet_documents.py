"""How the fleet is shown: pools with their runners, rates by the hour, and how long queues have not been empty."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from taskherd.api.context import RequestContext
from taskherd.api.fleet import handlers, queue_ages
from taskherd.api.fleet.queue_ages import QueueAges
from taskherd.api.http.authenticator import Caller
from taskherd.broker.diagnostics import QueueInfo
from taskherd.broker.topology import TopologyNames
from taskherd.domain.reports import format_rfc3339
from taskherd.store import fleet_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.fleet.snapshots import QueueDepths
    from taskherd.store.read_pool import Row

ALICE = UUID(int=1)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def rows(*each: dict[str, Any]) -> Sequence[Row]:
    """Return rows of the database."""
    return cast("Sequence[Row]", each)


def queue(name: str, messages: int, consumers: int = 1) -> QueueInfo:
    """Return what the broker says of a queue."""
    return QueueInfo(name=name, messages=messages, consumers=consumers)


def test_pools_have_their_runners_and_what_waits_for_them() -> None:
    """A pool's agents are those of its runners, and it waits since the first task of any of them."""
    runners = rows(
        {"name": "r1", "pool": "gpu", "listed": True, "hello_at": NOON},
        {"name": "r2", "pool": "gpu", "listed": False, "hello_at": None},
        {"name": "r3", "pool": "default", "listed": True, "hello_at": NOON - HOUR},
    )
    agents = rows(
        {"runner": "r1", "agents": 3, "heard_at": NOON - MINUTE},
        {"runner": "r3", "agents": 4, "heard_at": NOON + MINUTE},
        {"runner": "elsewhere", "agents": 9, "heard_at": NOON},
    )
    waiting = rows(
        {"pool": "gpu", "runner": None, "tasks": 2, "since": NOON - MINUTE},
        {"pool": "gpu", "runner": "r2", "tasks": 1, "since": NOON - 2 * MINUTE},
        {"pool": "gpu", "runner": "r1", "tasks": 5, "since": NOON},
    )
    queues: dict[str, dict[str, Any] | None] = {
        name: {"name": f"work.{name}"} for name in ("gpu", "default", "r1", "r3")
    } | {"r2": None}
    pools = rows({"pool": "gpu", "templates": ["claude"]}, {"pool": "default", "templates": []})
    shown = handlers._pools_json(pools, list(zip(runners, (7, 0, 1), strict=True)), agents, waiting, queues)
    common = {"listed": True, "lost": 0, "waiting_since": None}
    assert shown == [
        {
            "name": "gpu",
            "templates": ["claude"],
            "agents": 3,
            "waiting": 8,
            "waiting_since": format_rfc3339(NOON - 2 * MINUTE),
            "queue": {"name": "work.gpu"},
            "runners": [
                {
                    **common, "name": "r1", "agents": 3, "lost": 7, "last_heard_at": format_rfc3339(NOON),
                    "waiting_since": format_rfc3339(NOON), "queue": {"name": "work.r1"},
                },
                {
                    **common, "name": "r2", "listed": False, "agents": 0, "last_heard_at": None,
                    "waiting_since": format_rfc3339(NOON - 2 * MINUTE), "queue": None,
                },
            ],
        },
        {
            "name": "default",
            "templates": [],
            "agents": 4,
            "waiting": 0,
            "waiting_since": None,
            "queue": {"name": "work.default"},
            "runners": [
                {
                    **common, "name": "r3", "agents": 4, "lost": 1, "last_heard_at": format_rfc3339(NOON + MINUTE),
                    "queue": {"name": "work.r3"},
                },
            ],
        },
    ]  # fmt: skip


def test_every_hour_of_a_day_has_its_rates() -> None:
    """Also those in which nothing happened, the first hour first."""
    busy = rows({"hour": NOON + 2 * HOUR, "created": 3, "completed": 2, "failed": 1})
    shown = handlers._rates_json(busy, NOON)
    assert [each["hour"] for each in shown] == [format_rfc3339(NOON + number * HOUR) for number in range(24)]
    for number, each in enumerate(shown):
        expected = (3, 2, 1) if number == 2 else (0, 0, 0)
        assert (each["created"], each["completed"], each["failed"]) == expected


def test_how_much_is_in_a_queue_is_for_who_sees_all() -> None:
    """The others learn whether anybody consumes it; of one that does not exist there is nothing to say."""
    found = queue("work.gpu", 5, 2)
    assert handlers._queue_json(found, all_=True) == {"name": "work.gpu", "messages": 5, "consumers": 2}
    assert handlers._queue_json(found, all_=False) == {"name": "work.gpu", "messages": None, "consumers": 2}
    assert handlers._queue_json(None, all_=True) is None


def test_a_queue_waits_since_it_was_last_found_empty() -> None:
    """While the broker does not answer, or does not name it, nothing new is known; other queues are not watched."""
    ages = QueueAges(cast("QueueDepths", None), ["reports", "commands"])
    ages.note({"reports": queue("reports", 0), "other": queue("other", 0)}, NOON)
    ages.note(None, NOON + MINUTE)
    ages.note({"commands": queue("commands", 1)}, NOON + 2 * MINUTE)
    full = [queue(name, 1) for name in ("reports", "commands", "other")]
    assert [ages.waiting_since(each) for each in full] == [NOON, None, None]
    assert ages.waiting_since(queue("reports", 0)) is None
    shown = handlers._shared_queue_json(full[0], ages)
    assert shown == {"name": "reports", "messages": 1, "consumers": 1, "waiting_since": format_rfc3339(NOON)}
    ages.note({"reports": queue("reports", 2)}, NOON + 3 * MINUTE)
    ages.note({"reports": queue("reports", 0)}, NOON + 4 * MINUTE)
    assert ages.waiting_since(full[0]) == NOON + 4 * MINUTE


def test_a_worker_and_a_task_that_waits_are_shown_with_their_times() -> None:
    """Those that a worker has; a task says what it waits for."""
    (worker,) = rows({"worker_id": "w", "started_at": NOON, "seen_at": NOON + MINUTE, "drained_since": None})
    assert handlers._worker_json(worker) == {
        "id": "w", "started_at": format_rfc3339(NOON), "seen_at": format_rfc3339(NOON + MINUTE), "drained_since": None,
    }  # fmt: skip
    waiting = {
        "id": "t", "name": "n", "display_name": "N", "owner_name": "alice", "type": "workspace.start", "pool": "gpu",
        "runner": None, "attempt": 2, "deleted": False,
    }  # fmt: skip
    (row,) = rows({**waiting, "created_at": NOON, "other": 1})
    assert handlers._waiting_json(row) == {**waiting, "since": format_rfc3339(NOON)}


async def test_queues_are_looked_at_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the last look that found a queue empty counts, also if the broker does not answer in between."""
    answers: list[dict[str, QueueInfo] | None] = [{"reports": queue("reports", 0)}, None, {"dead": queue("dead", 0)}]
    asked: list[Sequence[str]] = []
    ended = asyncio.Event()

    class Depths:
        async def read(self, queues: Sequence[str]) -> dict[str, QueueInfo] | None:
            asked.append(queues)
            if not answers:
                ended.set()
                await asyncio.Event().wait()
            return answers.pop(0)

    monkeypatch.setattr(queue_ages, "INTERVAL", 0)
    ages = QueueAges(cast("QueueDepths", Depths()), ["reports", "commands"])
    before = datetime.now(UTC)
    running = asyncio.create_task(ages.run())
    async with asyncio.timeout(30):
        await ended.wait()
    running.cancel()
    since = ages.waiting_since(queue("reports", 3))
    assert since is not None
    assert before <= since <= datetime.now(UTC)
    assert [ages.waiting_since(queue(name, 3)) for name in ("commands", "dead")] == [None, None]
    assert asked == [["reports", "commands"]] * 4


class FleetStore:
    """What the store and the broker say of a fleet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sees_all: bool) -> None:
        self.sees_all = sees_all
        self.wanted: list[str] = []
        self.depths: dict[str, QueueInfo] | None = {}
        self.names = TopologyNames("p")
        self.runners: list[dict[str, Any]] = []
        self.since: list[datetime] = []
        self.ages = QueueAges(cast("QueueDepths", self), [self.names.reports, self.names.commands])
        found: dict[str, Any] = {
            "pools": [{"pool": "gpu", "templates": []}],
            "agents": [],
            "waiting": [],
            "waiting_by_target": [],
        }
        for name, answer in found.items():
            monkeypatch.setattr(fleet_queries, name, self._seeing(answer))
        monkeypatch.setattr(fleet_queries, "sees_all", self._sees_all)
        monkeypatch.setattr(fleet_queries, "unwell", self._unwell)
        monkeypatch.setattr(fleet_queries, "rates", self._rates)
        monkeypatch.setattr(fleet_queries, "runners", self._runners)
        monkeypatch.setattr(fleet_queries, "workers", self._workers)
        monkeypatch.setattr(fleet_queries, "dead_letters", self._dead_letters)

    async def snapshot(self) -> dict[str, Any]:
        """Return what is shown."""
        api = SimpleNamespace(
            reads=SimpleNamespace(reader=lambda *_: "reader"),
            queue_depths=self,
            queue_ages=self.ages,
            dead_letters=self,
        )
        request = RequestContext(cast("Any", api), "GET", {}, {}, {})
        request.set_caller(Caller(ALICE, "alice", "token"))
        return await handlers._snapshot(request)

    async def read(self, queues: Sequence[str]) -> dict[str, QueueInfo] | None:
        """Return the depths of queues."""
        self.wanted = list(queues)
        return self.depths

    async def oldest(self) -> datetime:
        """Return the time of the oldest dead letter."""
        return NOON

    def _seeing(self, answer: Any) -> Any:
        async def query(reader: object, caller: UUID, *, all_: bool) -> Any:
            assert (reader, caller, all_) == ("reader", ALICE, self.sees_all)
            return answer

        return query

    async def _sees_all(self, reader: object, caller: UUID) -> bool:
        assert (reader, caller) == ("reader", ALICE)
        return self.sees_all

    async def _unwell(self, reader: object, caller: UUID, health: str, prefix: str) -> dict[str, int]:
        assert (reader, caller, health, prefix) == ("reader", ALICE, "lost", "runner:")
        return {"runner:r1": 4}

    async def _rates(self, reader: object, caller: UUID, since: datetime, *, all_: bool) -> Sequence[Any]:
        assert (reader, caller, all_) == ("reader", ALICE, self.sees_all)
        self.since.append(since)
        return []

    async def _runners(self, reader: object, pools: Sequence[str]) -> Sequence[Any]:
        assert (reader, pools) == ("reader", ["gpu"])
        return self.runners

    async def _workers(self, reader: object) -> Sequence[Any]:
        assert reader == "reader"
        return [{"worker_id": "w1", "started_at": NOON, "seen_at": NOON, "drained_since": None}]

    async def _dead_letters(self, reader: object, since: datetime) -> Sequence[Any]:
        assert (reader, since) == ("reader", self.since[-1])
        return [{"reason": "fault", "letters": 3}, {"reason": "of tomorrow", "letters": 1}]


def runner(name: str) -> dict[str, Any]:
    """Return the row of a runner."""
    return {"name": name, "pool": "gpu", "listed": True, "hello_at": None}


@pytest.mark.parametrize("sees_all", [True, False])
async def test_what_a_caller_may_know_of_the_fleet(monkeypatch: pytest.MonkeyPatch, *, sees_all: bool) -> None:
    """Shared queues, workers and dead letters are for who sees all; others do not even have them read."""
    store = FleetStore(monkeypatch, sees_all=sees_all)
    store.runners = [runner("r1")]
    store.depths = {
        "p.dead": queue("p.dead", 2, 0),
        "p.reports": queue("p.reports", 0, 3),
        "p.work.gpu": queue("p.work.gpu", 5, 1),
    }
    before = datetime.now(UTC)
    shown = await store.snapshot()
    assert store.wanted == [*(["p.reports", "p.commands", "p.dead"] if sees_all else []), "p.work.gpu", "p.work.r1"]
    assert (shown["sees_all"], shown["broker"], shown["waiting"]) == (sees_all, True, [])
    assert format_rfc3339(before) <= shown["now"] <= format_rfc3339(datetime.now(UTC))
    (pool,) = shown["pools"]
    assert pool["queue"] == {"name": "p.work.gpu", "messages": 5 if sees_all else None, "consumers": 1}
    assert (pool["runners"][0]["lost"], pool["runners"][0]["queue"]) == (4, None)
    assert len(shown["rates"]) == 24
    (since,) = store.since
    assert (since.minute, since.second, since.microsecond) == (0, 0, 0)
    assert timedelta(hours=23) <= datetime.now(UTC) - since <= timedelta(hours=24, minutes=1)
    noon = format_rfc3339(NOON)
    if sees_all:
        assert shown["workers"] == [{"id": "w1", "started_at": noon, "seen_at": noon, "drained_since": None}]
        assert shown["queues"] == [{"name": "p.reports", "messages": 0, "consumers": 3, "waiting_since": None}]
        assert (shown["dead_letters"]["messages"], shown["dead_letters"]["oldest_at"]) == (2, noon)
        assert [(each["reason"], each["last_day"]) for each in shown["dead_letters"]["reasons"]] == [
            ("fault", 3), ("of tomorrow", 1),
        ]  # fmt: skip
        assert [each["meaning"] is None for each in shown["dead_letters"]["reasons"]] == [False, True]
        assert store.ages.waiting_since(queue("p.reports", 1)) is not None
    else:
        assert (shown["workers"], shown["queues"], shown["dead_letters"]) == (None, None, None)


@pytest.mark.parametrize("depths", [None, {"p.dead": QueueInfo(name="p.dead", messages=0, consumers=0)}])
async def test_a_fleet_without_dead_letters_or_a_broker(
    monkeypatch: pytest.MonkeyPatch, depths: dict[str, QueueInfo] | None
) -> None:
    """The oldest is looked for only if there are any."""
    store = FleetStore(monkeypatch, sees_all=True)
    store.depths = depths
    shown = await store.snapshot()
    assert (shown["broker"], shown["queues"]) == (depths is not None, [])
    assert (shown["dead_letters"]["messages"], shown["dead_letters"]["oldest_at"]) == (
        None if depths is None else 0,
        None,
    )


async def test_the_broker_is_asked_about_a_limited_number_of_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the installation and of pools first."""
    store = FleetStore(monkeypatch, sees_all=True)
    store.runners = [runner(f"r{number}") for number in range(200)]
    await store.snapshot()
    assert len(store.wanted) == 150
    assert store.wanted[:5] == ["p.reports", "p.commands", "p.dead", "p.work.gpu", "p.work.r0"]
