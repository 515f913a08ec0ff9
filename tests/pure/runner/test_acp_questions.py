"""What becomes of what an agent asks its client: by the template's policy, by people, by the time, and by its end."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.directory_file.run import Approvals
from taskherd.runner.agents.acp import follower
from taskherd.runner.agents.acp.closed_requests import MAX_CLOSED, MAX_CLOSED_BYTES, ClosedRequests
from taskherd.runner.agents.context import AnswerOutcome
from tests.pure.messages.samples import NOW
from tests.pure.runner.acp_life import SESSION, AcpLife
from tests.pure.runner.contexts import reports_of

CANCELLED = {"outcome": {"outcome": "cancelled"}}
ALLOW, REJECT = ("yes", "allow_once"), ("no", "reject_once")


def selected(option_id: str) -> dict[str, Any]:
    """Return the answer that chooses an option."""
    return {"outcome": {"outcome": "selected", "optionId": option_id}}


async def opened(folder: Path, **approvals: Any) -> AcpLife:
    """Return an agent whose session is open, under this policy."""
    life = AcpLife(folder, approvals=approvals)
    await life.open()
    return life


def permit(life: AcpLife, number: int | str, title: str, *options: tuple[str, str], **call: Any) -> None:
    """Ask for permission, with further fields of the tool call."""
    offered = [{"optionId": each, "name": each.title(), "kind": kind} for each, kind in options]
    tool = {"toolCallId": f"call-{number}", "title": title, **call}
    params = {"sessionId": SESSION, "toolCall": tool, "options": offered}
    life.write({"id": number, "method": "session/request_permission", "params": params})


def ask(life: AcpLife, number: int | str, message: str, kind: str = "string") -> None:
    """Ask a question."""
    form = {"type": "object", "properties": {"name": {"type": kind}}}
    params = {"sessionId": SESSION, "mode": "form", "message": message, "requestedSchema": form}
    life.write({"id": number, "method": "elicitation/create", "params": params})


def results(life: AcpLife) -> dict[Any, Any]:
    """Return what was answered, by the agent's ids."""
    return {each["id"]: each.get("result", each.get("error")) for each in life.take()}


def requests(life: AcpLife) -> list[dict[str, Any]]:
    """Return the reports about requests, without the fields that all reports have."""
    common = {"type", "task_id", "build_number", "seq", "request_id", "sent_at", "event_id", "attempt"}
    found = reports_of(life.context.outbox, "agent.request")
    return [{name: value for name, value in each.items() if name not in common} for each in found]


def not_permitted(title: str) -> str:
    """Return the notice of what the policy denies."""
    return f"by the template's policy, this was not permitted: {title}"


async def test_the_policy_decides_by_the_kind_of_tool(tmp_path: Path) -> None:
    """What it allows, is allowed once; what it denies, is rejected once, and told; each is reported as answered."""
    life = await opened(tmp_path, default="deny", read="allow")
    await life.begin()
    permit(life, 1, "Read a", ALLOW, REJECT, kind="read")
    await life.step()
    assert life.follower._turn.rejected == ""
    permit(life, 2, "Delete b", ALLOW, REJECT, kind="delete")
    permit(life, 3, "Delete c", ALLOW, ("never", "reject_always"), kind="delete")
    permit(life, 4, "Delete d", ("n" * 65, "reject_once"), kind="delete")
    await life.step()
    assert results(life) == {1: selected("yes"), 2: selected("no"), 3: CANCELLED, 4: selected("n" * 65)}
    assert life.notices == [not_permitted(f"Delete {each}") for each in "bcd"]
    assert life.follower._turn.rejected == "Delete d"
    assert requests(life) == []
    await life.step()
    decided = [(each["title"], each["state"], each.get("option_id")) for each in requests(life)]
    assert sorted(decided, key=str) == [
        ("Delete b", "answered", "no"),
        ("Delete c", "answered", None),
        ("Delete d", "answered", None),
        ("Read a", "answered", "yes"),
    ]


async def test_the_policy_allows_nothing_for_ever(tmp_path: Path) -> None:
    """People are asked if the agent offers nothing else."""
    life = await opened(tmp_path, default="allow")
    permit(life, 1, "Run it", ("always", "allow_always"), REJECT)
    await life.step()
    assert (life.take(), life.became(), life.notices) == ([], [("Run it", "open")], [])


async def test_what_people_are_asked(tmp_path: Path) -> None:
    """The tool with its input and kind, the options, and until when; without a title there is one nevertheless."""
    life = await opened(tmp_path, default="ask", expire_after=60)
    until = f"{NOW + timedelta(seconds=60):%Y-%m-%dT%H:%M:%S.%fZ}"
    permit(life, 1, "Run it", ALLOW, REJECT, kind="execute", name="bash", rawInput={"command": "make"})
    permit(life, 2, "\u0000", ALLOW, kind="magic")
    ask(life, 3, "Which one?")
    ask(life, 4, "Really\nsure?", "boolean")
    await life.step()
    first, second, question, sure = requests(life)
    assert first.pop("detail", "") == ""
    assert first == {
        "kind": "approval",
        "state": "open",
        "title": "Run it",
        "tool": {"kind": "execute", "name": "bash", "input": {"command": "make"}},
        "options": [
            {"id": "yes", "label": "Yes", "kind": "allow_once"}, {"id": "no", "label": "No", "kind": "reject_once"},
        ],
        "expires_at": until,
    }  # fmt: skip
    assert {each["expires_at"] for each in (first, second, question, sure)} == {until}
    assert (second["title"], second["tool"]["kind"]) == ("The agent asks for permission", "other")
    assert (question["kind"], question["title"], question.get("options", [])) == ("question", "Which one?", [])
    assert (sure["title"], sure["detail"]) == ("Really sure?", "Really\nsure?")
    assert [each["id"] for each in sure["options"]] == ["true", "false"]


async def test_an_input_that_cannot_be_shown_is_said_to_be_missing(tmp_path: Path) -> None:
    """People decide without it."""
    life = await opened(tmp_path)
    permit(life, 1, "Write it", ALLOW, rawInput={"text": "x" * 10**6})
    await life.step()
    (request,) = requests(life)
    words = "(The tool's input cannot be shown here: it is too large, or has names that look the same.)"
    assert request["detail"].startswith(words)
    assert "input" not in request["tool"]


async def test_parameters_of_another_form_are_refused(tmp_path: Path) -> None:
    """The agent gets an error, and no person sees a request."""
    life = await opened(tmp_path)
    life.write({"id": 1, "method": "session/request_permission", "params": {"sessionId": SESSION}})
    await life.step()
    assert results(life) == {1: {"code": -32602, "message": "the parameters do not fit the schema"}}
    assert requests(life) == []


@pytest.mark.parametrize("policy", ["allow", "ask", "deny"])
async def test_what_is_asked_in_a_cancelled_turn_is_answered_as_cancelled(tmp_path: Path, policy: str) -> None:
    """Neither the policy nor a person decides it."""
    life = await opened(tmp_path, default=policy)
    await life.begin()
    life.follower._turn.cancelled = True
    permit(life, 1, "Run it", ALLOW, REJECT)
    ask(life, 2, "Which one?")
    await life.step()
    assert results(life) == {1: CANCELLED, 2: {"action": "cancel"}}
    assert (requests(life), life.notices, life.follower._turn.rejected) == ([], [], "")


async def test_an_answer_is_reported_when_the_agent_has_it(tmp_path: Path) -> None:
    """A text beside an option is no part of it; what is no answer changes nothing; a late one repeats the report."""
    life = await opened(tmp_path)
    permit(life, "p", "Run it", ALLOW, REJECT)
    ask(life, "q", "Which one?")
    await life.step()
    permission, question = life.follower._requests.ids
    assert life.states[-1] == ("idle", "Run it")
    wrong: list[tuple[UUID, str | None, str | None]] = [
        (permission, "other", None), (permission, None, "yes"), (question, "yes", None), (question, None, " "),
    ]  # fmt: skip
    for each in wrong:
        assert life.follower.answer(*each) is AnswerOutcome.IGNORED
    assert life.take() == []
    assert life.follower.answer(permission, "yes", "beside it") is AnswerOutcome.DONE
    assert life.follower.answer(question, None, "This one") is AnswerOutcome.DONE
    assert len(requests(life)) == 2
    assert results(life) == {"p": selected("yes"), "q": {"action": "accept", "content": {"name": "This one"}}}
    await life.step()
    answered = [(each["state"], each.get("option_id"), each.get("text")) for each in requests(life)[2:]]
    assert sorted(answered, key=str) == [("answered", "yes", None), ("answered", None, "This one")]
    before = reports_of(life.context.outbox, "agent.request")
    assert life.follower.answer(permission, "no", None) is AnswerOutcome.REPEATED
    *same, repeated = reports_of(life.context.outbox, "agent.request")
    assert same == before
    assert (repeated in before[2:], repeated["request_id"]) == (True, str(permission))
    assert life.take() == []


async def test_an_answer_that_the_agent_was_not_given_is_none(tmp_path: Path) -> None:
    """The request is withdrawn then."""
    life = await opened(tmp_path)
    permit(life, 1, "Run it", ALLOW, REJECT)
    await life.step()
    (request_id,) = life.follower._requests.ids
    assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.DONE
    life.take(".failed")
    await life.step()
    (_, closed) = requests(life)
    assert (closed["state"], closed.get("option_id")) == ("withdrawn", None)


async def test_the_21st_open_request_is_rejected(tmp_path: Path) -> None:
    """An approval with its own option and advice, a question by declining it."""
    life = await opened(tmp_path)
    for number in range(20):
        permit(life, number, f"Run {number}", ALLOW, REJECT)
    await life.step()
    assert (len(life.became()), life.take()) == (20, [])
    permit(life, 20, "Run 20", ALLOW, REJECT)
    ask(life, 21, "Which one?")
    await life.step()
    assert results(life) == {20: selected("no"), 21: {"action": "decline"}}
    reason = "this was rejected, because 20 requests are open already:"
    assert life.notices == [
        f"{reason} Run 20 (the template's `run.approvals` can decide instead)",
        f"{reason} Which one?",
    ]
    assert (len(life.became()), life.follower._turn.rejected) == (20, "Which one?")


async def test_a_request_expires_in_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rejected then, and said so; what has no end stays open."""
    life = await opened(tmp_path, expire_after=60)
    asked = life.follower._requests
    permit(life, 1, "Run it", ALLOW, REJECT)
    await life.step()
    monkeypatch.setattr(life.context.reporter, "now", lambda: NOW + timedelta(seconds=30))
    ask(life, 2, "Which one?")
    await life.step()
    monkeypatch.setattr(asked, "_approvals", Approvals())
    ask(life, 3, "Until when?")
    await life.step()
    for seconds, expired in ((59.9, []), (60, ["Run it"]), (89.9, []), (90, ["Which one?"]), (10**6, [])):
        monkeypatch.setattr(life.context.reporter, "now", lambda at=seconds: NOW + timedelta(seconds=at))
        before = len(life.notices)
        assert asked.expire() is bool(expired)
        life.follower._recorder.commit()
        reasons = [f"this was rejected, because no answer came in time: {each}" for each in expired]
        assert life.notices[before:] == reasons
        assert life.follower._turn.rejected == (expired[0] if expired else life.follower._turn.rejected)
    assert results(life) == {1: selected("no"), 2: {"action": "decline"}}
    await life.step()
    assert sorted(life.became()[3:]) == [("Run it", "expired"), ("Which one?", "expired")]
    assert asked.titles == ["Until when?"]


async def test_what_an_agent_withdraws_is_answered_as_cancelled(tmp_path: Path) -> None:
    """Only the request with that id."""
    life = await opened(tmp_path)
    permit(life, 1, "Run it", ALLOW, REJECT)
    ask(life, 2, "Which one?")
    ask(life, 3, "Which other one?")
    await life.step()
    life.write({"method": "$/cancel_request", "params": {"requestId": 2}})
    await life.step()
    assert results(life) == {2: {"action": "cancel"}}
    life.follower._requests.cancel_all()
    life.follower._recorder.commit()
    assert results(life) == {1: CANCELLED, 3: {"action": "cancel"}}
    await life.step()
    closed = [("Run it", "withdrawn"), ("Which one?", "withdrawn"), ("Which other one?", "withdrawn")]
    assert sorted(life.became()[3:]) == closed


async def test_what_an_agent_that_has_ended_asked_is_withdrawn(tmp_path: Path) -> None:
    """Also what was answered, if it was not given the answer."""
    life = await opened(tmp_path)
    permit(life, 1, "Run it", ALLOW, REJECT)
    permit(life, 2, "Run more", ALLOW, REJECT)
    await life.step()
    first, _ = life.follower._requests.ids
    life.follower.answer(first, "yes", None)
    life.follower._requests.withdraw_all()
    life.follower._requests.withdraw_all()
    life.follower._recorder.commit()
    assert life.became()[2:] == [("Run more", "withdrawn"), ("Run it", "withdrawn")]
    assert [each.get("option_id") for each in requests(life)[2:]] == [None, None]
    assert life.follower._requests.titles == []


async def test_the_next_runner_knows_all_requests(tmp_path: Path) -> None:
    """Those that are open, those whose answer was not given yet, and those that are closed."""
    life = await opened(tmp_path)
    for number, title in enumerate(("Run a", "Run b", "Run c")):
        permit(life, number, title, ALLOW, REJECT)
    await life.step()
    first, second, third = life.follower._requests.ids
    life.follower.answer(first, "yes", None)
    life.take()
    await life.step()
    life.follower.answer(second, "no", None)
    before = life.follower._requests.checkpoint()
    life.follow_again()
    assert life.follower._requests.checkpoint() == before
    assert life.follower._requests.titles == ["Run c"]
    assert life.follower._requests.ids == [third]
    life.follower._recover()
    assert life.follower.answer(second, "yes", None) is AnswerOutcome.REPEATED
    assert life.follower.answer(first, "yes", None) is AnswerOutcome.REPEATED
    life.take()
    await life.step()
    assert life.became()[3:] == [("Run a", "answered"), ("Run a", "answered"), ("Run b", "answered")]


async def test_an_answer_that_was_recorded_and_not_given_is_given_by_the_next_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent gets the answer that was recorded, once it can be given."""
    life = await opened(tmp_path)
    permit(life, 1, "Run it", ALLOW, REJECT)
    await life.step()
    (request_id,) = life.follower._requests.ids
    monkeypatch.setattr(life.follower._connection, "submit", lambda: None)
    life.follower.answer(request_id, "no", None)
    assert life.take() == []
    life.follow_again()
    life.follower._recover()
    assert results(life) == {1: selected("no")}
    await life.step()
    assert life.became() == [("Run it", "open"), ("Run it", "answered")]


@pytest.mark.parametrize("in_turn", [False, True])
async def test_an_answer_of_which_no_record_knows_cancels_the_turn(tmp_path: Path, *, in_turn: bool) -> None:
    """An earlier runner may have given any; its request is withdrawn, and people are told which."""
    life = await opened(tmp_path)
    if in_turn:
        await life.begin()
    permit(life, 1, "Run it", ALLOW, REJECT)
    permit(life, 2, "Run more", ALLOW, REJECT)
    await life.step()
    number = life.follower._connection._next_line + 5
    (life.folder.stdin / f"{number}.open").write_text(json.dumps({"id": 9, "result": selected("yes")}))
    life.follow_again()
    life.follower._recover()
    assert (life.take(), life.notices, len(life.became())) == ([], [], 2)
    (life.folder.stdin / f"{number + 9}.open").write_text(json.dumps({"id": 1, "result": selected("yes")}))
    life.follow_again()
    life.follower._recover()
    assert life.notices == [follower.UNKNOWN_ANSWER.format("Run it")]
    assert life.follower._turn.cancelled is in_turn
    cancelled = [{"method": "session/cancel", "params": {"sessionId": SESSION}}]
    answered = [{"id": 2, "result": CANCELLED}] if in_turn else []
    assert life.take() == answered + cancelled
    assert life.follower._requests.titles == ([] if in_turn else ["Run more"])
    assert life.became()[2:] == [("Run it", "withdrawn")]


def closed_with(*reports: tuple[int, str]) -> ClosedRequests:
    """Return closed requests, by their numbers."""
    closed = ClosedRequests([])
    for number, report in reports:
        closed.add(UUID(int=number), report)
    return closed


def test_the_latest_closed_requests_are_known() -> None:
    """Twenty of them, of 64 KiB together; the latest in any case."""
    closed = closed_with(*((number, f"{number}") for number in range(MAX_CLOSED)))
    assert closed.checkpoint() == [f"{number}" for number in range(20)]
    closed.add(UUID(int=20), "20")
    assert closed.checkpoint() == [f"{number}" for number in range(1, 21)]
    assert (closed.report_of(UUID(int=0)), closed.report_of(UUID(int=1))) == (None, "1")
    half = "é" * (MAX_CLOSED_BYTES // 4)
    closed = closed_with((1, half), (2, half))
    assert closed.checkpoint() == [half, half]
    closed.add(UUID(int=3), "x")
    assert closed.checkpoint() == [half, "x"]
    closed.add(UUID(int=4), "y" * (MAX_CLOSED_BYTES + 1))
    assert closed.checkpoint() == ["y" * (MAX_CLOSED_BYTES + 1)]
    report = f'{{"request_id":"{UUID(int=7)}"}}'
    assert ClosedRequests([report]).report_of(UUID(int=7)) == report


async def test_a_request_that_cannot_be_handled_is_refused(tmp_path: Path) -> None:
    """Or the agent would wait for ever. This one has a name of a field that only the schema's parser takes."""
    life = await opened(tmp_path)
    params = {"sessionId": SESSION, "tool_call": {"toolCallId": "t", "title": "Run it"}, "options": []}
    life.write({"id": 1, "method": "session/request_permission", "params": params})
    await life.step()
    assert results(life) == {1: {"code": -32603, "message": "taskherd could not handle this request"}}
    assert requests(life) == []


async def test_a_request_that_fails_after_its_answer_is_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an answer already."""
    life = await opened(tmp_path, default="allow")
    answer = life.follower._connection.answer

    def fail_after(*args: Any, **kwargs: Any) -> int:
        answer(*args, **kwargs)
        raise ValueError

    monkeypatch.setattr(life.follower._connection, "answer", fail_after)
    permit(life, 1, "Run it", ALLOW, REJECT)
    await life.step()
    assert results(life) == {1: selected("yes")}
