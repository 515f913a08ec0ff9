"""``taskherd requests``, ``task requests`` and ``task answer``, and the tools of ``taskherd mcp``, with a real API."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from taskherd.cli.main import app
from taskherd.client import asking
from taskherd.client.errors import ClientError
from taskherd.client.http import Client
from taskherd.messages.agent_tokens import agent_token
from taskherd.observability import logs
from tests.api.conftest import StartApi
from tests.api.test_command_line import Shell
from tests.api.test_mcp import call, mcp_client
from tests.harness.api import ApiHarness, running_api
from tests.harness.asking import OPTIONS, active, approval, asked, closed, give, request_report, requests_of
from tests.harness.runner import eventually_async
from tests.harness.worker import SECRET, running_worker


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Keep the log of the worker, which runs in the same process, out of the output of commands."""
    logs.configure("warning", "auto")


async def fleet(harness: ApiHarness, *words: str, user: str = "carol", **env: str) -> Result:
    """Run ``taskherd requests``."""
    environ = {**Shell(harness, user).env, **env}
    return await asyncio.to_thread(CliRunner().invoke, app, ["requests", *words], env=environ)


async def test_the_only_request_is_answered_without_its_id(api_harness: ApiHarness) -> None:
    """An approval with the name or label of an option, a question with a text; who was first is told."""
    task_id, shell = await active(api_harness, name="one"), Shell(api_harness)
    first = await approval(api_harness, task_id, title="May I?")
    assert (await shell.json("answer", "one", "allow ONCE")) == {"request_id": str(first), "option_id": "yes"}
    assert (await shell.code("answer", "one", "yes")) == (6, "taskherd: the agent asks nothing\n")
    second = await asked(api_harness, task_id, title="Which one?")
    done = await shell.run("answer", "one", "--text", "-", stdin="The \x1b first")
    assert (done.exit_code, done.stdout) == (0, "Answered: Which one?\n")
    found = {each["id"]: each["answer"] for each in await requests_of(api_harness.alice, task_id)}
    assert (found[str(first)]["option_id"], found[str(second)]["text"]) == ("yes", "The  first")
    await asked(api_harness, task_id, title="Anything else?")
    assert (await shell.run("send", "one", "No")).stdout == "Sent: it answered what the agent asked.\n"
    third = await asked(api_harness, task_id, title="Really?")
    assert (await shell.json("send", "one", "Yes")) == {"queued": False, "answered": str(third)}


async def test_one_of_several_is_named(api_harness: ApiHarness) -> None:
    """Without an id the open ones are listed, and nothing is answered."""
    task_id, shell = await active(api_harness, name="two"), Shell(api_harness)
    first = await approval(api_harness, task_id, title="May I \x1b push?")
    second = await asked(api_harness, task_id, title="Which branch?")
    code, said = await shell.code("answer", "two", "yes")
    assert code == 2
    assert said.splitlines() == [
        "taskherd: the agent asks 2 things",
        "  choose one of:",
        f"  {str(first)[:8]}  May I push?",
        f"  {str(second)[:8]}  Which branch?",
    ]
    assert (await shell.code("answer", "two", str(first)[:8]))[0] == 2
    assert (await shell.code("answer", "two", str(first)[:8], "no"))[0] == 0
    assert (await shell.code("answer", "two", str(second), "main"))[0] == 0
    assert (await shell.code("answer", "two", "a", "b", "c"))[0] == 2
    assert (await shell.code("answer", "nothing", "yes"))[0] == 5
    answers = {each["id"]: each["answer"] for each in await requests_of(api_harness.alice, task_id)}
    assert (answers[str(first)]["option_id"], answers[str(second)]["text"]) == ("no", "main")


async def test_requests_shows_what_is_asked_and_was_answered(api_harness: ApiHarness) -> None:
    """Open ones first, with all that answering needs and the command that does it; others with who answered."""
    task_id, shell = await active(api_harness, name="shows"), Shell(api_harness)
    assert (await shell.json("requests", "shows")) == []
    old = await approval(api_harness, task_id, title="May I stop?")
    assert (await give(api_harness.carol, task_id, old, option_id="no")).status_code == 204
    fields: dict[str, Any] = {"kind": "approval", "options": OPTIONS, "title": "May I stop?"}
    await closed(api_harness, task_id, old, state="answered", option_id="no", **fields)
    tool = {"kind": "execute", "name": "Bash", "input": {"command": "make \x1b[2J clean"}}
    request_id = await approval(api_harness, task_id, title="May I clean up?", detail="It is full.", tool=tool)
    printed = (await shell.run("requests", "shows")).stdout
    lines = printed.splitlines()
    assert lines[1].split()[:2] == [str(request_id)[:8], "open"]
    assert lines[2].split()[:2] == [str(old)[:8], "answered"]
    assert "carol: No" in lines[2]
    for text in ("May I clean up?", "It is full.", "execute: Bash make", "yes (Allow once)"):
        assert text in printed
    assert f"taskherd task answer shows {str(request_id)[:8]} yes" in printed
    assert "\x1b" not in printed
    assert [each["id"] for each in await shell.json("requests", "shows")] == [str(request_id), str(old)]
    assert [each["id"] for each in await shell.json("requests", "shows", "--open")] == [str(request_id)]
    assert "May I clean up?" in (await shell.run("show", "shows")).stdout
    assert "asks: May I clean up?" in (await shell.run("list")).stdout


@pytest.mark.parametrize("option", ["a; touch /tmp/x $(id)", "it's `id`", "-rf", "--text"])
async def test_the_command_that_answers_can_be_copied(api_harness: ApiHarness, option: str) -> None:
    """Whatever an agent calls an option, the line that is printed answers with that one, and runs nothing else."""
    task_id, shell = await active(api_harness, name="copied"), Shell(api_harness)
    options = [{"id": option, "label": "Allow", "kind": "allow_once"}]
    request_id = await approval(api_harness, task_id, title="May I?", options=options)
    printed = (await shell.run("requests", "copied")).stdout
    (line,) = [line for line in printed.splitlines() if line.startswith("next")]
    dashes = ["--"] if option.startswith("-") else []
    words = shlex.split(line.removeprefix("next"))
    assert words == ["taskherd", "task", "answer", *dashes, "copied", str(request_id)[:8], option]
    assert (await shell.run(*words[2:])).stdout == "Answered: May I?\n"
    (request,) = await requests_of(api_harness.alice, task_id)
    assert request["answer"]["option_id"] == option


async def test_the_fleets_queue(api_harness: ApiHarness) -> None:
    """``taskherd requests`` lists what waits, oldest first, by any search; its exit codes are those of the client."""
    assert (await fleet(api_harness)).stderr == "No agent waits for an answer.\n"
    one, two = await active(api_harness, name="one"), await active(api_harness, name="two")
    for number in range(3):
        await asked(api_harness, (one, two)[number % 2], title=f"Number {number}")
    lines = (await fleet(api_harness)).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["TASK", "alice/one", "alice/two", "alice/one"]
    assert lines[1].endswith("Number 0  (text)")
    found = json.loads((await fleet(api_harness, "-o", "json", "--query", "name:two")).stdout)
    assert [each["title"] for each in found] == ["Number 1"]
    limited = await fleet(api_harness, "--limit", "2")
    assert len(limited.stdout.splitlines()) == 3
    assert "Only the oldest 2" in limited.stderr
    assert (await fleet(api_harness, "--query", "color:red")).exit_code == 6
    assert (await fleet(api_harness, TASKHERD_TOKEN="wrong")).exit_code == 4


async def test_an_assistant_answers(api_harness: ApiHarness) -> None:
    """What is not clear is listed for the model, which then says which one; the status of a task says what it asks."""
    task_id = await active(api_harness, name="helped")
    request_id = await approval(api_harness, task_id, title="May I?")
    async with mcp_client(TASKHERD_URL=api_harness.base, TASKHERD_TOKEN=api_harness.tokens["alice"]) as client:
        status = await call(client, "coder_get_task_status", task_id="helped")
        assert (status["requests_open"], status["requests"][0]["title"]) == (1, "May I?")
        unclear = await client.call_tool("answer_task_request", {"task_id": "helped"})
        assert unclear.is_error
        assert "yes, always, no" in str(unclear.content)
        done = await call(client, "answer_task_request", task_id="helped", option="No")
        assert (done["request_id"], done["title"]) == (str(request_id), "May I?")
        await asked(api_harness, task_id, title="Why?")
        sent = await call(client, "coder_send_task_input", task_id="helped", input="Because")
        assert "answered" in sent["message"]
        late = await client.call_tool("answer_task_request", {"task_id": "helped", "text": "Because"})
        assert (late.is_error, "asks nothing" in str(late.content)) == (True, True)
    answers = [
        each["answer"]["text"] or each["answer"]["option_id"] for each in await requests_of(api_harness.alice, task_id)
    ]
    assert answers == ["Because", "no"]


async def test_an_agent_asks_a_person(api_harness: ApiHarness) -> None:
    """The tool returns the answer once there is one; other tools work meanwhile, and an end withdraws the question."""
    task_id = await active(api_harness)
    token = agent_token(SECRET, task_id, 1)
    async with mcp_client(CODER_AGENT_URL=api_harness.base, CODER_AGENT_TOKEN=token) as client:
        arguments = {
            "question": "Which one?",
            "detail": "Two are possible.",
            "options": "The fast one\n\nThe safe one\n",
        }
        asking_ = asyncio.create_task(call(client, "ask_person", **arguments))
        request_id = await first_open(api_harness, task_id)
        await call(client, "coder_report_task", summary="Waiting", link="", state="idle")
        (request,) = await requests_of(api_harness.alice, task_id)
        assert [each["label"] for each in request["options"]] == ["The fast one", "The safe one"]
        assert (request["detail"], request["pull"]) == ("Two are possible.", True)
        assert (await give(api_harness.carol, task_id, request_id, option_id="2")).status_code == 204
        assert await asking_ == {"state": "answered", "option": "The safe one", "text": None}
        asking_ = asyncio.create_task(call(client, "ask_person", question="And why?"))
        second = await first_open(api_harness, task_id, after=request_id)
        assert (await give(api_harness.alice, task_id, second, text="So")).status_code == 204
        assert await asking_ == {"state": "answered", "option": None, "text": "So"}
        refused = await client.call_tool(
            "ask_person", {"question": "Too many", "options": "\n".join(map(str, range(17)))}
        )
        assert refused.is_error
        assert "options" in str(refused.content)


async def first_open(harness: ApiHarness, task_id: uuid.UUID, after: uuid.UUID | None = None) -> uuid.UUID:
    """Wait until the task shows an open request, another than ``after``, and return its id."""

    def shown() -> list[str]:
        return [each["id"] for each in harness.worker.document(task_id).get("requests", ()) if each["id"] != str(after)]

    await harness.worker.until(shown)
    return uuid.UUID(shown()[0])


async def test_who_no_longer_waits_withdraws(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is cancelled, or whose client is gone, closes its request; so nobody answers to nobody."""
    monkeypatch.setattr(asking, "WAIT", 1.0)
    task_id = await active(api_harness)
    client = asking_client(api_harness, task_id)
    cancelled: list[bool] = []
    fields = {"kind": "question", "title": "Anybody?"}
    waiting = asyncio.create_task(asyncio.to_thread(asking.ask, client, fields, lambda: bool(cancelled)))
    await first_open(api_harness, task_id)
    cancelled.append(True)
    assert (await waiting)["state"] == "withdrawn"
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id)["requests_open"] == 0)
    (request,) = await requests_of(api_harness.alice, task_id)
    assert request["state"] == "withdrawn"


def asking_client(harness: ApiHarness, task_id: uuid.UUID) -> Client:
    """Return a client with the token of the task's agent."""
    return Client(harness.base, agent_token(SECRET, task_id, 1))


async def test_a_question_that_is_not_accepted(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no worker takes it, the tool says so after a while; it is withdrawn, so that a later send is no answer."""
    monkeypatch.setattr(asking, "WAIT", 0.0)
    monkeypatch.setattr(asking, "ACCEPTED_WITHIN", 0.2)
    async with start_api() as harness:
        task_id = await active(harness)
        harness.worker.worker.stop()
        # a probe of the worker may stay in the queue
        await eventually_async(partial(harness.worker.queue_counts, "reports"), lambda counts: counts[1] == 0)
        fields = {"kind": "question", "title": "Anybody?"}
        with pytest.raises(ClientError, match="not accepted"):
            await asyncio.to_thread(asking.ask, asking_client(harness, task_id), fields, lambda: False)
        async with running_worker(harness.worker):
            closed_ = "SELECT report::json ->> 'state' FROM agent_requests WHERE task_id = $1"
            await harness.worker.until_row(closed_, task_id, is_="withdrawn")
            sent = await harness.alice.post(f"/tasks/me/{task_id}/send", json={"input": "Go on"})
            assert (sent.status_code, sent.headers.get("X-Taskherd-Answered")) == (204, None)
            shown = (await harness.alice.get(f"/tasks/me/{task_id}")).json()
            assert shown["requests_open"] == 0


async def test_one_question_too_many(api_harness: ApiHarness) -> None:
    """An agent that has asked too much is told so at once."""
    task_id = await active(api_harness)
    await api_harness.worker.report(
        *(request_report(task_id, uuid.uuid4(), title=f"Number {number}") for number in range(100))
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 100)
    fields = {"kind": "question", "title": "One too many"}
    with pytest.raises(ClientError, match="A task may have 100"):
        await asyncio.to_thread(asking.ask, asking_client(api_harness, task_id), fields, lambda: False)


async def test_a_question_outlives_a_restart_of_the_api(
    start_api: StartApi, database_url: str, amqp_url: str, amqp_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no API answers, the tool goes on asking for the answer, and gets it from the next one."""
    monkeypatch.setattr(asking, "PAUSE", 0.05)
    async with start_api() as harness:
        task_id = await active(harness)
        async with running_api(database_url, amqp_url, amqp_prefix) as api:
            port = api.port
            client = Client(f"http://127.0.0.1:{port}", agent_token(SECRET, task_id, 1))
            waiting = asyncio.create_task(
                asyncio.to_thread(asking.ask, client, {"kind": "question", "title": "Still?"}, lambda: False)
            )
            request_id = await first_open(harness, task_id)
        assert (await give(harness.alice, task_id, request_id, text="Still")).status_code == 204
        assert not waiting.done()
        async with running_api(database_url, amqp_url, amqp_prefix, api_port=port):
            assert (await waiting)["text"] == "Still"
