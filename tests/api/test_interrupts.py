"""Interrupts and steers over HTTP, and in explanations and timelines."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.api.test_actions import act, finished, results
from tests.harness.api import ApiHarness
from tests.harness.worker import make_report


async def working(api_harness: ApiHarness, name: str) -> uuid.UUID:
    """Create a task whose agent works, and return its id."""
    task_id = uuid.UUID((await api_harness.active(name=name))["id"])
    await api_harness.worker.report(make_report("app.status", task_id, state="working", message=f"On {name}"))
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "working")
    return task_id


async def end(api_harness: ApiHarness, task_id: uuid.UUID, interrupt_id: str, outcome: str, **fields: Any) -> None:
    """Report the outcome of an interrupt, and wait for its event, in which the task shows none."""
    report = make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome=outcome, **fields)
    await api_harness.worker.report(report)
    await api_harness.worker.until(lambda: interrupt_id in api_harness.worker.causes(task_id, "agent.interrupted"))
    assert api_harness.worker.document(task_id)["interrupt"] is None


async def test_an_interrupt_is_accepted_joined_and_refused(api_harness: ApiHarness) -> None:
    """202 with the interrupt's id, the same for who joins it; 409 if the agent does not work, 404 for strangers."""
    task = await working(api_harness, "busy")
    first = await api_harness.alice.post(f"/tasks/me/{task}/interrupt")
    second = await api_harness.alice.post("/tasks/me/busy/interrupt")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert (await api_harness.get(str(task)))["interrupt"]["since"]
    assert (await api_harness.bob.post(f"/tasks/alice/{task}/interrupt")).status_code == 404
    await end(api_harness, task, first.json()["interrupt_id"], "stopped")
    await api_harness.worker.report(make_report("app.status", task, state="idle", message="Interrupted"))
    await api_harness.worker.until(lambda: api_harness.worker.state(task).get("state") == "idle")
    refused = await api_harness.alice.post(f"/tasks/me/{task}/interrupt")
    assert (refused.status_code, refused.json()) == (409, {"message": "The agent is not working."})


async def test_an_interrupt_with_an_idempotency_key(api_harness: ApiHarness) -> None:
    """Repeated with its key, a request has the same answer, although that interrupt is long over."""
    task = await working(api_harness, "keyed")
    headers = {"Idempotency-Key": "stop it"}
    first = await api_harness.alice.post(f"/tasks/me/{task}/interrupt", headers=headers)
    await end(api_harness, task, first.json()["interrupt_id"], "stopped")
    second = await api_harness.alice.post(f"/tasks/me/{task}/interrupt", headers=headers)
    assert (second.status_code, second.json()) == (202, first.json())
    assert (await api_harness.get(str(task)))["interrupt"] is None


async def test_a_steer_interrupts_first(api_harness: ApiHarness) -> None:
    """`"interrupt": true` opens an interrupt and queues the input first; explain and timeline say so."""
    task = await working(api_harness, "steered")
    path = f"/tasks/me/{task}"
    ordinary = await api_harness.alice.post(f"{path}/send", json={"input": "Later", "interrupt": False})
    steer = await api_harness.alice.post(f"{path}/send", json={"input": "Now", "interrupt": True})
    assert (ordinary.status_code, steer.status_code, steer.headers["X-Taskherd-Queued"]) == (204, 204, "true")
    body = (await api_harness.alice.get(f"{path}/explain")).json()
    assert [(each["input"], each["steers"]) for each in body["inbox"]] == [("Now", True), ("Later", False)]
    assert body["interrupt"]["rule"] == "interrupt.open"
    assert "being interrupted" in body["interrupt"]["because"]
    (request,) = body["requests"]
    assert (request["type"], request["input_id"]) == ("agent.interrupt", None)
    await end(api_harness, task, request["interrupt_id"], "failed", detail="it cannot be interrupted")
    body = (await api_harness.alice.get(f"{path}/explain")).json()
    assert (body["interrupt"]["value"], body["interrupt"]["rule"]) == (None, "interrupt.failed")
    assert "failed (it cannot be interrupted)." in body["interrupt"]["because"]
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    timeline = (await api_harness.alice.get(f"{path}/events")).json()
    words = [each["cause"]["words"] for each in timeline["events"]]
    assert words[-2:] == ["alice interrupted the agent and sent an input", "the interrupt failed"]
    assert timeline["events"][-1]["cause"]["outcome"] == "failed"
    assert [(each["input"], each["steers"], each["words"]) for each in timeline["actions"]] == [
        ("Later", False, "alice sent an input"),
        ("Now", True, "alice interrupted the agent and sent an input"),
    ]


async def test_a_steer_to_an_idle_agent_is_sent_at_once(api_harness: ApiHarness) -> None:
    """It is an ordinary send, without a header and without an interrupt."""
    task = (await api_harness.active(name="idle"))["id"]
    sent = await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "Hello", "interrupt": True})
    assert (sent.status_code, "X-Taskherd-Queued" in sent.headers) == (204, False)
    assert (await api_harness.get(task))["interrupt"] is None


@pytest.mark.parametrize("value", ["yes", 1, "true"])
async def test_a_bad_steer_is_refused(api_harness: ApiHarness, value: object) -> None:
    """Only a boolean says whether an input steers."""
    task = (await api_harness.active(name="bad"))["id"]
    refused = await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "Hello", "interrupt": value})
    assert refused.status_code == 400
    assert refused.json()["validations"][0]["field"] == "interrupt"


async def test_many_agents_are_interrupted_by_an_action(api_harness: ApiHarness) -> None:
    """Each that works is interrupted; the others are refused, as single requests would be."""
    busy = await working(api_harness, "one")
    idle = (await api_harness.active(name="two"))["id"]
    done = await finished(api_harness.alice, await act(api_harness.alice, "interrupt", q="owner:me"))
    assert (done["succeeded"], done["refused"]) == (1, 1)
    rows = {row["task_id"]: (row["status"], row.get("error")) for row in await results(api_harness.alice, done)}
    assert rows == {str(busy): (202, None), idle: (409, {"message": "The agent is not working."})}
    assert (await api_harness.get(str(busy)))["interrupt"]
    refused = await api_harness.alice.post(
        "/task-actions", json={"action": "interrupt", "q": "owner:me", "input": "Stop"}
    )
    assert refused.status_code == 400
