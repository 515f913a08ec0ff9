"""How the fleet is shown: pools with their runners, rates by the hour, and how long queues have not been empty."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from taskherd.api.fleet import handlers, queue_ages
from taskherd.api.fleet.queue_ages import QueueAges
from taskherd.broker.diagnostics import QueueInfo
from taskherd.domain.reports import format_rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.fleet.snapshots import QueueDepths
    from taskherd.store.read_pool import Row

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
    with pytest.raises(asyncio.CancelledError):
        await running
    since = ages.waiting_since(queue("reports", 3))
    assert since is not None
    assert before <= since <= datetime.now(UTC)
    assert [ages.waiting_since(queue(name, 3)) for name in ("commands", "dead")] == [None, None]
    assert asked == [["reports", "commands"]] * 4
