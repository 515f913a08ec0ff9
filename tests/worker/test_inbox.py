"""The inbox through the worker: inputs go out one at a time and in order, and each comes to an end that can be seen."""

from __future__ import annotations

import uuid
from typing import Any

from tests.harness.worker import Herd, build, order, said
from tests.worker.conftest import Herding


async def send(flock: Herd, task_id: uuid.UUID, text: str) -> dict[str, Any]:
    """Send an input, whose reply says that it was taken."""
    command = order("task.send", task_id, input=text)
    reply = await flock.send(command)
    assert reply["ok"], reply
    assert reply["input_id"] == command["command_id"]
    return reply


async def decide(flock: Herd, task_id: uuid.UUID, reply: dict[str, Any], outcome: str, **fields: Any) -> None:
    """Report an input's outcome and wait until it is in the database."""
    await flock.report(said("task.input", task_id, input_id=reply["input_id"], outcome=outcome, **fields))
    await until_state(flock, reply, outcome)


async def until_state(flock: Herd, reply: dict[str, Any], state: str) -> None:
    """Wait until an input is in this state."""
    await flock.until_row("SELECT state FROM inputs WHERE input_id = $1", uuid.UUID(reply["input_id"]), is_=state)


def inputs(flock: Herd, task_id: uuid.UUID) -> list[str]:
    """The inputs that were asked for, in order, each once."""
    return list(dict.fromkeys(each["input"] for each in flock.asked(task_id, "agent.input")))


async def idle(flock: Herd, task_id: uuid.UUID, state: str = "idle") -> None:
    """Report a state and wait until it is told."""
    message = uuid.uuid4().hex
    await flock.report(said("app.status", task_id, state=state, message=message))
    await flock.until(lambda: flock.state(task_id).get("message") == message)


async def test_inputs_go_one_at_a_time_and_in_order(flock: Herd) -> None:
    """The first goes at once; each next when the last was delivered and a state other than working came since."""
    task_id = await flock.active()
    first = await send(flock, task_id, "one")
    assert first["queued"] is False
    rest = [await send(flock, task_id, text) for text in ("two", "three")]
    assert [reply["queued"] for reply in rest] == [True, True]
    await flock.until(lambda: inputs(flock, task_id) == ["one"])
    request = flock.asked(task_id, "agent.input")[0]
    assert (request["input_id"], request["build_number"]) == (first["input_id"], 1)
    assert "agent.input.r1" in flock.routes(task_id)
    await idle(flock, task_id)
    await decide(flock, task_id, first, "delivered")
    await idle(flock, task_id, "working")
    assert await flock.database.fetchval("SELECT count(*) FROM inputs WHERE state = 'queued'") == 2
    await idle(flock, task_id)
    await flock.until(lambda: inputs(flock, task_id) == ["one", "two"])
    await decide(flock, task_id, rest[0], "delivered")
    await idle(flock, task_id, "complete")
    await flock.until(lambda: inputs(flock, task_id) == ["one", "two", "three"])
    states = await flock.database.fetch("SELECT content, state FROM inputs ORDER BY ordinal")
    assert [tuple(row) for row in states] == [("one", "delivered"), ("two", "delivered"), ("three", "sent")]
    assert {each["data"]["cause"]["type"] for each in flock.events} <= {
        "task.create", "app.status", "agent.heartbeat", "agent.lifecycle", "workspace.build"
    }  # fmt: skip


async def test_a_busy_agent_is_left_alone(flock: Herd) -> None:
    """While the state is working an input waits; it goes with the next state."""
    task_id = await flock.active()
    await idle(flock, task_id, "working")
    assert (await send(flock, task_id, "later"))["queued"] is True
    assert await flock.database.fetchval("SELECT count(*) FROM work_requests") == 0
    await idle(flock, task_id)
    await flock.until(lambda: inputs(flock, task_id) == ["later"])


async def test_the_next_goes_without_a_new_state(flock: Herd) -> None:
    """When a delivery is followed by no new state, the next input goes after 5 s all the same, not before."""
    task_id = await flock.active()
    first, second = [await send(flock, task_id, text) for text in ("one", "two")]
    await decide(flock, task_id, first, "delivered")
    await until_state(flock, second, "sent")
    waited = await flock.database.fetchval(
        "SELECT max(sent_at) - max(decided_at) >= interval '5 seconds' FROM inputs WHERE task_id = $1", task_id
    )
    assert waited is True


async def test_a_failed_input_lets_the_next_go_at_once(flock: Herd) -> None:
    """The failure and its detail are kept; the first outcome stands, whatever is said later."""
    task_id = await flock.active()
    first, second = [await send(flock, task_id, text) for text in ("one", "two")]
    await decide(flock, task_id, first, "failed", detail="The agent is gone")
    await until_state(flock, second, "sent")
    stale = said("task.input", task_id, input_id=first["input_id"], outcome="delivered")
    await flock.report(stale, stale)
    await decide(flock, task_id, second, "delivered")
    row = await flock.database.fetchrow("SELECT state, detail FROM inputs ORDER BY ordinal LIMIT 1")
    assert tuple(row) == ("failed", "The agent is gone")
    await flock.until_metric(2, "taskherd_reports_total", type="task.input", outcome="stale")
    assert flock.letters == []


async def test_an_outcome_of_an_input_that_was_never_sent(flock: Herd) -> None:
    """An outcome for one that still waits stands; the inbox goes on with the one behind it, and keeps its count."""
    task_id = await flock.active()
    first, second, third = [await send(flock, task_id, text) for text in ("one", "two", "three")]
    await decide(flock, task_id, second, "failed")
    await decide(flock, task_id, first, "failed")
    await until_state(flock, third, "sent")
    await decide(flock, task_id, third, "failed")
    await flock.until_row("SELECT memory -> 'inbox' IS NULL FROM tasks WHERE id = $1", task_id)
    assert (await send(flock, task_id, "four"))["queued"] is False


async def test_outcomes_of_sent_and_queued_inputs_in_one_batch(flock: Herd) -> None:
    """Several at once, the sent input's and those of some that still wait, let the first of the others go."""
    task_id = await flock.active()
    replies = [await send(flock, task_id, text) for text in ("one", "two", "three", "four", "five")]
    await flock.report(
        *(said("task.input", task_id, input_id=replies[n]["input_id"], outcome="failed") for n in (2, 0, 1))
    )
    await until_state(flock, replies[3], "sent")
    await decide(flock, task_id, replies[3], "failed")
    await until_state(flock, replies[4], "sent")
    await flock.until(lambda: inputs(flock, task_id) == ["one", "four", "five"])


async def test_an_unknown_input_is_buried(flock: Herd) -> None:
    """The outcome of an input that its task never had goes to the dead letters, another task's included."""
    task_id, other = await flock.active(), await flock.active()
    reply = await send(flock, task_id, "one")
    strange = said("task.input", other, input_id=reply["input_id"], outcome="delivered")
    await flock.report(strange, said("task.input", other, input_id=str(uuid.uuid4()), outcome="failed"))
    await flock.until(lambda: len(flock.letters) == 2)
    assert flock.reasons() == ["unknown_input"] * 2
    assert await flock.database.fetchval("SELECT state FROM inputs") == "sent"


async def test_a_pause_keeps_what_waits_and_a_delete_fails_it(flock: Herd) -> None:
    """Inputs wait through a pause and go out after the resume; a delete fails the rest, and asks for none of them."""
    task_id = await flock.active()
    await idle(flock, task_id, "working")
    first, second = [await send(flock, task_id, text) for text in ("one", "two")]
    assert (await flock.command("task.pause", task_id))["ok"]
    await flock.report(
        build(task_id, 2, "stop", "succeeded"), said("app.status", task_id, state="idle", build_number=1)
    )
    await flock.until(lambda: flock.state(task_id).get("state") == "idle")
    assert await flock.database.fetchval("SELECT count(*) FROM inputs WHERE state = 'queued'") == 2
    assert (await flock.command("task.resume", task_id))["ok"]
    await flock.active(task_id, 3)
    await flock.until(lambda: inputs(flock, task_id) == ["one"])
    assert flock.asked(task_id, "agent.input")[-1]["build_number"] == 3
    assert (await flock.command("task.delete", task_id))["ok"]
    for reply in (first, second):
        await until_state(flock, reply, "failed")
    assert await flock.database.fetchval("SELECT count(*) FROM inputs WHERE detail = 'The task was deleted.'") == 2
    assert await flock.database.fetchval("SELECT count(*) FROM work_requests WHERE type = 'agent.input'") == 0


async def test_an_input_that_nobody_takes_fails(herding: Herding) -> None:
    """Within request_ttl of its first sending it is repeated, then it fails visibly and the next one goes."""
    async with herding(request_backoff_first=0.1, request_backoff_most=0.3, request_ttl=1) as flock:
        task_id = await flock.active()
        first, second = [await send(flock, task_id, text) for text in ("one", "two")]
        await until_state(flock, first, "failed")
        detail = await flock.database.fetchval("SELECT detail FROM inputs ORDER BY ordinal LIMIT 1")
        assert detail == "No runner took the input in time."
        attempts = [each["attempt"] for each in flock.asked(task_id, "agent.input") if each["input"] == "one"]
        assert attempts == list(range(1, len(attempts) + 1))
        assert len(attempts) > 2
        await until_state(flock, second, "sent")
        await flock.until_metric(1, "taskherd_requests_given_up_total", type="agent.input")


async def test_a_strict_inbox_refuses_a_busy_task(herding: Herding) -> None:
    """With send_mode strict an input for a busy task is refused as Coder's servers do, and nothing is queued."""
    async with herding(send_mode="strict") as flock:
        task_id = await flock.active()
        assert (await send(flock, task_id, "one"))["queued"] is False
        error = await flock.refused("task.send", task_id, input="two")
        assert error == {"status": 409, "message": "Task app is not ready to accept input."}
        assert await flock.database.fetchval("SELECT count(*) FROM inputs") == 1


async def test_reports_without_a_seq_keep_their_order(flock: Herd) -> None:
    """Of reports without a seq that come at once, in one array or one after the other, the last is the greatest."""
    one, other = await flock.active(), await flock.active()
    taken = 6
    for last in ("idle", "working", "complete"):
        states = ["working", "idle", "complete", "working", last]
        await flock.report(*(said("app.status", one, state=state) for state in states))
        for state in states:
            await flock.report(said("app.status", other, state=state))
        taken += 2 * len(states)
        await flock.until_taken(taken)
        await flock.until_row("SELECT count(*) FROM outbox", is_=0)
        assert (flock.state(one)["state"], flock.state(other)["state"]) == (last, last)
