"""How many requests are in progress, what is kept for whoever asks again, and who follows a log."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.actions.executor import ActionExecutor, ActionOutcome
from taskherd.api.fleet import snapshots
from taskherd.api.fleet.snapshots import FleetSnapshots
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.api.log_revisions import FollowedLog, InboxSummary, LogRevisions
from taskherd.api.tasks.totals import totals_json
from taskherd.store import task_queries
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_actions import TaskResult

ALICE, BOB, CAROL = (UUID(int=number) for number in range(3))


def test_requests_in_progress_are_limited_by_user_and_in_all() -> None:
    """The next one is a 429 that says why; one that ended, in whatever way, makes room, and nothing stays of it."""
    limit = ConcurrencyLimit(3, 2, "Too many batches are in progress.")

    def fail() -> None:
        with limit.enter(ALICE):
            assert [limit.is_full(each) for each in (ALICE, BOB, CAROL)] == [True, True, True]
            raise KeyError

    with limit.enter(ALICE), limit.enter(BOB):
        assert not limit.is_full(ALICE)
        with pytest.raises(KeyError):
            fail()
        assert not limit.is_full(ALICE)
        with limit.enter(BOB):
            assert [limit.is_full(each) for each in (ALICE, BOB)] == [True, True]
            with pytest.raises(HTTPError) as raised:
                limit.enter(CAROL).__enter__()
    response = raised.value.response
    assert (response.status, orjson.loads(response.body)["message"]) == (429, "Too many batches are in progress.")
    assert response.headers["Retry-After"] == "1"
    assert not vars(limit)["_in_progress"]


def test_a_users_own_limit_leaves_others_alone() -> None:
    """While one user has as many as one may, another has none yet."""
    limit = ConcurrencyLimit(10, 1, "Please wait.")
    with limit.enter(ALICE):
        assert [limit.is_full(each) for each in (ALICE, BOB)] == [True, False]


async def test_a_snapshot_is_used_again_until_it_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end of its age; each user has one, and of too many users the one whose is oldest loses it."""
    monkeypatch.setattr(snapshots, "MAX_SNAPSHOTS", 2)
    clock, made = [100.0], []
    kept = FleetSnapshots(lambda: clock[0])

    async def get(user: UUID) -> int:
        async def make() -> dict[str, int]:
            made.append(user)
            return {"number": len(made)}

        return int((await kept.get(user, make))["number"])

    assert (await get(ALICE), await get(BOB)) == (1, 2)
    clock[0] += 2
    assert (await get(ALICE), await get(BOB)) == (1, 2)
    clock[0] += 0.125
    assert await get(ALICE) == 3  # now the newest
    assert await get(CAROL) == 4
    assert await get(ALICE) == 3
    assert await get(BOB) == 5
    assert made == [ALICE, BOB, ALICE, CAROL, BOB]


async def test_a_follower_of_a_log_waits_for_a_newer_revision_an_input_or_the_end() -> None:
    """What it knows already does not wake it; what came before it asked need not be waited for."""
    followed = FollowedLog()
    inbox = InboxSummary(1, 0)
    assert not await followed.wait_after(0, None, 0.001)
    followed.update(2, inbox, ended=False)
    assert not await followed.wait_after(2, inbox, 0.001)
    assert await followed.wait_after(1, inbox, 60)
    for known in (None, InboxSummary(0, 0), InboxSummary(1, 1)):
        assert await followed.wait_after(2, known, 60)
    waiting = [asyncio.create_task(followed.wait_after(2, inbox, 60)) for _ in range(2)]
    await asyncio.sleep(0)
    followed.update(2, inbox, ended=False)
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    followed.update(3, inbox, ended=False)
    async with asyncio.timeout(30):
        assert await asyncio.gather(*waiting) == [True, True]
    followed.update(3, inbox, ended=True)
    assert await followed.wait_after(3, inbox, 60)


async def test_a_log_is_followed_while_anyone_follows_it() -> None:
    """Followers of one task share it; once the process stops, all are woken, and new ones too."""
    reader: ReadPool = object()  # type: ignore[assignment]
    logs = LogRevisions(reader)
    with logs.follow(ALICE) as first:
        with logs.follow(ALICE) as second, logs.follow(BOB):
            assert first is second
        assert list(vars(logs)["_logs"]) == [ALICE]
        assert not first.ended
        logs.stop()
        assert await first.wait_after(first.revision, first.inbox, 60)
        with logs.follow(CAROL) as late:
            assert late.ended
    assert not vars(logs)["_logs"]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(None, "unconfirmed"), (202, "succeeded"), (204, "succeeded"), (300, "refused"), (404, "refused")],
)
def test_what_became_of_a_task_of_an_action(status: int | None, outcome: str) -> None:
    """Each is counted under one name, which alerts read."""
    assert ActionOutcome.of(None if status is None else TaskResult(0, status)) == outcome


@pytest.mark.parametrize(("rate", "size"), [(0.1, 1), (1, 1), (4, 2), (50, 25), (198, 99), (202, 100), (1_000, 100)])
def test_a_step_has_half_a_seconds_tasks(rate: float, size: int) -> None:
    """At least one, and never more than one action may have in flight; its lease is longer than a command may take."""
    executor = ActionExecutor(rate, 10)
    assert vars(executor)["_step_size"] == size
    assert vars(executor)["_lease"] == timedelta(seconds=10 + 15)


def test_totals_say_which_tasks_need_a_person() -> None:
    """A task is idle or working while its agent is well; it may need a person for more than one reason."""
    names = ("status", "state", "health", "waiting", "stalled", "tasks")
    rows = [
        dict(zip(names, values, strict=True))
        for values in (
            ("active", "working", "healthy", False, False, 1),
            ("active", "working", "lost", False, False, 2),
            ("paused", "working", "healthy", False, False, 4),
            ("active", "idle", "healthy", False, False, 8),
            ("active", "idle", "healthy", True, False, 16),
            ("active", "idle", "none", False, True, 32),
            ("error", "failed", "none", False, False, 64),
            ("active", "failed", "healthy", False, True, 128),
            ("error", "none", "none", False, False, 256),
        )
    ]
    totals = totals_json(rows)
    assert (totals["total"], totals["working"]) == (511, 1)
    assert totals["attention"] == {
        "waiting": 16, "idle": 8, "failed": 64 + 128 + 256, "lost": 2, "stalled": 32 + 128,
    }  # fmt: skip
    assert {status: count for status, count in totals["by_status"].items() if count} == {
        "active": 1 + 2 + 8 + 16 + 32 + 128, "paused": 4, "error": 64 + 256,
    }  # fmt: skip
    assert {state: count for state, count in totals["by_state"].items() if count} == {
        "working": 7, "idle": 56, "failed": 192, "none": 256,
    }  # fmt: skip
    assert {health: count for health, count in totals["by_health"].items() if count} == {
        "healthy": 1 + 4 + 8 + 16 + 128, "lost": 2, "none": 32 + 64 + 256,
    }  # fmt: skip
    assert totals_json([])["by_state"].keys() >= {"working", "idle", "none", "complete"}
    assert "failure" not in totals_json([])["by_state"]  # is shown as failed


async def test_who_follows_a_log_is_told_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of followed logs only; a log that nobody follows any more is not read. The end of the process is one for all."""
    asked: list[list[UUID]] = []
    rows = [
        {"id": ALICE, "deleted": False, "revision": 3, "last_input": 1, "waiting_inputs": 2},
        {"id": BOB, "deleted": True, "revision": 0, "last_input": 0, "waiting_inputs": 0},
        {"id": CAROL, "deleted": False, "revision": 9, "last_input": 0, "waiting_inputs": 0},
    ]

    async def log_revisions(_reader: ReadPool, task_ids: list[UUID]) -> list[dict[str, object]]:
        asked.append(task_ids)
        return rows

    monkeypatch.setattr(task_queries, "log_revisions", log_revisions)
    revisions = LogRevisions(cast("ReadPool", None))
    with revisions.follow(ALICE) as one, revisions.follow(ALICE) as same, revisions.follow(BOB) as deleted:
        assert one is same
        await revisions.read_once()
        assert asked == [[ALICE, BOB]]
        assert (one.revision, one.inbox, one.ended) == (3, InboxSummary(1, 2), False)
        assert (deleted.revision, deleted.inbox, deleted.ended) == (0, InboxSummary(0, 0), True)
        waiting = asyncio.create_task(one.wait_after(3, InboxSummary(1, 2), 30))
        await asyncio.sleep(0)
        await revisions.read_once()
        await asyncio.sleep(0)
        assert not waiting.done()
        revisions.stop()
        assert await waiting
        assert (one.revision, one.inbox, one.ended) == (3, InboxSummary(1, 2), True)
        with revisions.follow(CAROL) as late:
            assert late.ended
    await revisions.read_once()
    assert asked[-1] == []
