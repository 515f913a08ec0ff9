"""How an agent ended, as its runner reports it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive
from tests.harness.tasks import prompt_of

pytestmark = pytest.mark.timeout(180)


async def shell(harness: RunnerHarness, script: str, **run: Any) -> uuid.UUID:
    """Create a task whose agent is a shell script."""
    await harness.template({"command": ["sh", "-c", script], "grace": 1, **run})
    return await harness.worker.create()


async def until_ended(harness: RunnerHarness, task_id: uuid.UUID) -> dict[str, Any]:
    """Wait until the task says how its agent ended, and return that without the time."""
    await harness.until(lambda: harness.worker.document(task_id).get("agent_exit"))
    ended = dict(harness.worker.document(task_id)["agent_exit"])
    del ended["at"]
    return ended


@pytest.mark.parametrize("kind", ["stdio", "self"])
@pytest.mark.parametrize(
    ("script", "run", "ended", "state"),
    [
        ("echo All done", {}, {"why": "exited", "status": 0, "signal": None, "words": "All done"}, "complete"),
        ("exit 0", {"on_exit": "idle"}, {"why": "exited", "status": 0, "signal": None, "words": ""}, "idle"),
        ("echo Oh no; exit 3", {}, {"why": "exited", "status": 3, "signal": None, "words": "Oh no"}, "failed"),
        ("kill -11 $$", {}, {"why": "signalled", "status": None, "signal": 11, "words": ""}, "failed"),
        (
            "echo Waiting; exec sleep 1000",
            {"limits": {"timeout": "500ms"}},
            {"why": "timeout", "status": None, "signal": 15, "words": "Waiting"},
            "failed",
        ),
    ],
)
async def test_the_end_of_an_agent_is_reported(
    harness: RunnerHarness,
    *,
    kind: str,
    script: str,
    run: dict[str, Any],
    ended: dict[str, Any],
    state: str,
) -> None:
    """For every kind of agent the task says how it ended, and shows the state that is true from then on."""
    await harness.start()
    task_id = await shell(harness, script, agent=kind, **run)
    assert await until_ended(harness, task_id) == ended
    await harness.until_state(task_id, state)
    assert await harness.inputs(task_id) == [prompt_of(task_id)]
    if state == "failed" and ended["words"]:
        await harness.until_output(task_id, ended["words"])
    assert harness.worker.reasons() == []


async def test_what_an_agent_reported_last_is_among_its_last_words(harness: RunnerHarness) -> None:
    """People read the message of a status line, not the line."""
    await harness.start()
    task_id = await shell(harness, """echo Copying; echo '::taskherd state=failed message="No space left"'; exit 1""")
    assert (await until_ended(harness, task_id))["words"] == "Copying\nNo space left"


@pytest.mark.parametrize(("status", "shown"), [(78, "error"), (0, "active")])
async def test_an_agent_that_ends_before_it_is_ready_is_not_starting_for_ever(
    harness: RunnerHarness, status: int, shown: str
) -> None:
    """An AgentAPI that exits before it listens leaves a task with the start-up error, not one that initializes."""
    await harness.start()
    task_id = await shell(harness, f"echo No key; exit {status}", agent="agentapi")
    assert (await until_ended(harness, task_id))["status"] == status
    await harness.until_status(task_id, shown)
    assert harness.worker.document(task_id)["workspace_agent_lifecycle"] == "start_error"
    assert not harness.worker.document(task_id)["workspace_agent_health"]["healthy"]


async def test_a_paused_agent_was_stopped(harness: RunnerHarness) -> None:
    """A stop that a user asked for is not a failure."""
    await harness.start()
    task_id = await shell(harness, "echo up; exec sleep 1000")
    await harness.until_output(task_id, "up")
    await harness.until_status(task_id, "active")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    row = await harness.worker.database.fetchval("SELECT state FROM tasks WHERE id = $1", task_id)
    assert '"stopped"' in row


async def test_an_agent_without_an_exit_record_is_lost(harness: RunnerHarness) -> None:
    """If runner, shim and agent were killed, the next runner reports the loss, and a resume alone starts it again."""
    first = await harness.start()
    task_id = await shell(harness, "echo up; exec sleep 1000")
    await harness.until_output(task_id, "up")
    await first.kill()
    harness.kill_all(task_id)
    await harness.start()
    assert await until_ended(harness, task_id) == {"why": "lost", "status": None, "signal": None, "words": "up"}
    await harness.until_state(task_id, "failed", "Resume the task to start it again.")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    await harness.until(lambda: harness.worker.document(task_id)["agent_exit"] is None)


async def test_an_agent_killed_for_want_of_memory_is_told_from_one_that_was_killed(harness: RunnerHarness) -> None:
    """With a cgroup, the kernel's count of OOM kills tells the two apart.

    A folder takes the place of the cgroup: the development machines have no cgroup v2 with controllers.
    """
    cgroup = harness.folder / "cgroup"
    cgroup.mkdir()
    (cgroup / "cgroup.controllers").write_text("cpu memory")
    await harness.start(runner_cgroup=str(cgroup))
    events = f"{cgroup}/$TASKHERD_TASK_ID-1/memory.events"
    task_id = uuid.UUID(int=0)
    for count, why in ((1, "out_of_memory"), (0, "signalled")):
        task_id = await shell(harness, f'echo "oom_kill {count}" > {events}; kill -9 $$', limits={"memory": "1Gi"})
        assert await until_ended(harness, task_id) == {"why": why, "status": None, "signal": 9, "words": ""}
    await harness.until_state(task_id, "failed", "signal 9 (SIGKILL)")


async def test_a_program_that_cannot_be_started_was_not_started(harness: RunnerHarness) -> None:
    """The build fails, and the task's agent counts as not started."""
    await harness.start()
    await harness.template({"command": ["/no/such/program"]})
    task_id = await harness.worker.create()
    await harness.until_status(task_id, "error")
    await harness.worker.until_row(
        "SELECT state::text LIKE '%not_started%' FROM tasks WHERE id = $1", task_id, is_=True
    )


WHEN_TOLD = "echo up; until [ -e ../go ]; do sleep 0.05; done; "


@pytest.mark.parametrize(
    ("waits", "deleted"),
    [(WHEN_TOLD, '"${PWD%/*}"'), (WHEN_TOLD, '"$TASKHERD_RUN_FOLDER"'), ("", '"$TASKHERD_RUN_FOLDER"')],
    ids=["task", "run", "run at once"],
)
@pytest.mark.parametrize("then", ["exit 3", "exec sleep 1000"])
async def test_an_agent_that_deletes_its_own_folder_did_run(
    harness: RunnerHarness, waits: str, deleted: str, then: str
) -> None:
    """Its end is lost with the folder, and the task says so; it can be resumed, and its processes are gone."""
    runner = await harness.start()
    task_id = await shell(harness, f"{waits}until rm -rf {deleted}; do :; done; {then}")
    if waits:
        await harness.until_output(task_id, "up")
        await harness.until_status(task_id, "active")
        (harness.work(task_id).parent / "go").touch()
    if then != "exit 3":
        await harness.until_status(task_id, "active")
        await eventually(lambda: not (harness.state(task_id) / "run-1").exists())
        assert (await harness.worker.command("task.pause", task_id))["ok"]
        await harness.until_status(task_id, "paused")
    else:
        ended = await until_ended(harness, task_id)
        assert (ended["why"], ended["status"]) == ("lost", None)
        await harness.until_state(task_id, "failed", "the folder of its run was deleted")
        assert await harness.inputs(task_id) == [prompt_of(task_id)]
    assert harness.marked(task_id) == set()
    await shell(harness, "echo up again; exec sleep 1000")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    assert [line for line in runner.lines() if "exception" in line] == []
    assert harness.worker.reasons() == []


@pytest.mark.parametrize("then", ["exit 3", "exec sleep 1000"])
async def test_an_agent_that_deletes_its_own_folder_is_lost_for_the_next_runner(
    harness: RunnerHarness, then: str
) -> None:
    """Whether it has ended or not: the task says so, nothing of the agent is left, and it can be resumed."""
    runner = await harness.start()
    script = f'{WHEN_TOLD}until rm -rf "$TASKHERD_RUN_FOLDER"; do :; done; {then}'
    task_id = await shell(harness, script)
    await harness.until_output(task_id, "up")
    await harness.until_status(task_id, "active")
    shim = harness.agent(task_id)["pid"]
    await runner.kill()
    (harness.work(task_id).parent / "go").touch()
    await eventually(lambda: not (harness.state(task_id) / "run-1").exists())
    if then == "exit 3":
        await eventually(lambda: not is_alive(shim))
    await harness.start()
    ended = await until_ended(harness, task_id)
    assert (ended["why"], ended["status"]) == ("lost", None)
    await harness.until_state(task_id, "failed", "the folder of its run was deleted")
    assert harness.marked(task_id) == set()
    await shell(harness, "echo up again; exec sleep 1000")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
