"""How fast the index of the tasks follows them."""

from __future__ import annotations

import pytest

from taskherd.worker import sweeper
from tests.worker.conftest import StartWorker

PENDING = "SELECT count(*) FROM task_index_changes"


async def test_a_sweep_indexes_all_changes_for_which_it_has_time(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changes than one transaction takes are applied in the same sweep, unless its time has passed."""
    monkeypatch.setattr(sweeper, "MAX_INDEXED", 1)
    async with start_worker(sweep_every=60) as harness:
        for _ in range(4):
            await harness.create()
        await harness.until_row(PENDING, is_=4)
        monkeypatch.setattr(sweeper, "INDEX_TIME", 0.0)
        assert await harness.worker._sweeper.update_index() == 1
        monkeypatch.setattr(sweeper, "INDEX_TIME", 3600.0)
        assert await harness.worker._sweeper.update_index() == 3
        await harness.until_row(PENDING, is_=0)
