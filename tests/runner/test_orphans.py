from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NoReturn

import pytest

from taskherd.runner.app import RunnerProcess
from taskherd.settings import Settings
from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_files_and_agent_of_a_deleted_task_are_removed(harness: RunnerHarness) -> None:
    """A task that was deleted while the runner was down leaves neither process nor directory behind."""
    first = await harness.start()
    kept = await harness.task("say:up", "sleep")
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
    await harness.until_output(kept, "up")
    agent, other = harness.agent(task_id)["agent"], harness.agent(kept)["agent"]
    await first.kill()
    # as if another runner had executed the delete: no request for it waits for this one
    await harness.worker.database.execute("UPDATE tasks SET deleted_at = now() WHERE id = $1", task_id)
    await harness.start()
    await eventually(lambda: not (harness.root / str(task_id)).exists())
    await eventually(lambda: not is_alive(agent))
    assert is_alive(other)
    await harness.until_status(kept, "active")
    assert harness.worker.reasons() == []


@pytest.mark.parametrize("restored", [0, 1])
async def test_tasks_that_a_restored_database_does_not_know_are_kept(harness: RunnerHarness, restored: int) -> None:
    """They were created after the backup: their files may be the only copy, and the log says where they are."""
    first = await harness.start()
    tasks = [await harness.task("say:up", "sleep") for _ in range(2 + restored)]
    for task_id in tasks:
        await harness.until_output(task_id, "up")
        (harness.work(task_id) / "uncommitted").write_text("the work of a day")
    agents = {task_id: harness.agent(task_id)["agent"] for task_id in tasks}
    await first.kill()
    old, *unknown = tasks if restored else [None, *tasks]
    await harness.worker.database.execute("DELETE FROM tasks WHERE id = ANY($1)", unknown)
    second = await harness.start()

    def folders_in_log() -> dict[str, str]:
        return {line["task_id"]: line["folder"] for line in second.lines() if "does not know" in line["event"]}

    await eventually(lambda: len(folders_in_log()) == len(unknown))
    assert folders_in_log() == {str(task_id): str(harness.root / str(task_id)) for task_id in unknown}
    if old:
        await harness.until_status(old, "active")
    assert await second.terminate() == 0
    for task_id in tasks:
        assert is_alive(agents[task_id])
        assert (harness.work(task_id) / "uncommitted").read_text() == "the work of a day"


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
