"""The inbox through the worker: inputs are sent one at a time, in order, and each gets a visible outcome."""

from __future__ import annotations

import uuid
from typing import Any

from tests.harness.worker import WorkerHarness, build_report, make_command, make_report
from tests.worker.conftest import StartWorker


async def send(harness: WorkerHarness, task_id: uuid.UUID, text: str) -> dict[str, Any]:
    """Send an input and return the reply that accepts it."""
    command = make_command("task.send", task_id, input=text)
    reply = await harness.send(command)
    assert reply["ok"], reply
    assert reply["input_id"] == command["command_id"]
    return reply


async def decide(
    harness: WorkerHarness, task_id: uuid.UUID, reply: dict[str, Any], outcome: str, **fields: Any
) -> None:
    """Report the outcome of an input and wait until it is stored."""
    await harness.report(make_report("task.input", task_id, input_id=reply["input_id"], outcome=outcome, **fields))
    await until_state(harness, reply, outcome)


async def until_state(harness: WorkerHarness, reply: dict[str, Any], state: str) -> None:
    """Wait until an input is in this state."""
    await harness.until_row("SELECT state FROM inputs WHERE input_id = $1", uuid.UUID(reply["input_id"]), is_=state)


async def sent_with_the_decision_of(harness: WorkerHarness, first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether the second input was sent in the transaction that stored the outcome of the first."""
    query = """
        SELECT b.sent_at = a.decided_at FROM inputs AS a, inputs AS b WHERE a.input_id = $1 AND b.input_id = $2
    """
    values = (uuid.UUID(first["input_id"]), uuid.UUID(second["input_id"]))
    return bool(await harness.database.fetchval(query, *values))


def requested_inputs(harness: WorkerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the requested inputs, in order, each once."""
    return list(dict.fromkeys(each["input"] for each in harness.requests_of(task_id, "agent.input")))


async def report_state(harness: WorkerHarness, task_id: uuid.UUID, state: str = "idle") -> None:
    """Report a state and wait until it is published."""
    message = uuid.uuid4().hex
    await harness.report(make_report("app.status", task_id, state=state, message=message))
    await harness.until(lambda: harness.state(task_id).get("message") == message)


async def test_inputs_go_one_at_a_time_and_in_order(harness: WorkerHarness) -> None:
    """The first is sent at once; the next after the previous was delivered and a state other than working followed."""
    task_id = await harness.make_active()
    first = await send(harness, task_id, "one")
    assert first["queued"] is False
    others = [await send(harness, task_id, text) for text in ("two", "three")]
    assert [reply["queued"] for reply in others] == [True, True]
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one"])
    request = harness.requests_of(task_id, "agent.input")[0]
    assert (request["input_id"], request["build_number"]) == (first["input_id"], 1)
    assert "agent.input.r1" in harness.routes(task_id)
    await report_state(harness, task_id)
    await decide(harness, task_id, first, "delivered")
    await report_state(harness, task_id, "working")
    assert await harness.database.fetchval("SELECT count(*) FROM inputs WHERE state = 'queued'") == 2
    await report_state(harness, task_id)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one", "two"])
    await decide(harness, task_id, others[0], "delivered")
    await report_state(harness, task_id, "complete")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one", "two", "three"])
    states = await harness.database.fetch("SELECT content, state FROM inputs ORDER BY ordinal")
    assert [tuple(row) for row in states] == [("one", "delivered"), ("two", "delivered"), ("three", "sent")]
    assert {each["data"]["cause"]["type"] for each in harness.events} <= {
        "task.create", "app.status", "agent.heartbeat", "agent.lifecycle", "workspace.build"
    }  # fmt: skip


async def test_no_input_is_sent_while_the_agent_works(harness: WorkerHarness) -> None:
    """While the state is working an input waits; it is sent with the next state."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "working")
    assert (await send(harness, task_id, "later"))["queued"] is True
    assert await harness.database.fetchval("SELECT count(*) FROM work_requests") == 0
    await report_state(harness, task_id)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["later"])


async def test_the_next_input_is_sent_without_a_new_state(harness: WorkerHarness) -> None:
    """If no new state follows a delivery, the next input is sent after 5 s, not before."""
    task_id = await harness.make_active()
    first, second = [await send(harness, task_id, text) for text in ("one", "two")]
    await decide(harness, task_id, first, "delivered")
    await until_state(harness, second, "sent")
    waited = await harness.database.fetchval(
        "SELECT max(sent_at) - max(decided_at) >= interval '5 seconds' FROM inputs WHERE task_id = $1", task_id
    )
    assert waited is True


async def test_after_a_failed_input_the_next_is_sent_at_once(harness: WorkerHarness) -> None:
    """The failure and its detail are stored; the first outcome wins over later ones."""
    task_id = await harness.make_active()
    first, second = [await send(harness, task_id, text) for text in ("one", "two")]
    await decide(harness, task_id, first, "failed", detail="The agent has exited")
    await until_state(harness, second, "sent")
    assert await sent_with_the_decision_of(harness, first, second)
    stale = make_report("task.input", task_id, input_id=first["input_id"], outcome="delivered")
    await harness.report(stale, stale)
    await decide(harness, task_id, second, "delivered")
    row = await harness.database.fetchrow("SELECT state, detail FROM inputs ORDER BY ordinal LIMIT 1")
    assert tuple(row) == ("failed", "The agent has exited")
    await harness.until_metric(2, "taskherd_reports_total", type="task.input", outcome="stale")
    assert harness.dead_letters == []


async def test_an_outcome_of_an_input_that_was_never_sent(harness: WorkerHarness) -> None:
    """An outcome of a queued input is accepted; the inbox continues with the next input and keeps its count."""
    task_id = await harness.make_active()
    first, second, third = [await send(harness, task_id, text) for text in ("one", "two", "three")]
    await decide(harness, task_id, second, "failed")
    await decide(harness, task_id, first, "failed")
    await until_state(harness, third, "sent")
    await decide(harness, task_id, third, "failed")
    await harness.until_row("SELECT state -> 'inbox' IS NULL FROM tasks WHERE id = $1", task_id)
    assert (await send(harness, task_id, "four"))["queued"] is False


async def test_outcomes_of_sent_and_queued_inputs_in_one_batch(harness: WorkerHarness) -> None:
    """Outcomes of the sent input and of queued ones in one batch: the first of the others is sent."""
    task_id = await harness.make_active()
    replies = [await send(harness, task_id, text) for text in ("one", "two", "three", "four", "five")]
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one"])
    await harness.report(
        *(make_report("task.input", task_id, input_id=replies[n]["input_id"], outcome="failed") for n in (2, 0, 1))
    )
    await until_state(harness, replies[3], "sent")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one", "four"])  # or it is never requested
    await decide(harness, task_id, replies[3], "failed")
    await until_state(harness, replies[4], "sent")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one", "four", "five"])


async def test_an_outcome_of_an_unknown_input_is_dead_lettered(harness: WorkerHarness) -> None:
    """The outcome of an input that does not exist, or belongs to another task, becomes a dead letter."""
    task_id, other = await harness.make_active(), await harness.make_active()
    reply = await send(harness, task_id, "one")
    other_tasks = make_report("task.input", other, input_id=reply["input_id"], outcome="delivered")
    await harness.report(other_tasks, make_report("task.input", other, input_id=str(uuid.uuid4()), outcome="failed"))
    await harness.until(lambda: len(harness.dead_letters) == 2)
    assert harness.reasons() == ["unknown_input"] * 2
    assert await harness.database.fetchval("SELECT state FROM inputs") == "sent"


async def test_a_task_cannot_decide_the_input_of_another_in_the_same_batch(harness: WorkerHarness) -> None:
    """The report of another task becomes a dead letter, even if the input's own task reports in the same array."""
    task_id, other = await harness.make_active(), await harness.make_active()
    reply = await send(harness, task_id, "one")
    await harness.report(
        make_report("task.input", other, input_id=reply["input_id"], outcome="delivered", detail="from another task"),
        make_report("task.input", task_id, input_id=reply["input_id"], outcome="failed", detail="from its own task"),
    )
    await harness.until(lambda: len(harness.dead_letters) == 1)
    assert harness.reasons() == ["unknown_input"]
    await until_state(harness, reply, "failed")
    assert await harness.database.fetchval("SELECT detail FROM inputs") == "from its own task"


async def test_a_pause_keeps_queued_inputs_and_a_delete_fails_them(harness: WorkerHarness) -> None:
    """Queued inputs survive a pause and are sent after the resume; a delete fails the others and requests none."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "working")
    first, second = [await send(harness, task_id, text) for text in ("one", "two")]
    assert (await harness.command("task.pause", task_id))["ok"]
    await harness.report(
        build_report(task_id, 2, "stop", "succeeded"), make_report("app.status", task_id, state="idle", build_number=1)
    )
    await harness.until(lambda: harness.state(task_id).get("state") == "idle")
    assert await harness.database.fetchval("SELECT count(*) FROM inputs WHERE state = 'queued'") == 2
    assert (await harness.command("task.resume", task_id))["ok"]
    await harness.make_active(task_id, 3)
    await harness.until(lambda: requested_inputs(harness, task_id) == ["one"])
    assert harness.requests_of(task_id, "agent.input")[-1]["build_number"] == 3
    assert (await harness.command("task.delete", task_id))["ok"]
    for reply in (first, second):
        await until_state(harness, reply, "failed")
    assert await harness.database.fetchval("SELECT count(*) FROM inputs WHERE detail = 'The task was deleted.'") == 2
    assert await harness.database.fetchval("SELECT count(*) FROM work_requests WHERE type = 'agent.input'") == 0


async def test_an_unanswered_input_fails(start_worker: StartWorker) -> None:
    """It is repeated until request_ttl after its first attempt, then it fails and the next one is sent at once."""
    async with start_worker(request_backoff_first=0.1, request_backoff_most=0.3, request_ttl=3) as harness:
        task_id = await harness.make_active()
        first, second = [await send(harness, task_id, text) for text in ("one", "two")]
        await until_state(harness, first, "failed")
        detail = await harness.database.fetchval("SELECT detail FROM inputs ORDER BY ordinal LIMIT 1")
        assert detail == "No runner picked up the input in time."
        attempts = [each["attempt"] for each in harness.requests_of(task_id, "agent.input") if each["input"] == "one"]
        assert attempts == list(range(1, len(attempts) + 1))
        assert len(attempts) > 2
        await until_state(harness, second, "sent")
        assert await sent_with_the_decision_of(harness, first, second)
        await harness.until_metric(1, "taskherd_requests_given_up_total", type="agent.input")


async def test_strict_mode_refuses_inputs_for_a_busy_task(start_worker: StartWorker) -> None:
    """With send_mode strict an input for a busy task is refused, as Coder does, and nothing is queued."""
    async with start_worker(send_mode="strict") as harness:
        task_id = await harness.make_active()
        assert (await send(harness, task_id, "one"))["queued"] is False
        error = await harness.refused_command("task.send", task_id, input="two")
        assert error == {"status": 409, "message": "Task app is not ready to accept input."}
        assert await harness.database.fetchval("SELECT count(*) FROM inputs") == 1


async def test_reports_without_a_seq_keep_their_order(harness: WorkerHarness) -> None:
    """Of reports without a seq, in one array or in separate messages, the last one wins."""
    one, other = await harness.make_active(), await harness.make_active()
    processed = 6
    for last in ("idle", "working", "complete"):
        states = ["working", "idle", "complete", "working", last]
        await harness.report(*(make_report("app.status", one, state=state) for state in states))
        for state in states:
            await harness.report(make_report("app.status", other, state=state))
        processed += 2 * len(states)
        await harness.until_processed(processed)
        await harness.until_row("SELECT count(*) FROM outbox", is_=0)
        assert (harness.state(one)["state"], harness.state(other)["state"]) == (last, last)


async def test_a_send_is_executed_once_even_when_its_reply_is_forgotten(harness: WorkerHarness) -> None:
    """A send repeated after its reply was pruned is accepted and changes nothing, whatever the task's status is now."""
    task_id = await harness.make_active()
    command = make_command("task.send", task_id, input="one")
    first = await harness.send(command)
    waiting = make_command("task.send", task_id, input="two")
    assert (await harness.send(waiting))["queued"] is True
    await harness.report(make_report("task.input", task_id, input_id=first["input_id"], outcome="delivered"))
    await until_state(harness, first, "delivered")
    await harness.database.execute("DELETE FROM command_log")
    again = await harness.send(command)
    assert (again["ok"], again["input_id"], again["queued"]) == (True, first["input_id"], False)
    assert (await harness.send(waiting))["queued"] is True
    assert (await harness.command("task.pause", task_id))["ok"]
    await harness.database.execute("DELETE FROM command_log")
    assert (await harness.send(command))["ok"]
    await harness.until_metric(3, "taskherd_commands_total", type="task.send", outcome="repeated")
    other = await harness.make_active()
    for changed in ({"input": "other"}, {"task_id": str(other)}, {"actor_id": str(uuid.uuid4())}):
        await harness.database.execute("DELETE FROM command_log")
        reply = await harness.send({**command, **changed})
        assert reply["error"] == {"status": 409, "message": "command_id was used for another command."}
    assert await harness.database.fetchval("SELECT count(*) FROM inputs") == 2
    assert harness.dead_letters == []
