"""Interrupts and steers through the worker: replies, work requests, the inbox, and what happens without an outcome."""

from __future__ import annotations

import asyncio
import os
import uuid
from functools import partial
from typing import Any

import pytest

from tests.harness import fork_server
from tests.harness.worker import SECRET, WorkerHarness, external_harness, make_command, make_report, running_worker
from tests.worker.conftest import StartWorker
from tests.worker.test_inbox import decide, report_state, requested_inputs

NOT_WORKING = {"status": 409, "message": "The agent is not working."}


async def working(harness: WorkerHarness) -> uuid.UUID:
    """Make a task whose agent works, and return its id."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "working")
    return task_id


async def interrupt(harness: WorkerHarness, task_id: uuid.UUID) -> str:
    """Interrupt the agent of a task, and return the id of the interrupt."""
    command = make_command("task.interrupt", task_id)
    reply = await harness.send(command)
    assert reply["ok"], reply
    assert reply["interrupt_id"] == command["command_id"]
    return str(reply["interrupt_id"])


async def end(harness: WorkerHarness, task_id: uuid.UUID, interrupt_id: str, outcome: str, **fields: Any) -> None:
    """Report the outcome of an interrupt, and wait for its event, in which the task shows none."""
    await harness.report(
        make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome=outcome, **fields)
    )
    await harness.until(lambda: interrupt_id in harness.causes(task_id, "agent.interrupted"))
    assert harness.document(task_id)["interrupt"] is None


async def steer(harness: WorkerHarness, task_id: uuid.UUID, text: str, *, interrupts: bool = True) -> dict[str, Any]:
    """Send an input, one that steers by default, and return the reply."""
    reply = await harness.command("task.send", task_id, input=text, **({"interrupt": True} if interrupts else {}))
    assert reply["ok"], reply
    return reply


def has_requested(harness: WorkerHarness, task_id: uuid.UUID, inputs: list[str]) -> bool:
    """Return whether exactly these inputs were requested, in this order."""
    return requested_inputs(harness, task_id) == inputs


async def open_requests(harness: WorkerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the types of the task's work requests that are not answered."""
    query = "SELECT type FROM work_requests WHERE task_id = $1 ORDER BY type"
    return [row["type"] for row in await harness.database.fetch(query, task_id)]


async def test_an_interrupt_is_asked_for_and_ends(harness: WorkerHarness) -> None:
    """The request goes to the task's runner, the document says since when, and the outcome ends both."""
    task_id = await working(harness)
    interrupt_id = await interrupt(harness, task_id)
    await harness.until(lambda: harness.requests_of(task_id, "agent.interrupt"))
    request = harness.requests_of(task_id, "agent.interrupt")[0]
    assert (request["interrupt_id"], request["build_number"]) == (interrupt_id, 1)
    assert "agent.interrupt.r1" in harness.routes(task_id)
    opened = harness.events_of(task_id)[-1]
    assert (opened["changes"], opened["cause"]["type"]) == (["interrupt"], "task.interrupt")
    assert opened["task"]["interrupt"] == {"since": opened["task"]["updated_at"]}
    joined = await harness.command("task.interrupt", task_id)
    assert (joined["interrupt_id"], joined["version"]) == (interrupt_id, opened["version"])
    await end(harness, task_id, interrupt_id, "stopped", detail="it was asked to")
    ended = harness.events_of(task_id)[-1]
    assert ended["cause"] == {
        "kind": "report", "type": "agent.interrupted", "id": interrupt_id, "outcome": "stopped",
    }  # fmt: skip
    assert await open_requests(harness, task_id) == []
    labels = {"outcome": "stopped", "template": "claude", "pool": "default"}
    await harness.until_metric(1, "taskherd_interrupts_total", **labels)
    await harness.report(make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome="failed"))
    await harness.until_metric(1, "taskherd_reports_total", type="agent.interrupted", outcome="stale")
    assert harness.reasons() == []


async def test_when_an_interrupt_is_refused(harness: WorkerHarness) -> None:
    """An agent that does not work cannot be interrupted; nor can a task that does not exist or is deleted."""
    task_id = await harness.create()
    assert await harness.refused_command("task.interrupt", task_id) == NOT_WORKING
    await harness.make_active(task_id)
    await report_state(harness, task_id, "idle")
    assert await harness.refused_command("task.interrupt", task_id) == NOT_WORKING
    assert (await harness.refused_command("task.interrupt", uuid.uuid4()))["status"] == 404
    assert (await harness.command("task.send", task_id, input="in flight"))["queued"] is False
    interrupt_id = await interrupt(harness, task_id)
    assert (await harness.command("task.delete", task_id))["ok"]
    assert (await harness.refused_command("task.interrupt", task_id))["status"] == 404
    assert "agent.interrupt" not in await open_requests(harness, task_id)
    await harness.report(make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome="stopped"))
    await harness.until_metric(1, "taskherd_reports_total", type="agent.interrupted", outcome="tombstone")


async def test_two_steers_go_first_and_in_order(harness: WorkerHarness) -> None:
    """While the interrupt is open nothing is sent; then the steers go before what was queued earlier and later."""
    task_id = await working(harness)
    await steer(harness, task_id, "ordinary 1", interrupts=False)
    first = await steer(harness, task_id, "steer 1")
    assert (first["queued"], first["interrupt_id"]) == (True, first["input_id"])
    second = await steer(harness, task_id, "steer 2")
    assert (second["queued"], second["interrupt_id"]) == (True, first["input_id"])
    await steer(harness, task_id, "ordinary 2", interrupts=False)
    await report_state(harness, task_id, "idle")
    assert await open_requests(harness, task_id) == ["agent.interrupt"]
    assert len({each["request_id"] for each in harness.requests_of(task_id, "agent.interrupt")}) <= 1
    await end(harness, task_id, first["interrupt_id"], "stopped")
    order = ["steer 1", "steer 2", "ordinary 1", "ordinary 2"]
    for number in range(1, len(order) + 1):
        await harness.until(partial(has_requested, harness, task_id, order[:number]))
        latest = harness.requests_of(task_id, "agent.input")[-1]
        await decide(harness, task_id, latest, "delivered")
        await report_state(harness, task_id, "working")
        await report_state(harness, task_id, "idle")


async def test_a_failed_interrupt_keeps_steers_first(harness: WorkerHarness) -> None:
    """The steer waits for the agent like any other input, but goes first."""
    task_id = await working(harness)
    await steer(harness, task_id, "ordinary", interrupts=False)
    reply = await steer(harness, task_id, "steer")
    await end(harness, task_id, reply["interrupt_id"], "failed", detail="it cannot be interrupted")
    await report_state(harness, task_id, "working")
    assert requested_inputs(harness, task_id) == []
    await report_state(harness, task_id, "idle")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["steer"])


async def test_a_steer_never_goes_before_one_in_flight(harness: WorkerHarness) -> None:
    """An input in flight stays there while the agent is interrupted, and the steer follows it."""
    task_id = await harness.make_active()
    sent = await steer(harness, task_id, "in flight", interrupts=False)
    reply = await steer(harness, task_id, "steer")
    assert reply["interrupt_id"] == reply["input_id"]
    await end(harness, task_id, reply["interrupt_id"], "ended")
    assert requested_inputs(harness, task_id) == ["in flight"]
    await decide(harness, task_id, sent, "delivered")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["in flight", "steer"])


async def test_an_interrupt_without_an_outcome_fails(start_worker: StartWorker) -> None:
    """After the timeout it is failed, the request is closed, and a report that comes later still says what happened."""
    async with start_worker(interrupt_timeout=1) as harness:
        task_id = await working(harness)
        interrupt_id = await interrupt(harness, task_id)
        await harness.until(lambda: harness.document(task_id)["interrupt"])
        await harness.until(lambda: harness.document(task_id)["interrupt"] is None)
        cause = harness.events_of(task_id)[-1]["cause"]
        assert (cause["kind"], cause["type"]) == ("sweep", "agent.interrupt_expired")
        assert await open_requests(harness, task_id) == []
        labels = {"template": "claude", "pool": "default"}
        await harness.until_metric(1, "taskherd_interrupts_total", outcome="failed", **labels)
        await harness.until_metric(1, "taskherd_requests_given_up_total", type="agent.interrupt", **labels)
        assert (await steer(harness, task_id, "next", interrupts=False))["queued"] is True
        await harness.report(make_report("agent.interrupted", task_id, interrupt_id=interrupt_id, outcome="stopped"))
        await harness.until(lambda: requested_inputs(harness, task_id) == ["next"])


async def test_a_pause_ends_an_interrupt(harness: WorkerHarness) -> None:
    """The build that stops the agent ends its interrupt; the inbox waits for the next start."""
    task_id = await working(harness)
    reply = await steer(harness, task_id, "steer")
    assert (await harness.command("task.pause", task_id))["ok"]
    await harness.until(lambda: harness.document(task_id)["workspace_build_number"] == 2)
    assert harness.document(task_id)["interrupt"] is None
    assert await open_requests(harness, task_id) == ["workspace.stop"]
    stopped = {"type": "workspace.build", "task_id": str(task_id), "build_number": 2, "transition": "stop"}
    await harness.report({**stopped, "job_status": "succeeded"})
    await harness.until(lambda: harness.document(task_id)["status"] == "paused")
    assert (await harness.command("task.resume", task_id))["ok"]
    await harness.make_active(task_id, 3)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["steer"])
    assert harness.requests_of(task_id, "agent.input")[0]["input_id"] == reply["input_id"]


async def test_the_inbox_of_an_interrupted_agent_waits(harness: WorkerHarness) -> None:
    """An agent that had to be ended is given nothing; the next start gets what waits, the steer first."""
    task_id = await working(harness)
    await steer(harness, task_id, "ordinary", interrupts=False)
    reply = await steer(harness, task_id, "steer")
    await harness.report(
        make_report("agent.exit", task_id, why="interrupted"),
        make_report("app.status", task_id, state="idle", message="ended"),
        make_report("agent.interrupted", task_id, interrupt_id=reply["interrupt_id"], outcome="stopped"),
    )
    await harness.until(lambda: harness.document(task_id)["agent_exit"])
    assert harness.document(task_id)["agent_exit"]["why"] == "interrupted"
    assert harness.document(task_id)["interrupt"] is None
    assert (await steer(harness, task_id, "later"))["queued"] is True
    assert requested_inputs(harness, task_id) == []
    assert (await harness.command("task.resume", task_id))["ok"]
    await harness.make_active(task_id, 2)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["steer"])


async def test_an_input_in_flight_of_an_interrupted_agent_is_sent_again(harness: WorkerHarness) -> None:
    """What the agent did not get before it was ended waits for the next one, behind the steer."""
    task_id = await harness.make_active()
    sent = await steer(harness, task_id, "in flight", interrupts=False)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["in flight"])
    reply = await steer(harness, task_id, "steer")
    await harness.report(make_report("agent.exit", task_id, why="interrupted"))
    await end(harness, task_id, reply["interrupt_id"], "stopped")
    assert await open_requests(harness, task_id) == []
    row = await harness.database.fetchrow(
        "SELECT state, sent_at FROM inputs WHERE input_id = $1", uuid.UUID(sent["input_id"])
    )
    assert tuple(row) == ("queued", None)
    harness.requests.clear()
    assert (await harness.command("task.resume", task_id))["ok"]
    await harness.make_active(task_id, 2)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["steer"])
    await decide(harness, task_id, reply, "delivered")
    await report_state(harness, task_id, "idle")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["steer", "in flight"])
    await decide(harness, task_id, sent, "delivered")


@pytest.mark.timeout(120)
async def test_a_worker_killed_between_commit_and_send(database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """The interrupt is committed, and the next worker sends the request for it."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        async with running_worker(harness):
            task_id = await working(harness)
        command = make_command("task.interrupt", task_id)
        await harness.post(command)
        settings = {
            "database_url": database_url,
            "amqp_url": amqp_url,
            "amqp_prefix": amqp_prefix,
            "secret_key": SECRET,
            "ops_port": "0",
            "failpoint": "request_send:kill",
            "request_backoff_first": "500ms",
        }
        environment = {**os.environ, **{f"TASKHERD_{name.upper()}": value for name, value in settings.items()}}
        process = await fork_server.start("worker", environment)
        assert await asyncio.wait_for(process.wait(), 60) == -9
        assert await open_requests(harness, task_id) == ["agent.interrupt"]
        assert harness.requests_of(task_id, "agent.interrupt") == []
        async with running_worker(harness):
            await harness.until(lambda: harness.requests_of(task_id, "agent.interrupt"))
            request = harness.requests_of(task_id, "agent.interrupt")[0]
            assert (request["interrupt_id"], request["attempt"]) == (command["command_id"], 2)
            assert (await harness.send(command))["interrupt_id"] == command["command_id"]
            await end(harness, task_id, command["command_id"], "stopped")
