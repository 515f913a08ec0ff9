"""Interrupts and steers, with real runners and agents: an interrupt always ends, and says what really happened."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.harness.runner import TIMEOUT, RunnerHarness, eventually, eventually_async, is_alive, json_lines
from tests.runner.acp import acp_run
from tests.runner.test_acp_runner import acp_task
from tests.runner.test_agentapi import create_agentapi_task

pytestmark = pytest.mark.timeout(600)


async def interrupt(harness: RunnerHarness, task_id: uuid.UUID) -> str:
    """Interrupt the agent of a task, and return the id of the interrupt."""
    reply = await harness.worker.command("task.interrupt", task_id)
    assert reply["ok"], reply
    return str(reply["interrupt_id"])


async def outcome_of(harness: RunnerHarness, task_id: uuid.UUID, interrupt_id: str) -> tuple[str, str | None]:
    """Wait until this interrupt has ended and the task shows none, and return its outcome and detail."""

    async def last() -> list[Any]:
        state = json.loads(await harness.worker.database.fetchval("SELECT state FROM tasks WHERE id = $1", task_id))
        ended: list[Any] = state.get("last_interrupt", [""])
        return ended

    await eventually_async(last, lambda ended: ended[0] == interrupt_id)
    await harness.until(lambda: harness.worker.document(task_id)["interrupt"] is None)
    _, outcome, _, detail, *_ = await last()
    return outcome, detail


async def ended(harness: RunnerHarness, task_id: uuid.UUID) -> tuple[str, str | None]:
    """Interrupt the agent of a task, and return the outcome and detail."""
    return await outcome_of(harness, task_id, await interrupt(harness, task_id))


def exit_reason(harness: RunnerHarness, task_id: uuid.UUID) -> str:
    """Return why the task's agent ended, or "" if it has not."""
    return str((harness.worker.document(task_id)["agent_exit"] or {}).get("why", ""))


async def send(harness: RunnerHarness, task_id: uuid.UUID, text: str, **fields: Any) -> dict[str, Any]:
    """Send an input, and return the reply."""
    reply = await harness.worker.command("task.send", task_id, input=text, **fields)
    assert reply["ok"], reply
    return reply


async def all_delivered(harness: RunnerHarness, task_id: uuid.UUID, count: int) -> list[str]:
    """Wait until so many inputs were delivered, and return them in order; their outcomes follow the agent's words."""
    await eventually_async(lambda: delivered(harness, task_id), lambda texts: len(texts) >= count)
    return await delivered(harness, task_id)


async def delivered(harness: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the inputs that were delivered, in the order in which that was decided."""
    query = "SELECT content FROM inputs WHERE task_id = $1 AND state = 'delivered' ORDER BY decided_at"
    return [row["content"] for row in await harness.worker.database.fetch(query, task_id)]


async def test_an_interrupt_ends_the_turn_of_an_acp_agent(harness: RunnerHarness) -> None:
    """The turn is cancelled within seconds, its open permission with it, and the agent goes on with the next input."""
    await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    assert await ended(harness, task_id) == ("stopped", None)
    assert any(event["task"]["interrupt"] for event in harness.worker.events_of(task_id))
    await harness.until_state(task_id, "idle", "The turn was interrupted.")
    await harness.until_output(task_id, "taskherd: the agent was interrupted.")
    await send(harness, task_id, "line: next")
    await harness.until_state(task_id, "idle", "next")
    await eventually_async(lambda: delivered(harness, task_id), lambda texts: texts == ["line: next"])
    assert exit_reason(harness, task_id) == ""
    refused = await harness.worker.refused_command("task.interrupt", task_id)
    assert (refused["status"], refused["message"]) == (409, "The agent is not working.")


async def test_an_acp_agent_that_ignores_everything_is_ended(harness: RunnerHarness) -> None:
    """It is killed, counts as interrupted and not as failed, keeps its inbox, and a resume goes on with that."""
    await harness.start()
    traits = ("ignore-cancel", "ignore-sigint", "ignore-sigterm", "load")
    task_id = await acp_task(harness, *traits, prompt="line: I begin.\nwait: go")
    await harness.until_state(task_id, "working", "I begin.")
    agent = harness.agent(task_id)["agent"]
    queued = await send(harness, task_id, "line: queued")
    assert await ended(harness, task_id) == ("stopped", None)
    assert not is_alive(agent)
    await harness.until_state(task_id, "idle", "ended by an interrupt")
    assert exit_reason(harness, task_id) == "interrupted"
    assert harness.worker.document(task_id)["status"] == "active"
    state = "SELECT state FROM inputs WHERE input_id = $1"
    await resume(harness, task_id, 2)
    await harness.until_state(task_id, "working", "I begin.")  # the prompt is given again, as after a pause
    assert await harness.worker.database.fetchval(state, uuid.UUID(queued["input_id"])) == "queued"
    assert await ended(harness, task_id) == ("stopped", None)
    assert await harness.worker.database.fetchval(state, uuid.UUID(queued["input_id"])) == "queued"
    harness.work(task_id).joinpath("go").touch()
    await resume(harness, task_id, 3)
    await harness.until_state(task_id, "idle", "queued")
    await harness.worker.until_row(state, uuid.UUID(queued["input_id"]), is_="delivered")
    assert received(harness, task_id).count("line: queued") == 1


async def resume(harness: RunnerHarness, task_id: uuid.UUID, build_number: int) -> None:
    """Resume a task, and wait until its build has this number."""
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until(lambda: harness.worker.document(task_id)["workspace_build_number"] == build_number)


async def test_an_agent_that_ended_by_itself_was_not_interrupted(tmp_path: Path) -> None:
    """An interrupt that comes after the end of the agent finds that, and does not change what is said about it."""
    async with acp_run(tmp_path) as run:
        await run.start("line: bye\nexit: 3")
        assert run.session is not None
        await eventually(lambda: run.session is not None and run.session.has_exited())
        assert await run.session.interrupt_turn() == "ended"
        await run.until_ended()
        assert (run.reports("agent.exit")[-1]["why"], run.journal.interrupted) == ("exited", False)


async def test_a_program_that_ends_at_once(harness: RunnerHarness) -> None:
    """A program that SIGINT ends was interrupted; nothing of it is left, and the task can be resumed."""
    await harness.start()
    task_id = await harness.task("say:up", "chatter:1000")
    await harness.until_state(task_id, "working", "chatter")
    assert await ended(harness, task_id) == ("stopped", None)
    await harness.until_state(task_id, "idle", "ended by an interrupt")
    assert exit_reason(harness, task_id) == "interrupted"
    await eventually(lambda: not harness.marked(task_id))
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_state(task_id, "working", "chatter")


async def test_a_program_that_goes_on_waiting(harness: RunnerHarness) -> None:
    """A program that SIGINT brings back to its prompt goes on; two steers and an input arrive in the right order."""
    await harness.start()
    task_id = await harness.task("obey", idle_after=1)
    await harness.until_state(task_id, "idle")
    await send(harness, task_id, "first")
    await harness.until_output(task_id, "working on first")
    await harness.until_state(task_id, "working")
    await send(harness, task_id, "ordinary")
    first = await send(harness, task_id, "steer 1", interrupt=True)
    second = await send(harness, task_id, "steer 2", interrupt=True)
    assert (first["interrupt_id"], first["queued"], second["queued"]) == (first["input_id"], True, True)
    for text in ("steer 1", "steer 2", "ordinary"):
        await harness.until_output(task_id, f"working on {text}")
        await harness.until_state(task_id, "working")
        assert await ended(harness, task_id) == ("stopped", None)
    assert await all_delivered(harness, task_id, 4) == ["first", "steer 1", "steer 2", "ordinary"]
    assert exit_reason(harness, task_id) == ""
    await harness.until_state(task_id, "idle", "The turn was interrupted.")


async def test_a_program_that_ignores_sigint_is_ended(harness: RunnerHarness) -> None:
    """Whether it writes, or is silent and says that it works: SIGTERM and SIGKILL end what SIGINT does not."""
    await harness.start()
    ignore = ("ignore-sigint", "ignore-sigterm")
    silent = await harness.task(*ignore, "say:::taskherd state=working message=thinking", "sleep", prompt="Be silent")
    loud = await harness.task(*ignore, "chatter:1000", prompt="Be loud")
    await harness.until_state(silent, "working", "thinking")
    await harness.until_state(loud, "working", "chatter")
    interrupts = {task_id: await interrupt(harness, task_id) for task_id in (silent, loud)}
    for task_id, interrupt_id in interrupts.items():
        assert await outcome_of(harness, task_id, interrupt_id) == ("stopped", None)
        assert exit_reason(harness, task_id) == "interrupted"
        assert not harness.marked(task_id)


async def test_an_agent_that_reports_its_own_state_cannot_be_interrupted(harness: RunnerHarness) -> None:
    """The interrupt fails and says so; a steer stays first, and goes when the agent is done."""
    await harness.start()
    task_id = await harness.task("echo", agent="self")
    await harness.until_status(task_id, "active")

    async def report(state: str) -> None:
        fields = {"type": "app.status", "task_id": str(task_id), "state": state, "message": f"is {state}"}
        await harness.worker.report(fields)
        await harness.until_state(task_id, state)

    await report("working")
    await send(harness, task_id, "ordinary")
    steer = await send(harness, task_id, "steer", interrupt=True)
    outcome, detail = await outcome_of(harness, task_id, steer["interrupt_id"])
    assert (outcome, "cannot be interrupted" in str(detail)) == ("failed", True)
    await harness.until_output(task_id, "taskherd: the interrupt failed: Agents that report their own status")
    assert await delivered(harness, task_id) == []
    await report("idle")
    inputs = "SELECT count(*) FROM inputs WHERE task_id = $1 AND state = 'delivered'"
    await harness.worker.until_row(inputs, task_id, is_=1)
    await report("working")
    await report("idle")
    await harness.worker.until_row(inputs, task_id, is_=2)
    assert await all_delivered(harness, task_id, 2) == ["steer", "ordinary"]


async def test_escape_interrupts_an_agent_in_a_terminal(harness: RunnerHarness) -> None:
    """Escape is typed, and the turn has ended once the screen is stable; the agent goes on with what waits."""
    await harness.start()
    task_id = await create_agentapi_task(harness)
    await harness.until_state(task_id, "idle", "Did: hello")
    await send(harness, task_id, "long")
    await harness.until_output(task_id, "I work.")
    await harness.until_state(task_id, "working")
    await send(harness, task_id, "ordinary")
    await send(harness, task_id, "steered", interrupt=True)
    await harness.until_output(task_id, "Did: ordinary")
    assert await all_delivered(harness, task_id, 3) == ["long", "steered", "ordinary"]
    assert exit_reason(harness, task_id) == ""


async def test_an_agent_in_a_terminal_that_goes_on_is_ended(harness: RunnerHarness) -> None:
    """What Escape does not end is ended with AgentAPI, and counts as interrupted."""
    await harness.start()
    task_id = await create_agentapi_task(harness, "stubborn")
    await harness.until_output(task_id, "I work.")
    await harness.until_state(task_id, "working")
    assert await ended(harness, task_id) == ("stopped", None)
    assert exit_reason(harness, task_id) == "interrupted"
    assert not harness.marked(task_id)


async def test_a_steer_to_an_idle_agent_is_an_ordinary_send(harness: RunnerHarness) -> None:
    """It is sent at once, and nothing is interrupted."""
    await harness.start()
    task_id = await acp_task(harness, prompt="line: hello")
    await harness.until_state(task_id, "idle", "hello")
    reply = await send(harness, task_id, "line: steered", interrupt=True)
    assert (reply["queued"], "interrupt_id" in reply) == (False, False)
    await harness.until_state(task_id, "idle", "steered")
    assert not any(event["task"].get("interrupt") for event in harness.worker.events_of(task_id))


async def test_a_steer_to_an_agent_that_works(harness: RunnerHarness) -> None:
    """The turn is cancelled, the steer is the next turn, and only then come inputs that waited before."""
    await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    await send(harness, task_id, "line: ordinary")
    await send(harness, task_id, "line: steered", interrupt=True)
    await harness.until_state(task_id, "idle", "ordinary")
    assert await all_delivered(harness, task_id, 2) == ["line: steered", "line: ordinary"]


async def test_an_input_in_flight_is_interrupted_too(harness: RunnerHarness) -> None:
    """An input that the runner holds until the turn ends begins a turn, which the same interrupt ends."""
    await harness.start()
    task_id = await acp_task(harness, prompt="line: hello")
    await harness.until_state(task_id, "idle", "hello")
    await send(harness, task_id, "line: in flight\nhang")
    assert await ended(harness, task_id) == ("stopped", None)
    await harness.until_state(task_id, "idle")
    assert exit_reason(harness, task_id) == ""


@pytest.mark.parametrize("when", ["accepted", "marked"])
async def test_a_runner_killed_in_the_middle(harness: RunnerHarness, when: str) -> None:
    """The next runner finds the interrupt in the journal, and carries it out to its end."""
    first = await harness.start()
    task_id = await acp_task(harness, "ignore-cancel", "ignore-sigint", prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    agent = harness.agent(task_id)["agent"]
    interrupt_id = await interrupt(harness, task_id)

    def recorded() -> bool:
        journal = json.loads((harness.state(task_id) / "journal.json").read_text())
        return bool(journal["interrupt"] and (when == "accepted" or journal["interrupted"]))

    await eventually(recorded)
    await first.kill()
    assert is_alive(agent)
    await harness.start()
    assert await outcome_of(harness, task_id, interrupt_id) == ("stopped", None)
    await harness.until(lambda: exit_reason(harness, task_id) == "interrupted")
    assert not is_alive(agent)


async def test_a_runner_killed_before_it_tells(harness: RunnerHarness) -> None:
    """If the turn ended while no runner was up, the interrupt that was accepted before has stopped it."""
    first = await harness.start()
    task_id = await acp_task(harness, "ignore-cancel", prompt="line: I begin.\nwait: go")
    await harness.until_state(task_id, "working", "I begin.")
    interrupt_id = await interrupt(harness, task_id)
    await eventually(lambda: '"method":"session/cancel"' in received(harness, task_id).replace(" ", ""))
    await first.kill()
    harness.work(task_id).joinpath("go").touch()
    await harness.start()
    assert await outcome_of(harness, task_id, interrupt_id) == ("stopped", None)
    await harness.until_state(task_id, "idle", "The turn was interrupted.")
    assert exit_reason(harness, task_id) == ""


@pytest.mark.parametrize(
    "failpoint",
    ["interrupt_record", "line_record", "line_submit", "line_written", "interrupt_outcome", "interrupt_report"],
)
async def test_a_runner_killed_at_each_boundary(harness: RunnerHarness, failpoint: str) -> None:
    """The turn is cancelled once, and the same process goes on with the input that steers."""
    first = await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    agent = harness.agent(task_id)["agent"]
    await first.kill()
    second = await harness.start(failpoint=f"{failpoint}:kill")
    steer = await send(harness, task_id, "line: steered", interrupt=True)
    async with asyncio.timeout(TIMEOUT):
        assert await second.process.wait() == -signal.SIGKILL
    await harness.start()
    assert await outcome_of(harness, task_id, steer["interrupt_id"]) == ("stopped", None)
    await harness.until_state(task_id, "idle", "steered")
    assert await all_delivered(harness, task_id, 1) == ["line: steered"]
    assert cancellations(harness, task_id) == 1
    assert is_alive(agent)


async def test_what_was_reported_is_not_carried_out_again(harness: RunnerHarness) -> None:
    """A runner killed between the report and its next journal has told the outcome: the next turn is left alone."""
    first = await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    agent = harness.agent(task_id)["agent"]
    await first.kill()
    second = await harness.start(failpoint="interrupt_report:kill")
    steer = await send(harness, task_id, "line: steered\nwait: go", interrupt=True)
    async with asyncio.timeout(TIMEOUT):
        await second.process.wait()
    journal = harness.state(task_id) / "journal.json"
    before = json.loads(journal.read_text())
    third = await harness.start()
    assert await outcome_of(harness, task_id, steer["interrupt_id"]) == ("stopped", None)
    await harness.until_state(task_id, "working", "steered")
    await all_delivered(harness, task_id, 1)
    await third.kill()
    not_saved = {name: before[name] for name in ("interrupt", "ended_interrupts")}
    journal.write_text(json.dumps(json.loads(journal.read_text()) | not_saved))
    await harness.start()
    await eventually(lambda: json.loads(journal.read_text())["interrupt"] is None)
    harness.work(task_id).joinpath("go").touch()
    await harness.until_state(task_id, "idle", "steered")
    assert cancellations(harness, task_id) == 1
    assert is_alive(agent)


def cancellations(harness: RunnerHarness, task_id: uuid.UUID) -> int:
    """Return how often the tests' agent which speaks ACP was asked to end its turn."""
    return sum(each.get("method") == "session/cancel" for each in json_lines(harness.work(task_id) / "received.jsonl"))


def received(harness: RunnerHarness, task_id: uuid.UUID) -> str:
    """Return the lines that the tests' agent which speaks ACP has read."""
    return harness.work(task_id).joinpath("received.jsonl").read_text()


async def test_a_repeated_request_interrupts_once(harness: RunnerHarness) -> None:
    """The runner carries each interrupt out once, however often it is asked, and also after a restart."""
    first = await harness.start()
    task_id = await acp_task(harness, prompt="line: I begin.\nhang")
    await harness.until_state(task_id, "working", "I begin.")
    await ended(harness, task_id)
    (request,) = harness.worker.requests_of(task_id, "agent.interrupt")[:1]
    await first.kill()
    second = await harness.start()
    await send(harness, task_id, "line: again\nhang")
    await harness.until_state(task_id, "working", "again")
    await harness.repeat_request(request, "r1", type="agent.interrupt")
    repeated = 'outcome="repeated",type="agent.interrupt"} 1.0'
    await eventually_async(second.metrics, lambda text: repeated in text)
    assert harness.worker.state(task_id)["state"] == "working"
