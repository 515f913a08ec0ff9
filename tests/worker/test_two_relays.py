"""Events of tasks whose reports two workers take in turns."""

from __future__ import annotations

from datetime import timedelta

import pytest

from taskherd.worker import relay
from tests.harness.worker import WorkerHarness, make_report, running_worker

REPORTS = 40
LAST = "SELECT document->'current_state'->>'message' FROM tasks WHERE id = $1"


async def test_no_event_stays_behind_that_waits_for_one_of_another_worker(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is published once, and gets its position in the feed as soon as the one before it has left the outbox."""
    monkeypatch.setattr(relay, "STALE_AFTER", timedelta(hours=1))  # none is published from the outbox
    harness = external
    async with running_worker(harness) as one, running_worker(harness) as two:
        tasks = [await harness.create() for _ in range(3)]
        for number in range(REPORTS):
            state = "working" if number % 2 else "idle"
            for task_id in tasks:
                words = f"{task_id} {number}"
                await harness.report(make_report("app.status", task_id, seq=number + 1, state=state, message=words))
        for task_id in tasks:
            await harness.until_row(LAST, task_id, is_=f"{task_id} {REPORTS - 1}")
        await harness.until_row("SELECT count(*) FROM outbox", is_=0)
        events = await harness.database.fetchval("SELECT count(*) FROM task_events")
        published = [worker.metrics.events_published._value.get() for worker in (one, two)]
    assert all(published), "only one of the workers has published"
    assert sum(published) == events
    assert await harness.database.fetchval("SELECT count(*) FROM task_feed") == events
