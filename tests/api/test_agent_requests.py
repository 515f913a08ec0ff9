"""What agents ask people, over HTTP: a task's requests, the answer to one, and the queue of all that are open."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.api.test_request_queue import queue
from tests.harness.api import ALICE, CAROL, ApiHarness
from tests.harness.asking import (
    OPTIONS,
    active,
    approval,
    asked,
    closed,
    give,
    request_report,
    requests_of,
    titles,
)
from tests.harness.worker import make_report

NO_LONGER_OPEN = "The request is no longer open."
NOT_FOUND = {"message": "Request not found."}


async def test_a_request_has_all_that_answering_needs(api_harness: ApiHarness) -> None:
    """The task's document names its open requests, and the list has every field; an approval has options."""
    task_id = await active(api_harness, name="asks")
    tool = {"kind": "execute", "name": "Bash", "input": {"command": "rm -r build", "timeout": 3}}
    request_id = await approval(
        api_harness,
        task_id,
        title="May I run `rm`?",
        detail="It frees 3 GB.",
        tool=tool,
        expires_at="2030-01-02T03:04:05Z",
    )
    plain = await asked(api_harness, task_id, kind="approval", title="And this?")
    document = await api_harness.get(str(task_id))
    assert document["requests_open"] == 2
    assert [(each["id"], each["kind"], each["title"]) for each in document["requests"]] == [
        (str(request_id), "approval", "May I run `rm`?"),
        (str(plain), "approval", "And this?"),
    ]
    first, second = await requests_of(api_harness.alice, task_id)
    assert first == {
        "id": str(request_id),
        "kind": "approval",
        "title": "May I run `rm`?",
        "detail": "It frees 3 GB.",
        "tool": tool,
        "options": OPTIONS,
        "state": "open",
        "since": document["requests"][0]["since"],
        "expires_at": "2030-01-02T03:04:05.000000Z",
        "build_number": 1,
        "pull": False,
        "closed_at": None,
        "answer": None,
    }
    assert [each["id"] for each in second["options"]] == ["allow", "reject"]
    assert (second["tool"], second["detail"], second["expires_at"]) == (None, "", None)


async def test_the_first_answer_counts(api_harness: ApiHarness) -> None:
    """204 for the first, 409 for the second, which says what became of it, by whom and when; the agent gets one."""
    task_id = await active(api_harness)
    request_id = await approval(api_harness, task_id)
    assert (await give(api_harness.carol, task_id, request_id, option_id="yes")).status_code == 204
    refused = await give(api_harness.alice, task_id, request_id, option_id="no")
    (request,) = await requests_of(api_harness.alice, task_id)
    at = request["answer"]["at"]
    assert (refused.status_code, refused.json()["message"]) == (409, NO_LONGER_OPEN)
    assert refused.json()["detail"] == f"It was answered with “Allow once” by carol at {at}."
    assert request["state"] == "answered"
    assert request["answer"] == {
        "option_id": "yes",
        "text": None,
        "by": "carol",
        "by_id": str(CAROL),
        "at": at,
        "delivered_at": None,
    }
    assert (await api_harness.get(str(task_id)))["requests_open"] == 0
    await api_harness.worker.until(lambda: api_harness.worker.requests_of(task_id, "agent.answer"))
    sent = api_harness.worker.requests_of(task_id, "agent.answer")[0]
    assert (sent["request_id"], sent["option_id"], sent["text"]) == (str(request_id), "yes", None)
    await closed(api_harness, task_id, request_id, kind="approval", options=OPTIONS, state="answered", option_id="yes")
    (request,) = await requests_of(api_harness.alice, task_id)
    assert request["answer"]["delivered_at"] == request["closed_at"] is not None


async def test_many_answers_at_once(api_harness: ApiHarness) -> None:
    """Of twenty simultaneous answers, one is accepted, and all others learn which."""
    task_id = await active(api_harness)
    request_id = await approval(api_harness, task_id)
    clients = (api_harness.alice, api_harness.carol)
    responses = await asyncio.gather(
        *(give(clients[n % 2], task_id, request_id, option_id=OPTIONS[n % 3]["id"]) for n in range(20))
    )
    assert sorted(each.status_code for each in responses) == [204] + [409] * 19
    (request,) = await requests_of(api_harness.alice, task_id)
    label = next(each["label"] for each in OPTIONS if each["id"] == request["answer"]["option_id"])
    expected = f"It was answered with “{label}” by {request['answer']['by']} at {request['answer']['at']}."
    assert {each.json()["detail"] for each in responses if each.status_code == 409} == {expected}


async def test_a_repeated_answer_with_its_key(api_harness: ApiHarness) -> None:
    """With the same Idempotency-Key, a repetition has the same answer and changes nothing."""
    task_id = await active(api_harness)
    request_id = await asked(api_harness, task_id)
    path = f"/tasks/me/{task_id}/requests/{request_id}/answer"
    answers = [
        await api_harness.alice.post(path, json={"text": "The first"}, headers={"Idempotency-Key": "once"})
        for _ in range(2)
    ]
    assert [each.status_code for each in answers] == [204, 204]
    other = await api_harness.alice.post(path, json={"text": "Another"}, headers={"Idempotency-Key": "once"})
    assert other.status_code == 409
    (request,) = await requests_of(api_harness.alice, task_id)
    assert (request["answer"]["text"], request["answer"]["option_id"]) == ("The first", None)


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("approval", {}, "option_id"),
        ("approval", {"text": "Yes"}, "option_id"),
        ("approval", {"option_id": "maybe"}, "option_id"),
        ("approval", {"option_id": 7}, "option_id"),
        ("question", {}, "text"),
        ("question", {"text": " \n "}, "text"),
        ("question", {"text": ["x"]}, "text"),
        ("question", {"text": "x" * 262_145}, "text"),
        ("question", {"option_id": "yes", "text": "x"}, "option_id"),
    ],
)
async def test_an_answer_that_does_not_fit(
    api_harness: ApiHarness, kind: str, body: dict[str, Any], field: str
) -> None:
    """A 400 names the field, and the request stays open."""
    task_id = await active(api_harness)
    request_id = await (approval if kind == "approval" else asked)(api_harness, task_id)
    refused = await give(api_harness.alice, task_id, request_id, **body)
    assert refused.status_code == 400
    assert [each["field"] for each in refused.json()["validations"]] == [field]
    assert (await api_harness.get(str(task_id)))["requests_open"] == 1


async def test_who_may_change_the_task_may_answer(api_harness: ApiHarness) -> None:
    """Others learn nothing: for them there is neither the task nor the request, whatever they ask."""
    task_id, elsewhere = await active(api_harness), await active(api_harness)
    request_id = await approval(api_harness, task_id)
    for client in (api_harness.bob, api_harness.mallory):
        for refused in (
            await give(client, task_id, request_id, option_id="yes"),
            await client.get(f"/tasks/alice/{task_id}/requests"),
        ):
            assert (refused.status_code, refused.json()["message"][:9]) == (404, "Resource ")
    assert (await give(api_harness.anonymous, task_id, request_id, option_id="yes")).status_code == 401
    for other in (uuid.uuid4(), "not-an-id", "x" * 300):
        refused = await give(api_harness.alice, task_id, other, option_id="yes")
        assert (refused.status_code, refused.json()) == (404, NOT_FOUND)
    refused = await give(api_harness.alice, elsewhere, request_id, option_id="yes")
    assert (refused.status_code, refused.json()) == (404, NOT_FOUND)
    assert (await requests_of(api_harness.alice, elsewhere)) == []
    assert (await give(api_harness.carol, task_id, request_id, option_id="yes")).status_code == 204


async def test_what_became_of_each_request(api_harness: ApiHarness) -> None:
    """Answered by a person, by the template's policy, withdrawn, expired, too late: each says so, and by whom."""
    task_id = await active(api_harness)
    fields: dict[str, Any] = {"kind": "approval", "options": OPTIONS}
    late = await approval(api_harness, task_id, title="Late")
    assert (await give(api_harness.carol, task_id, late, option_id="yes")).status_code == 204
    policy = uuid.uuid4()
    await closed(api_harness, task_id, policy, title="Policy", state="answered", option_id="always", **fields)
    await closed(api_harness, task_id, late, title="Late", state="expired", **fields)
    gone = await asked(api_harness, task_id, title="Gone")
    await closed(api_harness, task_id, gone, title="Gone", state="withdrawn")
    found = {each["title"]: each for each in await requests_of(api_harness.alice, task_id)}
    assert {title: each["state"] for title, each in found.items()} == {
        "Late": "expired",
        "Policy": "answered",
        "Gone": "withdrawn",
    }
    assert (found["Late"]["answer"]["by"], found["Late"]["answer"]["delivered_at"]) == ("carol", None)
    answer = found["Policy"]["answer"]
    assert (answer["option_id"], answer["by"], answer["by_id"]) == ("always", None, None)
    assert answer["at"] == answer["delivered_at"] == found["Policy"]["closed_at"]
    assert found["Gone"]["answer"] is None
    for request_id, word in ((late, "expired"), (policy, "“Always allow” without a person"), (gone, "withdrawn")):
        refused = await give(api_harness.alice, task_id, request_id, option_id="yes")
        assert refused.status_code == 409
        assert word in refused.json()["detail"]


async def test_the_end_of_the_agent_withdraws(api_harness: ApiHarness) -> None:
    """Once the agent has ended, or its task is paused, its requests show as withdrawn and cannot be answered."""
    ended, paused = await active(api_harness), await active(api_harness)
    of_ended, of_paused = await asked(api_harness, ended), await asked(api_harness, paused)
    await api_harness.worker.report(make_report("agent.exit", ended, why="exited", status=3, build_number=1))
    assert (await api_harness.alice.post(f"/tasks/me/{paused}/pause")).status_code == 202
    await api_harness.worker.until(lambda: api_harness.worker.document(ended).get("agent_exit"))
    for task_id, request_id in ((ended, of_ended), (paused, of_paused)):
        document = await api_harness.get(str(task_id))
        assert (document["requests"], document["requests_open"]) == ([], 0)
        (request,) = await requests_of(api_harness.alice, task_id)
        assert (request["state"], request["closed_at"]) == ("withdrawn", None)
        refused = await give(api_harness.alice, task_id, request_id, text="Too late")
        assert (refused.status_code, refused.json()["message"]) == (409, NO_LONGER_OPEN)
    assert (await queue(api_harness.carol))["requests"] == []


async def test_a_task_with_many_requests_has_pages(api_harness: ApiHarness) -> None:
    """Open ones come first, oldest first, then the others, newest first; each is on exactly one page of any size."""
    task_id = await active(api_harness)
    ids = [await asked(api_harness, task_id, title=f"Number {number}") for number in range(7)]
    for number in (1, 4, 5):
        await closed(api_harness, task_id, ids[number], title=f"Number {number}", state="withdrawn")
    expected = [f"Number {number}" for number in (0, 2, 3, 6, 5, 4, 1)]
    assert titles(await requests_of(api_harness.alice, task_id)) == expected
    for limit in (1, 2, 3, 4, 7):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            response = await api_harness.alice.get(
                f"/tasks/me/{task_id}/requests", params={"limit": limit, **({"after": after} if after else {})}
            )
            found += titles(response.json())
            after = response.json()["next"]
        assert found == expected, limit
    for wrong in ({"after": "x"}, {"after": "o" + "A" * 31}, {"after": "z" + "A" * 32}, {"limit": 0}, {"limit": 101}):
        refused = await api_harness.alice.get(f"/tasks/me/{task_id}/requests", params=wrong)
        assert refused.status_code == 400, wrong


async def test_a_message_answers_a_question(api_harness: ApiHarness) -> None:
    """A send answers the only open request if it wants a text, and its response says so; else it is queued."""
    task_id = await active(api_harness)
    path = f"/tasks/me/{task_id}/send"
    request_id = await asked(api_harness, task_id, title="Which one?")
    sent = await api_harness.alice.post(path, json={"input": "The first"})
    assert (sent.status_code, sent.headers["X-Taskherd-Answered"]) == (204, str(request_id))
    assert "X-Taskherd-Queued" not in sent.headers
    (request,) = await requests_of(api_harness.alice, task_id)
    assert (request["state"], request["answer"]["text"], request["answer"]["by"]) == ("answered", "The first", "alice")
    await closed(api_harness, task_id, request_id, title="Which one?", state="answered", text="The first")
    await approval(api_harness, task_id)
    sent = await api_harness.alice.post(path, json={"input": "Yes"})
    assert (sent.status_code, sent.headers.get("X-Taskherd-Queued")) == (204, "true")
    assert "X-Taskherd-Answered" not in sent.headers


async def test_explain_and_timeline_say_what_is_asked(api_harness: ApiHarness) -> None:
    """The explanation has the open requests, and the timeline who answered what."""
    task_id = await active(api_harness)
    request_id = await approval(api_harness, task_id, title="May I?")
    body = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert (body["waiting"]["value"], body["waiting"]["rule"]) == (True, "request.open")
    assert "May I?" in body["waiting"]["because"]
    assert (await give(api_harness.carol, task_id, request_id, option_id="yes")).status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    body = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert (body["waiting"]["value"], body["waiting"]["rule"]) == (False, "request.answered")
    assert body["requests"][0]["type"] == "agent.answer"
    assert body["last_command"]["actor_name"] == "carol"
    events = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
    words = [each["cause"]["words"] for each in events]
    assert any("May I?" in each for each in words)
    assert "carol" in words[-1]
    assert "Allow once" in words[-1]


async def test_a_deleted_task_asks_nothing(api_harness: ApiHarness) -> None:
    """Its requests are in no queue, and cannot be read or answered."""
    task_id = await active(api_harness)
    request_id = await asked(api_harness, task_id)
    assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
    assert (await queue(api_harness.carol))["requests"] == []
    assert (await api_harness.alice.get(f"/tasks/me/{task_id}/requests")).status_code == 404
    assert (await give(api_harness.alice, task_id, request_id, text="x")).status_code == 404


async def test_hostile_texts_are_harmless(api_harness: ApiHarness) -> None:
    """Characters that change the direction of text are shown by their numbers, and texts have limits."""
    task_id = await active(api_harness)
    await asked(
        api_harness,
        task_id,
        title="May I run \u202ehs.live\u202c?" + "x" * 300,
        detail="y" * 20_000,
        tool={"kind": "execute", "input": {"command": "\u202erm"}},
    )
    (request,) = (await queue(api_harness.alice, f"owner:{ALICE}"))["requests"]
    assert len(request["title"]) == 200
    assert "\u202e" not in request["title"] + str(request["tool"])
    assert len(request["detail"].encode()) <= 16 * 1024


async def test_one_of_a_batch_that_is_invalid(api_harness: ApiHarness) -> None:
    """A report that is no request is dead-lettered by itself; what the task shows stays as it is."""
    task_id = await active(api_harness)
    request_id = uuid.uuid4()
    await api_harness.worker.report(
        request_report(task_id, request_id, options=OPTIONS * 9),
        request_report(task_id, request_id, title="Good"),
    )
    await api_harness.worker.until(lambda: api_harness.worker.dead_letters)
    assert titles(await queue(api_harness.alice)) == ["Good"]
