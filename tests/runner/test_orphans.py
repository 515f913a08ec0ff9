from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import NoReturn

import pytest

from taskherd.runner.app import RunnerProcess
from taskherd.settings import Settings
from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_files_and_agent_of_an_unknown_task_are_removed(harness: RunnerHarness) -> None:
    """A task that was deleted while the runner was down leaves neither process nor directory behind."""
    first = await harness.start()
    kept = await harness.task("say:up", "sleep")
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
    await harness.until_output(kept, "up")
    agent, other = harness.agent(task_id)["agent"], harness.agent(kept)["agent"]
    await first.kill()
    unknown = uuid.uuid4()
    (harness.root / str(task_id)).rename(harness.root / str(unknown))
    journal = harness.root / str(unknown) / "state/journal.json"
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "task_id": str(unknown)}))
    await harness.start()
    await eventually(lambda: not (harness.root / str(unknown)).exists())
    await eventually(lambda: not is_alive(agent))
    assert is_alive(other)
    await harness.until_status(kept, "active")
    assert harness.worker.reasons() == []


async def test_an_unexpected_error_of_the_look_for_orphans_ends_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as with an error of any other task of its own, with the error; it would not look again."""

    async def fail(_: RunnerProcess) -> NoReturn:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(RunnerProcess, "_find_orphans", fail)
    settings = Settings(amqp_url="amqp://127.0.0.1:1", runner_root=str(tmp_path), runner_name="r", ops_port=0, grace=1)
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeError, match="unexpected"):
            await RunnerProcess(settings).run()
