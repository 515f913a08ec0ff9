"""What agents ask with their own token: they open, withdraw and read requests of their own build, and never answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest

from taskherd.api.agents import requests
from taskherd.domain import agent_requests
from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.api.test_access import SIGNED_OUT
from tests.api.test_interrupts import end, working
from tests.api.test_open_requests import BOUND
from tests.api.test_request_queue import queue
from tests.api.test_sse import until_subscribers
from tests.harness.api import ALICE, TIMEOUT, ApiHarness
from tests.harness.asking import (
    OPTIONS,
    OWN,
    active,
    as_agent,
    asked,
    give,
    own,
    request_report,
    requests_of,
    shows,
)
from tests.harness.worker import SECRET, build_report, make_report

QUESTION = {"kind": "question", "title": "Which one?"}


async def read(harness: ApiHarness, task_id: uuid.UUID, request_id: uuid.UUID, wait: str = "") -> dict[str, Any]:
    """Return a request as its agent reads it."""
    query = {"wait": wait} if wait else {}
    response = await as_agent(harness, task_id, "GET", f"{OWN}/{request_id}", params=query)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_an_agent_asks_and_waits_for_the_answer(api_harness: ApiHarness) -> None:
    """The long poll ends with the answer at once, which then counts as delivered; no work request is sent."""
    task_id = await active(api_harness)
    request_id = await own(api_harness, task_id, kind="approval", title="May I?", options=OPTIONS)
    opened = {"request_id": str(request_id), "kind": "approval", "title": "May I?", "state": "open"}
    assert await read(api_harness, task_id, request_id) == {**opened, "option_id": None, "text": None}
    assert await read(api_harness, task_id, request_id, "50ms") == {**opened, "option_id": None, "text": None}
    waiting = asyncio.create_task(read(api_harness, task_id, request_id, "30s"))
    await until_subscribers(api_harness, 1)
    started = asyncio.get_running_loop().time()
    assert (await give(api_harness.carol, task_id, request_id, option_id="yes")).status_code == 204
    answered = {**opened, "state": "answered", "option_id": "yes", "text": None}
    assert await waiting == answered
    assert asyncio.get_running_loop().time() - started < 5
    assert not api_harness.api.change_feed._subscribers
    assert await read(api_harness, task_id, request_id) == answered
    assert await read(api_harness, task_id, request_id, "60s") == answered  # at once: the client would not wait so long
    (request,) = await requests_of(api_harness.alice, task_id)
    assert request["pull"] is True
    assert request["answer"]["delivered_at"] == request["answer"]["at"]
    assert api_harness.worker.requests_of(task_id, "agent.answer") == []


async def test_a_request_may_be_read_before_it_is_known(api_harness: ApiHarness) -> None:
    """Who waits for a request that the worker has not taken yet gets it; without the wait there is none."""
    task_id, request_id = await active(api_harness), uuid.uuid4()
    path = f"{OWN}/{request_id}"
    assert (await as_agent(api_harness, task_id, "GET", path)).status_code == 404
    assert (await as_agent(api_harness, task_id, "GET", f"{path}?wait=20ms")).status_code == 404
    waiting = asyncio.create_task(read(api_harness, task_id, request_id, "30s"))
    await until_subscribers(api_harness, 1)
    body = {**QUESTION, "request_id": str(request_id)}
    assert (await as_agent(api_harness, task_id, "POST", json=body)).json() == {"request_id": str(request_id)}
    await api_harness.worker.until(lambda: shows(api_harness, task_id, request_id))
    assert (await give(api_harness.alice, task_id, request_id, text="The first")).status_code == 204
    assert (await waiting)["text"] == "The first"


async def test_an_agent_withdraws_its_request(api_harness: ApiHarness) -> None:
    """It is then closed for good; who waits for it learns that, and a repetition of the question changes nothing."""
    task_id = await active(api_harness)
    request_id = await own(api_harness, task_id, **QUESTION)
    waiting = asyncio.create_task(read(api_harness, task_id, request_id, "30s"))
    await until_subscribers(api_harness, 1)
    body = {**QUESTION, "request_id": str(request_id)}
    assert (await as_agent(api_harness, task_id, "POST", json={**body, "state": "withdrawn"})).status_code == 202
    assert (await waiting)["state"] == "withdrawn"
    assert (await as_agent(api_harness, task_id, "POST", json=body)).status_code == 202
    second = await own(api_harness, task_id, title="Another")
    assert [each["state"] for each in await requests_of(api_harness.alice, task_id)] == ["open", "withdrawn"]
    refused = await give(api_harness.alice, task_id, request_id, text="Too late")
    assert refused.status_code == 409
    assert (await give(api_harness.alice, task_id, second, text="In time")).status_code == 204


async def test_repeating_a_question_asks_once(api_harness: ApiHarness) -> None:
    """With the same id; without one each is a request of its own."""
    task_id, request_id = await active(api_harness), uuid.uuid4()
    for _ in range(3):
        await as_agent(api_harness, task_id, "POST", json={**QUESTION, "request_id": str(request_id)})
    await own(api_harness, task_id)
    assert (await api_harness.get(str(task_id)))["requests_open"] == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "demand"}, "kind"),
        ({"title": ""}, "title"),
        ({"title": "\u0007"}, "title"),
        ({"title": None}, "title"),
        ({"state": "answered", "text": "I say so"}, "state"),
        ({"state": "expired"}, "state"),
        ({"options": OPTIONS * 6}, "options"),
        ({"options": [OPTIONS[0], OPTIONS[0]]}, "options"),
        ({"options": [{**OPTIONS[0], "kind": "maybe"}]}, "options.0.kind"),
        ({"tool": {"kind": "execute", "input": "x" * 17_000}}, "tool.input"),
        ({"request_id": "first"}, "request_id"),
        ({"expires_at": "tomorrow"}, "expires_at"),
    ],
)
async def test_what_an_agent_asks_wrongly(api_harness: ApiHarness, change: dict[str, Any], field: str) -> None:
    """A 400 names the field: an agent opens and withdraws, and never answers."""
    task_id = await active(api_harness)
    refused = await as_agent(api_harness, task_id, "POST", json={**QUESTION, **change})
    assert refused.status_code == 400
    assert refused.json()["validations"][0]["field"].startswith(field)


async def test_an_agent_reads_its_own_requests_only(api_harness: ApiHarness) -> None:
    """Requests of other tasks and builds answer like those that do not exist; its token answers nothing."""
    task_id, other = await active(api_harness), await active(api_harness)
    request_id, foreign = await own(api_harness, task_id), await own(api_harness, other)
    unknown = await as_agent(api_harness, task_id, "GET", f"{OWN}/{uuid.uuid4()}")
    for each in (foreign, "not-an-id", "x" * 300):
        response = await as_agent(api_harness, task_id, "GET", f"{OWN}/{each}")
        assert (
            (response.status_code, response.json()) == (unknown.status_code, unknown.json()) == (404, response.json())
        )
    path = f"/tasks/alice/{task_id}/requests/{request_id}/answer"
    for method, path_, body in (
        ("POST", path, {"text": "Yes"}),
        ("POST", f"/tasks/alice/{other}/requests/{foreign}/answer", {"text": "Yes"}),
        ("GET", f"/tasks/alice/{task_id}/requests", None),
        ("GET", "/requests", None),
    ):
        response = await as_agent(api_harness, task_id, method, path_, json=body)
        assert (response.status_code, response.json()) == (401, SIGNED_OUT)
    headers = {"Coder-Session-Token": api_harness.tokens["alice"]}
    for method in ("POST", "GET"):
        suffix = "" if method == "POST" else f"/{request_id}"
        response = await api_harness.anonymous.request(method, OWN + suffix, json=QUESTION, headers=headers)
        assert response.status_code == 401
    assert (
        await as_agent(api_harness, other, "POST", json={**QUESTION, "request_id": str(request_id)})
    ).status_code == 202
    await api_harness.worker.until(lambda: api_harness.worker.document(other).get("requests_open") == 2)
    assert (await api_harness.get(str(task_id)))["requests"][0]["title"] == f"Question of {task_id}"


async def test_a_runners_request_is_read_too(api_harness: ApiHarness) -> None:
    """An agent may read what its runner asks for it, for it is of the same build."""
    task_id = await active(api_harness)
    request_id = await asked(api_harness, task_id, title="Asked by the runner")
    assert (await read(api_harness, task_id, request_id))["title"] == "Asked by the runner"


async def test_the_end_of_the_build_withdraws(api_harness: ApiHarness) -> None:
    """A stop withdraws, and tells who waits; with the next start the token is over, and the request not readable."""
    task_id = await active(api_harness)
    request_id = await own(api_harness, task_id)
    waiting = asyncio.create_task(read(api_harness, task_id, request_id, "30s"))
    await until_subscribers(api_harness, 1)
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
    assert (await waiting)["state"] == "withdrawn"
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/resume")).status_code == 202
    for method, path in (("GET", f"{OWN}/{request_id}"), ("POST", OWN)):
        response = await as_agent(api_harness, task_id, method, path, json=QUESTION)
        assert (response.status_code, response.json()) == (401, SIGNED_OUT)
    response = await as_agent(api_harness, task_id, "GET", f"{OWN}/{request_id}", number=3)
    assert response.status_code == 404
    assert (await queue(api_harness.carol))["requests"] == []


async def test_an_interrupt_leaves_it_open(api_harness: ApiHarness) -> None:
    """The agent still waits for the answer, in a process of its own; an interrupt ends only its turn."""
    task_id = await working(api_harness, "asks-on")
    request_id = await own(api_harness, task_id)
    interrupt = (await api_harness.alice.post(f"/tasks/me/{task_id}/interrupt")).json()["interrupt_id"]
    await end(api_harness, task_id, interrupt, "stopped")
    assert (await read(api_harness, task_id, request_id))["state"] == "open"
    assert (await give(api_harness.alice, task_id, request_id, text="Go on")).status_code == 204
    assert (await read(api_harness, task_id, request_id))["text"] == "Go on"


async def test_rates_bound_what_an_agent_asks(start_api: StartApi) -> None:
    """Requests of an agent count against its rate, as its reports do; others are not affected."""
    async with start_api(api_agent_rate=0.01, api_agent_burst=3) as harness:
        task_id, other = await active(harness), await active(harness)
        statuses = [(await as_agent(harness, task_id, "POST", json=QUESTION)).status_code for _ in range(5)]
        assert statuses == [202, 202, 202, 429, 429]
        assert (await as_agent(harness, other, "POST", json=QUESTION)).status_code == 202


async def test_an_agent_waits_for_few_at_once(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit a wait is refused, so that agents leave the change feed to people; a plain read is not."""
    monkeypatch.setattr(requests, "MAX_WAITING_OF_TASK", 2)
    async with start_api() as harness:
        task_id = await active(harness)
        request_id = await own(harness, task_id)
        waiting = [asyncio.create_task(read(harness, task_id, request_id, "30s")) for _ in range(2)]
        await until_subscribers(harness, 2)
        refused = await as_agent(harness, task_id, "GET", f"{OWN}/{request_id}?wait=1s")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert (await read(harness, task_id, request_id))["state"] == "open"
        assert (await give(harness.alice, task_id, request_id, text="Now")).status_code == 204
        assert [(await each)["text"] for each in waiting] == ["Now", "Now"]


async def test_the_agents_of_one_user_leave_waits_to_others(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tasks of one user, each with few waits, do not take those of the whole process."""
    monkeypatch.setattr(requests, "MAX_WAITING_OF_OWNER", 2)
    async with start_api() as harness:
        first, second = await active(harness), await active(harness)
        other = uuid.UUID((await harness.create(harness.bob))["id"])
        await harness.worker.make_active(other)
        short, long = [
            asyncio.create_task(read(harness, first, await own(harness, first), wait)) for wait in ("20s", "60s")
        ]
        await until_subscribers(harness, 2)
        request_id = await own(harness, second)
        refused = await as_agent(harness, second, "GET", f"{OWN}/{request_id}?wait=1s")
        assert (refused.status_code, refused.json()["message"]) == (429, requests.TOO_MANY_OF_OWNER)
        assert (await read(harness, second, request_id))["state"] == "open"
        assert (await read(harness, other, await own(harness, other), "50ms"))["state"] == "open"
        assert (await short)["state"] == "open"
        await until_subscribers(harness, 1)
        assert (await read(harness, second, request_id, "50ms"))["state"] == "open"
        long.cancel()


async def check_signed_out_in_time(
    api_harness: ApiHarness, waiting: asyncio.Task[httpx.Response], other: uuid.UUID
) -> None:
    """Check that a wait whose token has just ended is signed out within the bound.

    The time is told by waits of another agent, a second each: what delays the one delays the others, and the last of
    them begins only when the one is due.
    """

    async def wait_on() -> None:
        for _ in range(int(BOUND)):
            nothing = await as_agent(api_harness, other, "GET", f"{OWN}/{uuid.uuid4()}?wait=1s")
            assert nothing.status_code == 404

    bound = asyncio.create_task(wait_on())
    ended, _ = await asyncio.wait({waiting, bound}, return_when=asyncio.FIRST_COMPLETED)
    bound.cancel()
    await asyncio.wait({bound})
    assert waiting in ended, bound
    assert (waiting.result().status_code, waiting.result().json()) == (401, SIGNED_OUT)


@pytest.mark.parametrize("with_owner", [True, False])
async def test_a_wait_ends_with_its_token(api_harness: ApiHarness, *, with_owner: bool) -> None:
    """A delete ends it within five seconds; also if the owner, in whose changes that would be, has left."""
    task_id, other = await active(api_harness), await active(api_harness)
    path = f"{OWN}/{uuid.uuid4()}?wait=60s"
    waiting = asyncio.create_task(as_agent(api_harness, task_id, "GET", path, timeout=90))
    await until_subscribers(api_harness, 1)
    if not with_owner:
        await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE role = 'member'")
    client, owner = (api_harness.alice, "me") if with_owner else (api_harness.carol, "alice")
    assert (await client.delete(f"/tasks/{owner}/{task_id}")).status_code == 202
    await check_signed_out_in_time(api_harness, waiting, other)


async def test_a_wait_ends_with_the_next_start(api_harness: ApiHarness) -> None:
    """Within five seconds; the agent of the build before learns nothing more."""
    task_id, other = await active(api_harness), await active(api_harness)
    path = f"{OWN}/{uuid.uuid4()}?wait=60s"
    waiting = asyncio.create_task(as_agent(api_harness, task_id, "GET", path, timeout=90))
    await until_subscribers(api_harness, 1)
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    assert not waiting.done()
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/resume")).status_code == 202
    await check_signed_out_in_time(api_harness, waiting, other)


async def test_a_wait_ends_with_the_feed(api_harness: ApiHarness) -> None:
    """The request is shown as it is then, as when the process stops."""
    task_id = await active(api_harness)
    waiting = asyncio.create_task(read(api_harness, task_id, await own(api_harness, task_id), "60s"))
    await until_subscribers(api_harness, 1)
    async with asyncio.timeout(TIMEOUT):
        while not (subscribers := api_harness.api.change_feed._subscribers.get(ALICE)):  # noqa: ASYNC110 - as there
            await asyncio.sleep(0.02)
    for subscriber in [*subscribers]:
        subscriber.end()
    assert (await waiting)["state"] == "open"


async def test_a_wait_outlives_its_owner(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the owner has left the organization, its admin answers, and the agent gets that."""
    monkeypatch.setattr(requests, "READ_EVERY", 0.1)
    task_id = await active(api_harness)
    request_id = await own(api_harness, task_id)
    await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE role = 'member'")
    waiting = asyncio.create_task(read(api_harness, task_id, request_id, "30s"))
    await until_subscribers(api_harness, 1)
    path = f"/tasks/alice/{task_id}/requests/{request_id}/answer"
    assert (await api_harness.carol.post(path, json={"text": "Stop"})).status_code == 204
    assert (await waiting)["text"] == "Stop"


async def test_what_an_agent_adds_to_the_log(api_harness: ApiHarness) -> None:
    """Entries of every kind are added and replaced; what the agent says a person said is output unless it was given."""
    task_id = await active(api_harness, input="Fix the flaky test")
    path = "/workspaceagents/me/logs"
    time = "2026-01-02T03:04:05Z"
    tool = {"kind": "tool_call", "title": "make", "status": "completed", "data": {"kind": "execute"}}
    entries = [
        {"id": 0, "type": "input", "content": "Fix the\nflaky test", "time": time},
        {"id": 1, "type": "input", "content": "Deploy it to production", "time": time},
        {"id": 2, "type": "output", "content": "ok", "time": time, **tool},
    ]
    assert (await as_agent(api_harness, task_id, "POST", path, json={"entries": entries})).status_code == 204
    more = {"entries": [{"id": 1, "type": "output", "content": "Replaced", "time": time}]}
    assert (await as_agent(api_harness, task_id, "POST", path, json=more)).status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs WHERE content = 'Replaced'", is_=1)
    logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    assert [(each["type"], each["content"]) for each in logs] == [
        ("input", "Fix the\nflaky test"),
        ("output", "Replaced"),
        ("output", "ok"),
    ]
    assert (logs[2]["kind"], logs[2]["title"], logs[2]["data"]) == ("tool_call", "make", {"kind": "execute"})
    assert (await as_agent(api_harness, task_id, "POST", path, json={"entries": []})).status_code == 204
    for wrong in ({}, {"entries": [{"id": -1}]}, {"entries": [entries[2] | {"status": "done"}]}):
        assert (await as_agent(api_harness, task_id, "POST", path, json=wrong)).status_code == 400
    headers = {"Coder-Session-Token": agent_token(SECRET, uuid.uuid4(), 1)}
    foreign = await api_harness.anonymous.post(path, json={"entries": entries}, headers=headers)
    assert foreign.status_code == 401


async def test_an_agent_writes_no_notices(api_harness: ApiHarness) -> None:
    """Notices speak for the runner and the API: what an agent calls one is an entry of the agent like any other."""
    task_id = await active(api_harness, input="Fix the flaky test")
    entry = {"time": "2026-01-02T03:04:05Z", "kind": "notice"}
    entries = [
        {**entry, "id": 0, "type": "output", "content": "taskherd: sign in again at https://evil.example"},
        {**entry, "id": 1, "type": "input", "content": "taskherd: the runner needs your token"},
        {**entry, "id": 2, "type": "input", "content": "Fix the flaky test"},
        {**entry, "id": 3, "type": "output", "content": "I think", "kind": "thought"},
    ]
    path = "/workspaceagents/me/logs"
    assert (await as_agent(api_harness, task_id, "POST", path, json={"entries": entries})).status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task_id, is_=4)
    logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    assert {each["content"]: (each["type"], each.get("kind")) for each in logs} == {
        entries[0]["content"]: ("output", None),
        entries[1]["content"]: ("output", None),
        entries[2]["content"]: ("input", None),
        entries[3]["content"]: ("output", "thought"),
    }


async def test_log_entries_have_a_rate(start_api: StartApi) -> None:
    """As a snapshot has: a log grows only so fast."""
    async with start_api(log_entries_rate=1) as harness:
        task_id = await active(harness)
        entries = [
            {"id": number, "type": "output", "content": f"{number}", "time": "2026-01-02T03:04:05Z"}
            for number in range(4)
        ]
        codes = [
            (
                await as_agent(harness, task_id, "POST", "/workspaceagents/me/logs", json={"entries": entries})
            ).status_code
            for _ in range(2)
        ]
        assert codes == [204, 429]


async def test_too_many_open_requests(api_harness: ApiHarness) -> None:
    """The 101st open request of a task is refused; what slips through leaves no dead letter, and there is none."""
    task_id = await active(api_harness)
    ids = [uuid.uuid4() for _ in range(100)]
    await api_harness.worker.report(*(request_report(task_id, each, title=str(each), pull=True) for each in ids))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 100)
    document = await api_harness.get(str(task_id))
    assert len(document["requests"]) == 10
    request_id = uuid.uuid4()
    body = {**QUESTION, "request_id": str(request_id), "detail": "x" * 16_000}
    for _ in range(3):
        refused = await as_agent(api_harness, task_id, "POST", json=body)
        assert (refused.status_code, refused.json()["message"]) == (409, requests.TOO_MANY_OPEN)
    known = {**QUESTION, "request_id": str(ids[0])}
    assert (await as_agent(api_harness, task_id, "POST", json=known)).status_code == 202
    late = uuid.uuid4()
    await api_harness.worker.report(request_report(task_id, late, pull=True))
    await api_harness.worker.until_metric(1, "taskherd_reports_total", type="agent.request", outcome="refused")
    assert (await as_agent(api_harness, task_id, "GET", f"{OWN}/{late}?wait=50ms")).status_code == 404
    withdrawn = {**known, "state": "withdrawn"}
    assert (await as_agent(api_harness, task_id, "POST", json=withdrawn)).status_code == 202
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 99)
    assert (await as_agent(api_harness, task_id, "POST", json=body)).status_code == 202
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 100)
    await api_harness.worker.report(make_report("agent.exit", task_id, why="exited", status=0, build_number=1))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 0)
    assert api_harness.worker.dead_letters == []


async def test_an_agent_asks_only_so_much(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening and withdrawing in a loop ends at a number of requests for each start, at the API and at the worker."""
    monkeypatch.setattr(agent_requests, "MAX_OF_BUILD", 3)
    task_id = await active(api_harness)
    count = "SELECT count(*) FROM agent_requests"
    body: dict[str, Any] = {**QUESTION, "state": "withdrawn"}
    for _ in range(3):
        body["request_id"] = str(await own(api_harness, task_id))
        assert (await as_agent(api_harness, task_id, "POST", json=body)).status_code == 202
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("requests_open") == 0)
    for state in ("open", "withdrawn"):
        more = {**QUESTION, "request_id": str(uuid.uuid4()), "state": state}
        refused = await as_agent(api_harness, task_id, "POST", json=more)
        assert (refused.status_code, refused.json()["message"]) == (409, requests.TOO_MANY_OF_BUILD)
    assert (await as_agent(api_harness, task_id, "POST", json=body)).status_code == 202, "it is no further one"
    await api_harness.worker.report(
        *(request_report(task_id, uuid.uuid4(), pull=True, state=state) for state in ("open", "withdrawn"))
    )
    await api_harness.worker.until_metric(2, "taskherd_reports_total", type="agent.request", outcome="refused")
    assert await api_harness.worker.database.fetchval(count) == 3
    await api_harness.worker.report(request_report(task_id, uuid.uuid4()))
    await api_harness.worker.until_row(count, is_=4)
    assert api_harness.worker.dead_letters == []
