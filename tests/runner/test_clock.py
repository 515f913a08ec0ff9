"""A runner whose machine's clock is set while it runs, as after a suspend or by NTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.chaos.clocks import fake_clocks
from tests.harness.runner import RunnerHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
BEHIND = timedelta(hours=-1)


async def test_a_runner_whose_clock_is_set_right_has_the_last_word_on_its_agents(
    harness: RunnerHarness, announce: Callable[[str], None], tmp_path: Path
) -> None:
    """What the API was told meanwhile has the true time; the runner's report of the end comes after it."""
    clocks = fake_clocks(tmp_path, announce)
    clocks.set(BEHIND)
    environment = (f"{name}={value}" for name, value in clocks.environment.items())
    await harness.start(prefix=("env", *environment))
    task_id = await harness.task("say:up", "await:go", "say:well done")
    await harness.until_output(task_id, "up")
    told = {
        "type": "app.status",
        "task_id": str(task_id),
        "build_number": 1,
        "state": "idle",
        "message": "asked",
        "uri": "",
    }
    await harness.worker.report(told)
    await harness.until_state(task_id, "idle", "asked")
    clocks.set(timedelta(0))
    before = datetime.now(UTC)
    (harness.work(task_id) / "go").touch()
    await harness.until_state(task_id, "complete", "well done")
    query = "SELECT time FROM task_logs WHERE task_id = $1 AND content = 'well done'"
    assert await harness.worker.database.fetchval(query, task_id) >= before
