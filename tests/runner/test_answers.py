"""Answers to requests of agents, with real runners and agents: each reaches its agent once, or the report says not."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.workspaces.folders import TaskFolder
from tests.harness.runner import RunnerHarness, eventually, eventually_async, is_alive, json_lines
from tests.runner.test_acp_runner import acp_task

pytestmark = pytest.mark.timeout(180)
ASK = "ask: 1 execute Run make"
PROMPT = f"line: I begin.\n{ASK}\nline: It is done."


def reported(root: Path, task_id: uuid.UUID) -> list[dict[str, Any]]:
    """Return what a runner has reported about requests, in order."""
    lines = json_lines(TaskFolder(root, task_id).outbox)
    reports = [json.loads(report) for _, texts in lines for report in texts]
    return [report for report in reports if report["type"] == "agent.request"]


def states(harness: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the states that were reported of a task's requests, each report once."""
    return [each["state"] for each in {each["seq"]: each for each in reported(harness.root, task_id)}.values()]


async def opened(harness: RunnerHarness, task_id: uuid.UUID) -> dict[str, Any]:
    """Wait until a request was reported as open, and return it."""
    await eventually(lambda: reported(harness.root, task_id))
    return reported(harness.root, task_id)[0]


async def answer(harness: RunnerHarness, task_id: uuid.UUID, request: dict[str, Any], **fields: Any) -> None:
    """Send the runner an answer, as the worker does."""
    (start, *_) = harness.worker.requests_of(task_id, "workspace.start")
    given = {"option_id": "o-allow_once", "request_id": request["request_id"], **fields}
    await harness.repeat_request(start, "r1", type="agent.answer", **given)


async def until_counted(runner: Any, outcome: str, count: int = 1) -> None:
    """Wait until the runner has counted so many answers with an outcome."""
    line = f'outcome="{outcome}",type="agent.answer"}} {count}.0'
    await eventually_async(runner.metrics, lambda text: line in text)


def received(harness: RunnerHarness, task_id: uuid.UUID) -> list[Any]:
    """Return the results that the agent was given to its request."""
    lines = json_lines(harness.work(task_id) / "received.jsonl")
    return [each["result"] for each in lines if each.get("id") == "ask-1"]


ALLOWED = {"outcome": {"outcome": "selected", "optionId": "o-allow_once"}}


async def test_an_answer_is_given_once_however_often_it_comes(harness: RunnerHarness) -> None:
    """Copies before and after it was given do nothing, nor do those for another request or build."""
    runner = await harness.start()
    task_id = await acp_task(harness, prompt=PROMPT)
    request = await opened(harness, task_id)
    await harness.until_state(task_id, "idle", "Run make")
    await answer(harness, task_id, request, request_id=str(uuid.uuid4()))
    await answer(harness, task_id, request, build_number=2)
    await answer(harness, task_id, request, option_id="allow")
    await until_counted(runner, "ignored", 3)
    for _ in range(3):
        await answer(harness, task_id, request)
    await harness.until_state(task_id, "idle", "It is done.")
    await eventually(lambda: states(harness, task_id) == ["open", "answered"])  # only what was told is told again
    await answer(harness, task_id, request, option_id="o-reject_once")
    await until_counted(runner, "repeated", 3)
    await until_counted(runner, "done")
    assert received(harness, task_id) == [ALLOWED]
    await eventually(lambda: len(reported(harness.root, task_id)) >= 3)  # it was told again
    assert states(harness, task_id) == ["open", "answered"]


@pytest.mark.parametrize(
    "failpoint", ["request_record", "answer_receive", "line_record", "line_submit", "line_written"]
)
async def test_a_runner_killed_at_each_boundary(harness: RunnerHarness, failpoint: str) -> None:
    """The request outlives it, and the same process is given the answer once."""
    opens = failpoint == "request_record"
    first = await harness.start(**({"failpoint": f"{failpoint}:kill"} if opens else {}))
    task_id = await acp_task(harness, prompt=PROMPT)
    request = await opened(harness, task_id)
    agent = harness.agent(task_id)["agent"]
    if not opens:
        await harness.until_state(task_id, "idle", "Run make")
        await first.kill()
        second = await harness.start(failpoint=f"{failpoint}:kill")
        await answer(harness, task_id, request)
        await second.process.wait()
    await first.process.wait()
    last = await harness.start()
    if opens:
        await harness.until_state(task_id, "idle", "Run make")
    await answer(harness, task_id, request)  # the worker repeats it
    await harness.until_state(task_id, "idle", "It is done.")
    await eventually(lambda: states(harness, task_id) == ["open", "answered"])
    assert {each["request_id"] for each in reported(harness.root, task_id)} == {request["request_id"]}
    assert received(harness, task_id) == [ALLOWED]
    assert is_alive(agent)
    await until_counted(last, "ignored", 0)


@pytest.mark.parametrize("command", ["task.pause", "task.delete"])
async def test_a_stop_withdraws_what_is_open(harness: RunnerHarness, command: str) -> None:
    """The worker is told so, and an answer that comes later does nothing."""
    runner = await harness.start()
    task_id = await acp_task(harness, prompt=PROMPT)
    request = await opened(harness, task_id)
    await harness.until_state(task_id, "idle", "Run make")  # a pause is refused while its start is under way
    assert (await harness.worker.command(command, task_id))["ok"]
    if command == "task.delete":
        await eventually(lambda: not harness.state(task_id).exists())
    else:
        await eventually(lambda: states(harness, task_id) == ["open", "withdrawn"])
        await answer(harness, task_id, request)
        await until_counted(runner, "repeated")
    assert not harness.marked(task_id)


async def test_an_agent_that_waits_for_an_answer_has_not_finished(harness: RunnerHarness) -> None:
    """A resume after a pause in the middle of its turn gives it its prompt again, and it asks again."""
    await harness.start()
    task_id = await acp_task(harness, "load", prompt=PROMPT)
    await harness.until_state(task_id, "idle", "Run make")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await eventually(lambda: states(harness, task_id) == ["open", "withdrawn", "open"])
    first, *_, second = reported(harness.root, task_id)
    assert (first["build_number"], second["build_number"]) == (1, 3)
    await answer(harness, task_id, second, build_number=3)
    await harness.until_state(task_id, "idle", "It is done.")
    assert received(harness, task_id) == [ALLOWED]


async def test_a_drain_waits_for_answers(harness: RunnerHarness) -> None:
    """An agent that waits for an answer in its turn works: a draining runner still passes the answer on."""
    runner = await harness.start(runner_drain="wait:1m")
    task_id = await acp_task(harness, prompt=PROMPT)
    request = await opened(harness, task_id)
    await harness.until_state(task_id, "idle", "Run make")
    runner.process.terminate()
    await eventually_async(runner.ready, lambda ready: not ready)
    await answer(harness, task_id, request)
    async with asyncio.timeout(60):
        assert await runner.process.wait() == 0
    assert received(harness, task_id) == [ALLOWED]
    assert states(harness, task_id) == ["open", "answered"]


async def test_agents_of_other_kinds_get_no_answers(harness: RunnerHarness) -> None:
    """They open their requests over HTTP and fetch the answers, so the runner ignores what it is sent."""
    runner = await harness.start()
    request = {"request_id": str(uuid.uuid4())}
    task_id = await harness.task("say:up", "echo")
    await harness.until_state(task_id, "idle", "up")
    await answer(harness, task_id, request)
    await until_counted(runner, "ignored")
    assert (await harness.worker.command("task.send", task_id, input="hello"))["ok"]
    await harness.until_output(task_id, "hello")


async def test_a_person_answers_over_the_worker(harness: RunnerHarness) -> None:
    """From the agent's question to the task's document, to a person's answer, and back to the same process."""
    first = await harness.start()
    task_id = await acp_task(harness, prompt=PROMPT)
    await harness.until(lambda: harness.worker.document(task_id).get("requests_open") == 1)
    (shown,) = harness.worker.document(task_id)["requests"]
    assert (shown["kind"], shown["title"]) == ("approval", "Run make")
    await first.kill()
    fields = {"request_id": shown["id"], "option_id": "o-allow_once"}
    assert (await harness.worker.command("task.answer", task_id, **fields))["ok"]
    await harness.start()
    await harness.until_state(task_id, "idle", "It is done.")
    await harness.until(lambda: harness.worker.document(task_id)["requests_open"] == 0)
    refused = await harness.worker.refused_command("task.answer", task_id, **fields)
    assert (refused["status"], refused["message"]) == (409, "The request is no longer open.")
    assert received(harness, task_id) == [ALLOWED]
    assert states(harness, task_id) == ["open", "answered"]


async def test_a_text_beside_an_option_comes_after_the_answer(harness: RunnerHarness) -> None:
    """The worker sends it as a steer, which interrupts the turn if that goes on after the answer."""
    await harness.start()
    task_id = await acp_task(harness, prompt=f"{ASK}\nhang")
    await harness.until(lambda: harness.worker.document(task_id).get("requests_open") == 1)
    (shown,) = harness.worker.document(task_id)["requests"]
    fields = {"request_id": shown["id"], "option_id": "o-reject_once", "text": "line: Use tox instead."}
    assert (await harness.worker.command("task.answer", task_id, **fields))["ok"]
    await harness.until_state(task_id, "idle", "Use tox instead.")
    given = [each.get("method", "answer") for each in json_lines(harness.work(task_id) / "received.jsonl")]
    assert given[-3:] == ["answer", "session/cancel", "session/prompt"]
    assert received(harness, task_id) == [{"outcome": {"outcome": "selected", "optionId": "o-reject_once"}}]
