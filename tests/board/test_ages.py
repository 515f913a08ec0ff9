"""The age beside a state is since when the task is in it, whatever its agent and people say of it meanwhile."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import Board
from tests.board.test_home import status
from tests.harness.worker import build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
OLDER = """
UPDATE tasks
SET state = jsonb_set(CAST(state AS jsonb), '{since}', to_jsonb(now() - interval '3 hours 5 minutes'))::json
WHERE id = $1
"""
"""Lets a task be in its state for three hours."""


async def in_state_for_hours(board: Board, state: str) -> str:
    """Return the id of a task whose agent is in a state for three hours, and said something just now."""
    task = await board.harness.active(display_name=f"Is {state} for hours")
    await status(board, task["id"], state, "First words")
    worker, task_id = board.harness.worker, uuid.UUID(task["id"])
    await worker.until(lambda: worker.state(task_id).get("message") == "First words")
    await worker.database.execute(OLDER, task_id)
    return str(task["id"])


@pytest.mark.parametrize("state", ["working", "idle"])
@pytest.mark.parametrize("place", ["home", "tasks", "task"])
async def test_what_is_said_leaves_the_age_of_a_state(board: Board, place: str, state: str) -> None:
    """A page that opens and one that follows show hours; another state begins anew, on the open page, too."""
    task_id = await in_state_for_hours(board, state)
    rows = {"working": "[aria-labelledby=running]", "idle": f".need[data-id='{task_id}']"}
    path = {"home": "/", "tasks": "/tasks", "task": f"/tasks/me/{task_id}"}[place]
    within = {"tasks": f"tr[data-id='{task_id}']", "task": ".task-title"}
    page = await board.open(path)
    age = f"{within.get(place, rows[state])} time-ago"
    await page.sees("3 h", age)
    await status(board, task_id, state, "Other words")
    await page.sees("Other words", within["tasks"] if place == "tasks" else "#main")
    labelled = await board.harness.alice.patch(f"/tasks/me/{task_id}/labels", json={"labels": {"team": "blue"}})
    assert labelled.status_code == 200
    other = "working" if state == "idle" else "idle"
    assert "3 h" in await page.text(age)
    await status(board, task_id, other, "Now something else")
    younger = f"{within.get(place, rows[other])} time-ago"
    await page.tab.until(f"!(document.querySelector({json.dumps(younger)})?.innerText ?? '3 h').includes('3 h')")
    assert page.tab.errors == []


async def bring_to(board: Board, task_id: uuid.UUID, state: str) -> None:
    """Bring a task that is active into another state."""
    worker = board.harness.worker
    match state:
        case "lost":
            await worker.report(make_report("agent.disconnected", task_id, build_number=1))
            await worker.until(lambda: worker.document(task_id)["workspace_agent_health"]["healthy"] is False)
        case "paused":
            assert (await board.harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
            await worker.report(build_report(task_id, 2, "stop", "succeeded"))
            await worker.until(lambda: worker.document(task_id)["status"] == "paused")
        case _:
            await worker.report(make_report("app.status", task_id, state=state, message="Words", build_number=1))
            await worker.until(lambda: worker.state(task_id).get("state") == state)


@pytest.mark.parametrize("state", ["lost", "paused", "failed", "complete"])
async def test_every_state_keeps_its_age(board: Board, state: str) -> None:
    """A label, and the end of an agent that is lost or has failed anyway, leave it as it is."""
    task = await board.harness.active(display_name=f"Has been {state}")
    task_id, worker = uuid.UUID(task["id"]), board.harness.worker
    await bring_to(board, task_id, state)
    await worker.database.execute(OLDER, task_id)
    row = f"tr[data-id='{task_id}']"
    page = await board.open("/tasks")
    await page.sees(state, f"{row} .state")
    await page.sees("3 h", f"{row} .state time-ago")
    ends: dict[str, dict[str, Any]] = {"lost": {"why": "lost"}, "failed": {"why": "exited", "status": 1}}
    if state in ends:
        await worker.report(make_report("agent.exit", task_id, build_number=1, **ends[state]))
        await worker.until(lambda: worker.document(task_id)["agent_exit"] is not None)
    labelled = await board.harness.alice.patch(f"/tasks/me/{task_id}/labels", json={"labels": {"team": state}})
    assert labelled.status_code == 200
    aged = await board.open(f"/tasks?q=label:team={state}")
    for each in (page, aged):
        await each.sees(state, f"{row} .state")
        await each.sees("3 h", f"{row} .state time-ago")
        assert each.tab.errors == []
