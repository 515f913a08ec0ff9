"""Requests of agents through the worker: document, answers and their work requests, inputs that answer, and kills."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import fork_server
from tests.harness.agent_requests import expected_requests, greatest_requests, random_request
from tests.harness.histories import report_fields, shuffled_batches
from tests.harness.worker import (
    ALICE,
    ORGANIZATION,
    SECRET,
    WorkerHarness,
    build_report,
    external_harness,
    make_command,
    make_report,
    running_worker,
)
from tests.worker.conftest import StartWorker
from tests.worker.test_inbox import report_state, requested_inputs
from tests.worker.test_interrupts import open_requests
from tests.worker.test_usage import processed, publish

if TYPE_CHECKING:
    from taskherd.domain.reports import Report

NO_LONGER = "The request is no longer open."
TASKS = 16


async def ask(harness: WorkerHarness, task_id: uuid.UUID, title: str = "Which package?", **fields: Any) -> str:
    """Report an open request, by default a question for a text, wait until the task shows it, and return its id."""
    request_id = str(uuid.uuid4())
    given = {"kind": "question", "title": title, "build_number": 1, "seq": 1, "state": "open", **fields}
    await harness.report(make_report("agent.request", task_id, request_id=request_id, **given))
    await harness.until(lambda: request_id in shown_open(harness, task_id))
    return request_id


async def close(harness: WorkerHarness, task_id: uuid.UUID, request_id: str, state: str, **fields: Any) -> None:
    """Report that a request is closed, and wait until its answer is no longer to be delivered."""
    given = {"kind": "question", "title": "Which package?", "build_number": 1, "seq": 2, "state": state, **fields}
    await harness.report(make_report("agent.request", task_id, request_id=request_id, **given))
    query = "SELECT report->>'state' FROM agent_requests WHERE task_id = $1 AND request_id = $2"
    await harness.until_row(query, task_id, uuid.UUID(request_id), is_=state)


async def answer(harness: WorkerHarness, task_id: uuid.UUID, request_id: str, **fields: Any) -> dict[str, Any]:
    """Answer a request, and return the reply."""
    reply = await harness.command("task.answer", task_id, request_id=request_id, **fields)
    assert reply["ok"], reply
    assert reply["answered"] == request_id
    return reply


def shown_open(harness: WorkerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the ids of the open requests in the task's document."""
    return [each["id"] for each in harness.document(task_id).get("requests", ())]


async def row_of(harness: WorkerHarness, request_id: str) -> Any:
    """Return the row of a request."""
    return await harness.database.fetchrow("SELECT * FROM agent_requests WHERE request_id = $1", uuid.UUID(request_id))


async def test_a_question_is_asked_answered_and_delivered(harness: WorkerHarness) -> None:
    """The document shows it, the answer goes to the build's runner until a report closes it; the history says who."""
    task_id = await harness.make_active()
    request_id = await ask(harness, task_id, detail="core or api?")
    opened = harness.events_of(task_id)[-1]
    assert opened["changes"] == ["requests", "requests_open"]
    assert opened["cause"] == {
        "kind": "report", "type": "agent.request", "id": request_id, "outcome": "open", "request": "Which package?",
    }  # fmt: skip
    row = await row_of(harness, request_id)
    since = row["since"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert opened["task"]["requests"] == [
        {"id": request_id, "kind": "question", "title": "Which package?", "since": since}
    ]
    assert opened["task"]["requests_open"] == 1
    assert (row["organization_id"], row["owner_id"], row["shown"]) == (ORGANIZATION, ALICE, "open")
    command = make_command("task.answer", task_id, request_id=request_id, text="core")
    reply = await harness.send(command)
    assert (reply["ok"], reply["answered"], reply["task"]["requests"]) == (True, request_id, [])
    await harness.until(lambda: harness.requests_of(task_id, "agent.answer"))
    request = harness.requests_of(task_id, "agent.answer")[0]
    assert (request["request_id"], request["text"], request["option_id"]) == (request_id, "core", None)
    assert (request["build_number"], "agent.answer.r1" in harness.routes(task_id)) == (1, True)
    await harness.until(lambda: shown_open(harness, task_id) == [])
    cause = harness.events_of(task_id)[-1]["cause"]
    assert (cause["actor_id"], cause["request"], cause["answer"]) == (str(ALICE), "Which package?", "core")
    assert (await harness.send(command)) == reply
    row = await row_of(harness, request_id)
    assert (row["shown"], row["answer_text"], row["answered_by"]) == ("answered", "core", ALICE)
    assert row["delivered_at"] is None
    refused = await harness.refused_command("task.answer", task_id, request_id=request_id, text="api")
    assert (refused["status"], refused["message"]) == (409, NO_LONGER)
    assert refused["detail"].startswith("It was answered with “core” by alice at 20")
    await close(harness, task_id, request_id, "answered", text="core")
    assert (await row_of(harness, request_id))["delivered_at"] is not None
    assert await open_requests(harness, task_id) == []
    await harness.report(make_report("agent.request", task_id, request_id=request_id, kind="question", title="Again",
                                     build_number=1, seq=9, state="open"))  # fmt: skip
    await harness.until_metric(1, "taskherd_reports_total", type="agent.request", outcome="stale")
    assert harness.reasons() == []


async def test_when_an_answer_is_refused(harness: WorkerHarness) -> None:
    """Task, request, whether it is open, then the answer: each has its own error, and changes nothing."""
    task_id = await harness.make_active()
    request_id = await ask(harness, task_id, kind="approval", tool={"kind": "execute", "input": {"command": "make"}})
    other = await harness.make_active()
    unknown = {"status": 404, "message": "Request not found."}
    assert (await harness.refused_command("task.answer", uuid.uuid4(), request_id=request_id))["status"] == 404
    assert await harness.refused_command("task.answer", task_id, request_id=str(uuid.uuid4())) == unknown
    assert await harness.refused_command("task.answer", other, request_id=request_id, option_id="allow") == unknown
    refused = await harness.refused_command("task.answer", task_id, request_id=request_id, option_id="maybe")
    assert (refused["status"], refused["message"]) == (400, "Invalid answer.")
    assert refused["validations"] == [{"field": "option_id", "detail": "One of these was expected: allow, reject."}]
    await close(harness, task_id, request_id, "expired", kind="approval", title="Run make")
    refused = await harness.refused_command("task.answer", task_id, request_id=request_id, option_id="maybe")
    assert (refused["message"], refused["detail"][:18]) == (NO_LONGER, "It expired, as was")
    assert await harness.database.fetchval("SELECT count(*) FROM work_requests WHERE type = 'agent.answer'") == 0


async def test_what_is_asked_of_one_task_is_not_mixed_with_another(harness: WorkerHarness) -> None:
    """Agents choose the ids of their requests: two tasks with the same id have two requests and two answers."""
    one, two = await harness.make_active(), await harness.make_active()
    request_id = await ask(harness, one)
    await harness.report(make_report("agent.request", two, request_id=request_id, build_number=1, seq=1,
                                     kind="question", title="Mine?", state="open"))  # fmt: skip
    await harness.until(lambda: shown_open(harness, two) == [request_id])
    await answer(harness, one, request_id, text="for one")
    await answer(harness, two, request_id, text="for two")
    await harness.until(lambda: harness.requests_of(one, "agent.answer") and harness.requests_of(two, "agent.answer"))
    texts = [harness.requests_of(each, "agent.answer")[0]["text"] for each in (one, two)]
    assert texts == ["for one", "for two"]
    await close(harness, one, request_id, "withdrawn")
    assert (await open_requests(harness, one), await open_requests(harness, two)) == ([], ["agent.answer"])


async def test_an_answer_is_repeated_until_a_report_closes_the_request(start_worker: StartWorker) -> None:
    """Whatever the time to live of other requests is; a pause ends it, and shows the request as withdrawn."""
    settings = {"request_backoff_first": 0.1, "request_backoff_most": 0.2, "request_ttl": 1}
    async with start_worker(**settings) as harness:
        task_id = await harness.make_active()
        request_id = await ask(harness, task_id)
        await answer(harness, task_id, request_id, text="core")
        await harness.until(lambda: len(harness.requests_of(task_id, "agent.answer")) >= 12)
        assert {each["request_id"] for each in harness.requests_of(task_id, "agent.answer")} == {request_id}
        assert (await row_of(harness, request_id))["shown"] == "answered"
        assert (await harness.command("task.pause", task_id))["ok"]
        assert "agent.answer" not in await open_requests(harness, task_id)
        assert (await row_of(harness, request_id))["shown"] == "withdrawn"
        refused = await harness.refused_command("task.answer", task_id, request_id=request_id, text="api")
        assert refused["message"] == NO_LONGER


async def test_the_end_of_the_agent_withdraws_what_it_asked(harness: WorkerHarness) -> None:
    """The document shows none any more, and the row says so, without a report of the request."""
    task_id = await harness.make_active()
    asked = [await ask(harness, task_id, f"Question {number}?", seq=number) for number in range(3)]
    await answer(harness, task_id, asked[0], text="core")
    await harness.until(lambda: shown_open(harness, task_id) == asked[1:])
    query = "SELECT waiting FROM task_index_changes WHERE task_id = $1 UNION ALL SELECT waiting FROM task_index"
    assert await harness.database.fetchval(query, task_id) is True
    await harness.report(make_report("agent.exit", task_id, build_number=1, why="exited", status=0))
    await harness.until(lambda: harness.document(task_id)["agent_exit"])
    assert (harness.document(task_id)["requests"], harness.document(task_id)["requests_open"]) == ([], 0)
    rows = await harness.database.fetch("SELECT shown FROM agent_requests WHERE task_id = $1", task_id)
    assert [row["shown"] for row in rows] == ["withdrawn"] * 3
    assert "agent.answer" not in await open_requests(harness, task_id)


async def test_an_input_answers_the_only_question(harness: WorkerHarness) -> None:
    """The reply names the request and no input; other inputs wait while the agent asks, and until it has its answer."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "idle")
    request_id = await ask(harness, task_id)
    reply = await harness.command("task.send", task_id, input="core")
    assert (reply["answered"], "input_id" in reply) == (request_id, False)
    await harness.until(lambda: harness.requests_of(task_id, "agent.answer"))
    assert harness.requests_of(task_id, "agent.answer")[0]["text"] == "core"
    queued = await harness.command("task.send", task_id, input="and more")
    assert (queued["queued"], "answered" in queued) == (True, False)
    assert requested_inputs(harness, task_id) == []
    await close(harness, task_id, request_id, "answered", text="core")
    await report_state(harness, task_id, "working")
    await report_state(harness, task_id, "idle")
    await harness.until(lambda: requested_inputs(harness, task_id) == ["and more"])


async def forget_replies(harness: WorkerHarness) -> None:
    """Forget every reply that is pruned by its age, as if all were old."""
    await harness.database.execute("DELETE FROM command_log WHERE NOT kept_until_erased")


async def test_an_input_answers_once_however_late_it_is_repeated(harness: WorkerHarness) -> None:
    """After the other replies were pruned, it is neither sent to the agent nor the answer to its next question."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "idle")
    first = await ask(harness, task_id)
    command = make_command("task.send", task_id, input="core")
    answered = await harness.send(command)
    assert answered["answered"] == first
    await close(harness, task_id, first, "answered", text="core")
    await harness.until(lambda: shown_open(harness, task_id) == [])
    await forget_replies(harness)
    assert await harness.send(command) == answered
    second = await ask(harness, task_id, title="Which branch?")
    await forget_replies(harness)
    assert await harness.send(command) == answered
    assert shown_open(harness, task_id) == [second]
    for changed in ({"input": "main"}, {"actor_id": str(uuid.uuid4())}):
        reply = await harness.send({**command, **changed})
        assert reply["error"] == {"status": 409, "message": "command_id was used for another command."}
    assert (await harness.command("task.send", task_id, input="main"))["answered"] == second
    assert await harness.database.fetchval("SELECT count(*) FROM inputs") == 0


async def test_a_text_to_an_option_steers(harness: WorkerHarness) -> None:
    """In one transaction the answer is accepted, the agent interrupted, the text queued; the answer is sent first."""
    task_id = await harness.make_active()
    request_id = await ask(harness, task_id, kind="approval")
    await report_state(harness, task_id, "idle")
    reply = await answer(harness, task_id, request_id, option_id="reject", text="Use make check")
    assert (reply["queued"], reply["input_id"], reply["interrupt_id"] is not None) == (
        True,
        reply["interrupt_id"],
        True,
    )
    assert await open_requests(harness, task_id) == ["agent.answer", "agent.interrupt"]
    await harness.until(lambda: harness.requests_of(task_id, "agent.interrupt"))
    types = [each["type"] for each in harness.requests_of(task_id, "agent.")]
    assert types.index("agent.answer") < types.index("agent.interrupt")
    assert harness.requests_of(task_id, "agent.answer")[0]["text"] is None
    await close(harness, task_id, request_id, "answered", option_id="reject", kind="approval")
    await harness.report(make_report("agent.interrupted", task_id, interrupt_id=reply["interrupt_id"], outcome="ended"))
    await harness.until(lambda: requested_inputs(harness, task_id) == ["Use make check"])


async def test_an_agent_that_asks_can_be_interrupted(harness: WorkerHarness) -> None:
    """A request is open, so there is something to interrupt, whatever state the agent reported."""
    task_id = await harness.make_active()
    await report_state(harness, task_id, "idle")
    await harness.refused_command("task.interrupt", task_id)
    request_id = await ask(harness, task_id)
    assert (await harness.command("task.interrupt", task_id))["ok"]
    assert shown_open(harness, task_id) == [request_id]
    await close(harness, task_id, request_id, "withdrawn")
    await harness.until(lambda: shown_open(harness, task_id) == [])


async def test_with_pull_the_agent_fetches_its_answer(harness: WorkerHarness) -> None:
    """Nothing is sent to a runner, and the answer counts as delivered when it is accepted."""
    task_id = await harness.make_active()
    request_id = await ask(harness, task_id, kind="approval", pull=True)
    await answer(harness, task_id, request_id, option_id="allow")
    row = await row_of(harness, request_id)
    assert (row["shown"], row["delivered_at"]) == ("answered", row["answered_at"])
    assert await open_requests(harness, task_id) == []


async def test_the_101st_open_request_is_a_dead_letter(harness: WorkerHarness) -> None:
    """The document shows the first ten and counts all; a further one is dead-lettered with a reason of its own."""
    task_id = await harness.make_active()
    asked = [
        make_report("agent.request", task_id, request_id=str(uuid.UUID(int=number)), build_number=1, seq=1,
                    kind="question", title=f"Question {number}?", state="open")
        for number in range(101)
    ]  # fmt: skip
    await harness.report(*asked)
    await harness.until(lambda: harness.dead_letters)
    assert harness.reasons() == ["requests_overflow"]
    await harness.until(lambda: harness.document(task_id).get("requests_open") == 100)
    assert shown_open(harness, task_id) == [str(uuid.UUID(int=number)) for number in range(10)]


async def test_a_request_is_parked_until_its_task_is_created(harness: WorkerHarness) -> None:
    """One for a task that does not exist yet shows with the create, and one for a deleted task is counted."""
    task_id, request_id = uuid.uuid4(), str(uuid.uuid4())
    asked = make_report("agent.request", task_id, request_id=request_id, build_number=1, seq=1, kind="approval",
                        title="Run make", state="open")  # fmt: skip
    await harness.report(asked)
    await harness.until_row("SELECT count(*) FROM parked WHERE task_id = $1", task_id, is_=1)
    await harness.create(task_id)
    await harness.until(lambda: shown_open(harness, task_id) == [request_id])
    assert json.loads((await row_of(harness, request_id))["report"])["options"][0]["id"] == "allow"
    assert (await harness.command("task.delete", task_id))["ok"]
    assert (await row_of(harness, request_id))["shown"] == "withdrawn"
    await harness.report({**asked, "seq": 2})
    await harness.until_metric(1, "taskherd_reports_total", type="agent.request", outcome="tombstone")


async def test_an_answer_waits_for_the_runner_of_the_build(harness: WorkerHarness) -> None:
    """While the build's runner is not known, nothing is sent, least of all to the pool; then its runner gets it."""
    task_id = await harness.create()
    await harness.report(build_report(task_id, 1, "start", "running"))
    request_id = await ask(harness, task_id)
    await answer(harness, task_id, request_id, text="core")
    assert await open_requests(harness, task_id) == ["agent.answer"]
    await harness.report(build_report(task_id, 1, "start", "succeeded", runner="r7"))
    await harness.until(lambda: harness.requests_of(task_id, "agent.answer"))
    assert {route for route in harness.routes(task_id) if route.startswith("agent.")} == {"agent.answer.r7"}


async def test_the_state_of_an_earlier_release_is_completed(harness: WorkerHarness) -> None:
    """A worker of an earlier release saves a state without requests: they can be answered all the same."""
    task_id = await harness.make_active()
    request_id = await ask(harness, task_id)
    await harness.database.execute("UPDATE tasks SET state = (state::jsonb - 'requests')::json")
    await answer(harness, task_id, request_id, text="core")
    assert await open_requests(harness, task_id) == ["agent.answer"]


async def test_other_messages_run_no_statement_about_requests(harness: WorkerHarness) -> None:
    """Reports of other types neither read nor write requests, also of a task that has some; nor does another input."""
    task_id = await harness.make_active()
    await ask(harness, task_id, kind="approval")
    locked = harness.database.transaction()
    await locked.start()
    await harness.database.execute("LOCK TABLE agent_requests IN ACCESS EXCLUSIVE MODE")
    await report_state(harness, task_id, "idle")
    assert (await harness.command("task.send", task_id, input="later"))["queued"] is True
    assert harness.document(task_id)["requests_open"] == 1
    await locked.rollback()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_requests_converge_with_two_workers(external: WorkerHarness, seed: int) -> None:
    """Law 1 through a database: permuted and repeated, some before their task exists, all show as the contract says."""
    harness, rng = external, Random(seed)
    ids = [uuid.uuid4() for _ in range(TASKS)]
    reports: dict[uuid.UUID, list[Report]] = {
        task_id: [random_request(rng, task_id) for _ in range(rng.randrange(1, 25))] for task_id in ids
    }
    batches = [batch for told in reports.values() for batch in shuffled_batches(rng, told)]
    rng.shuffle(batches)
    half, count = len(batches) // 2, sum(map(len, batches))
    async with running_worker(harness) as one, running_worker(harness) as two:
        await publish(harness, batches[:half])
        for task_id in ids:
            await harness.create(task_id)
        await publish(harness, batches[half:])
        async with asyncio.timeout(120):
            while processed(one, two) < count:  # noqa: ASYNC110 - a counter sends no notification
                await asyncio.sleep(0.05)
    pending = {"transition": "start", "job_status": "pending", "build_number": 1}
    for task_id in ids:
        rows = await harness.database.fetch("SELECT * FROM agent_requests WHERE task_id = $1", task_id)
        expected = expected_requests(reports[task_id], pending, agent_ended=False)
        assert {row["request_id"]: row["shown"] for row in rows} == expected
        greatest = greatest_requests(reports[task_id])
        assert {row["request_id"]: json.loads(row["report"]) for row in rows} == greatest
        document = json.loads(await harness.database.fetchval("SELECT document FROM tasks WHERE id = $1", task_id))
        asked = {str(each) for each, shown in expected.items() if shown == "open"}
        assert ({each["id"] for each in document["requests"]}, document["requests_open"]) == (asked, len(asked))
    assert report_fields(reports[ids[0]][0])["type"] == "agent.request"
    assert harness.reasons() == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("failpoint", ["agent_requests_saved", "answer_committed", "answer_send", "answer_sent"])
async def test_a_worker_killed_while_it_takes_an_answer(
    database_url: str, amqp_url: str, amqp_prefix: str, failpoint: str
) -> None:
    """Wherever it dies, the next worker accepts the answer once, and has it delivered to this request alone."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        async with running_worker(harness):
            task_id = await harness.make_active()
            request_id = await ask(harness, task_id)
        command = make_command("task.answer", task_id, request_id=request_id, text="core")
        await harness.post(command)
        settings = {
            "database_url": database_url,
            "amqp_url": amqp_url,
            "amqp_prefix": amqp_prefix,
            "secret_key": SECRET,
            "ops_port": "0",
            "failpoint": f"{failpoint}:kill",
            "request_backoff_first": "500ms",
        }
        environment = {**os.environ, **{f"TASKHERD_{name.upper()}": value for name, value in settings.items()}}
        process = await fork_server.start("worker", environment)
        assert await asyncio.wait_for(process.wait(), 60) == -9
        async with running_worker(harness):
            assert (await harness.send(command))["answered"] == request_id
            await harness.until(lambda: harness.requests_of(task_id, "agent.answer"))
            request = harness.requests_of(task_id, "agent.answer")[-1]
            assert (request["request_id"], request["text"]) == (request_id, "core")
            refused = await harness.refused_command("task.answer", task_id, request_id=request_id, text="api")
            assert refused["message"] == NO_LONGER
            await close(harness, task_id, request_id, "answered", text="core")
            assert await open_requests(harness, task_id) == []
        assert await harness.database.fetchval("SELECT count(*) FROM agent_requests") == 1
