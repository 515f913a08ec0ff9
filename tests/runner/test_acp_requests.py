"""Requests of an agent that speaks ACP, under a real shim: each is answered once, whatever becomes of the runner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskherd.domain.value import replace
from tests.harness.runner import eventually
from tests.runner.acp import acp_run

pytestmark = pytest.mark.timeout(120)
ASK = "ask: 1 execute Run make"


def steps(*each: str) -> str:
    """Return a prompt that the tests' agent carries out."""
    return "\n".join(each)


def selected(option_id: str) -> dict[str, object]:
    """Return the result that chooses an option."""
    return {"outcome": {"outcome": "selected", "optionId": option_id}}


CANCELLED = {"outcome": {"outcome": "cancelled"}}


async def test_a_policy_answers_by_the_kind_of_tool(tmp_path: Path) -> None:
    """``allow`` chooses to allow once, ``deny`` to reject once; each is reported once, as answered."""
    policy = {"default": "deny", "read": "allow"}
    prompt = steps("ask: 1 read Read a", "ask: 2 execute Run rm", "ask: 3 switch_mode Leave the plan")
    async with acp_run(tmp_path, approvals=policy) as run:
        await run.start(prompt)
        await run.until_state("idle")
        await eventually(lambda: len(run.reports("agent.request")) == 3)
        reported = [each for (each,) in run.requests().values()]  # each at its own time
        assert {(each.tool and each.tool.kind, each.option_id, each.state) for each in reported} == {
            ("read", "o-allow_once", "answered"),
            ("execute", "o-reject_once", "answered"),
            ("other", "o-reject_once", "answered"),
        }
        assert run.answers("1") == [selected("o-allow_once")]
        assert run.answers("2") == [selected("o-reject_once")]
        assert any("Run rm" in text for text in run.texts("notice"))
        assert ("idle", "Run rm") not in run.states()


async def test_a_policy_allows_nothing_for_more_than_once(tmp_path: Path) -> None:
    """Where an agent offers to allow for ever only, a person is asked; what offers nothing is cancelled."""
    async with acp_run(tmp_path, approvals={"default": "allow"}) as run:
        await run.start(steps("ask-options: 1 allow_always Change a", "ask-nothing: 2 Change b"))
        request = await run.opened()
        assert [(option.id, option.kind) for option in request.options] == [("o-allow_always", "allow_always")]
        assert run.answer(request, "o-allow_always") == "done"
        await run.until_state("idle", "2: ")
        assert run.answers("2") == [CANCELLED]
        assert run.became("Change b") == []
        assert any("offers nothing to choose from: Change b" in text for text in run.texts("notice"))


@pytest.mark.parametrize("option_id", ["o-allow_once", "o-reject_once"])
async def test_a_person_answers(tmp_path: Path, option_id: str) -> None:
    """A request shows as idle with its title, and is working again with the answer, which the agent gets once."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "wait: go", "line: done"))
        await run.until_state("idle", "Run make")
        request = await run.opened()
        assert (request.kind, request.build_number, request.pull) == ("approval", 1, False)
        assert request.tool is not None
        assert (request.tool.kind, request.tool.input) == ("execute", '{"command":"Run make"}')
        assert [option.id for option in request.options] == ["o-allow_once", "o-allow_always", "o-reject_once"]
        assert run.answer(request, option_id, "beside it") == "done"
        await run.until_state("working")
        assert run.answer(request, option_id) == "repeated"
        assert run.answer(request, "o-allow_always") == "repeated"
        run.touch("go")
        await run.until_state("idle", "done")
        assert run.answers("1") == [selected(option_id)]
        await eventually(lambda: run.became("Run make")[:2] == ["open", "answered"])
        answered = run.requests()["Run make"][-1]
        assert (answered.option_id, answered.text) == (option_id, None)


@pytest.mark.parametrize("take_overs", [0, 1])
async def test_a_request_after_a_turn_shows_until_it_is_closed(tmp_path: Path, take_overs: int) -> None:
    """It is idle with its title, and then as the turn has left it, also if another runner gives the answer."""
    form = json.dumps({"name": {"type": "string"}})
    async with acp_run(tmp_path, complete_after_turn=True) as run:
        await run.start(steps("line: done", f"after: {ASK}", f"after: form: 2 {form}", "after: ask-only: 3 Change a"))
        for option_id, text in (("o-allow_once", None), (None, "Ada")):
            request = await run.opened()
            await run.until_state("idle", request.title)
            for _ in range(take_overs):
                await run.take_over()
            await eventually(lambda: run.answer(request, option_id, text) == "done")  # noqa: B023 - called at once
            await run.until_became(request.title, "open", "answered")
        await run.until_state("idle", "Change a")
        assert await run.follower.interrupt() == "ended"
        assert [state for state in run.states() if state[0] != "working"] == [
            ("complete", "done"), ("idle", "Run make"), ("complete", "done"), ("idle", "2"), ("complete", "done"),
            ("idle", "Change a"), ("complete", "done"),
        ]  # fmt: skip
        asking = [each["guessed_from"] for each in run.reports("app.status") if each["state"] == "idle"]
        assert all("waits for an answer" in source for source in asking)


async def test_an_agent_that_ends_after_its_turn_asks_nothing_any_more(tmp_path: Path) -> None:
    """The task is complete again when the agent exits with status 0 beside an open request."""
    async with acp_run(tmp_path, complete_after_turn=True) as run:
        await run.start(steps("line: done", "after: ask-only: 1 Change a", "after: wait: go", "after: exit: 0"))
        await run.until_state("idle", "Change a")
        run.touch("go")
        await run.until_ended()
        assert run.became("Change a") == ["open", "withdrawn"]
        assert run.state == ("complete", "done")


async def test_what_is_no_answer_changes_nothing(tmp_path: Path) -> None:
    """An option that was not offered, a text alone, and an answer to a request that nobody knows."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "line: done"))
        request = await run.opened()
        for option_id, text in (("allow", None), (None, "Yes"), (None, None)):
            assert run.answer(request, option_id, text) == "ignored"
        assert run.answer(replace(request, request_id=run.task.task_id), "o-allow_once") == "ignored"
        assert run.open_requests() == [request]
        assert run.answers("1") == []


async def test_two_requests_are_open_at_once(tmp_path: Path) -> None:
    """The state shows the first open one, and each gets its own answer, in any order."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("ask-only: 1 Change a", "ask-only: 2 Change b", "answer-of: 2", "answer-of: 1"))
        await eventually(lambda: len(run.open_requests()) == 2)
        first, second = run.open_requests()
        assert run.state == ("idle", "Change a")
        assert run.answer(second, "o-reject_once") == "done"
        assert run.state == ("idle", "Change a")
        assert run.answer(first, "o-allow_once") == "done"
        await run.until_state("idle", "1: ")
        assert (run.answers("1"), run.answers("2")) == ([selected("o-allow_once")], [selected("o-reject_once")])
        await eventually(lambda: run.became("Change a") == run.became("Change b") == ["open", "answered"])


async def test_a_request_expires_by_the_runners_clock(tmp_path: Path) -> None:
    """The runner rejects what was not answered in time, or cancels it if it cannot be rejected."""
    async with acp_run(tmp_path, approvals={"expire_after": "500ms"}) as run:
        await run.start(steps("ask: 1 edit Change a", "ask-options: 2 allow_once Change b", "line: done"))
        request = await run.opened()
        assert request.expires_at is not None
        await run.until_state("idle", "done")
        await run.until_became("Change b", "open", "expired")
        assert run.became("Change a") == ["open", "expired"]
        assert (run.answers("1"), run.answers("2")) == ([selected("o-reject_once")], [CANCELLED])
        assert run.answer(request, "o-allow_once") == "repeated"
        assert any("no answer came in time: Change a" in text for text in run.texts("notice"))


async def test_a_request_expires_while_no_runner_is_up(tmp_path: Path) -> None:
    """The next runner judges it, and the agent goes on."""
    async with acp_run(tmp_path, approvals={"expire_after": "2s"}) as run:
        await run.start(steps(ASK, "line: done"))
        await run.opened()
        await run.take_over()
        assert run.became("Run make") == ["open"]
        await run.until_state("idle", "done")
        await run.until_became("Run make", "open", "expired")


async def test_the_21st_open_request_is_rejected(tmp_path: Path) -> None:
    """An agent can have 20 requests open; the runner rejects a further one itself, and logs it."""
    many = [f"ask-only: {number} Change {number}" for number in range(21)]
    async with acp_run(tmp_path) as run:
        await run.start(steps(*many, "answer-of: 20", "hang"))
        await eventually(lambda: "20: " in "".join(run.texts()))
        assert len(run.open_requests()) == 20
        assert run.answers("20") == [selected("o-reject_once")]
        assert any("20 requests are open already: Change 20" in text for text in run.texts("notice"))
        assert await run.follower.interrupt() == "stopped"
        await eventually(lambda: not run.open_requests())
        assert [run.answers(str(number)) for number in range(20)] == [[CANCELLED]] * 20
        assert {tuple(states) for states in map(run.became, run.requests())} == {("open", "withdrawn")}


async def test_an_interrupt_withdraws_what_is_open(tmp_path: Path) -> None:
    """It is answered as cancelled before the turn is; an answer that comes later finds it closed."""
    async with acp_run(tmp_path) as run:
        await run.start(ASK)
        request = await run.opened()
        assert run.follower.is_at_work
        assert await run.follower.interrupt() == "stopped"
        await run.until_state("idle", "The turn was interrupted.")
        await run.until_became("Run make", "open", "withdrawn")
        assert run.answer(request, "o-allow_once") == "repeated"
        assert run.answers("1") == [CANCELLED]


@pytest.mark.parametrize("policy", ["allow", "ask"])
async def test_permission_asked_in_a_cancelled_turn_is_answered_as_cancelled(tmp_path: Path, policy: str) -> None:
    """What comes after the interrupt is neither allowed by the policy nor opened for people, and the turn ends."""
    async with acp_run(tmp_path, approvals={"default": policy}) as run:
        await run.start(f"once-cancelled: {ASK}")
        await eventually(lambda: "session/prompt" in run.received_methods())
        assert await run.follower.interrupt() == "stopped"
        await run.until_state("idle", "The turn was interrupted.")
        assert run.answers("1") == [CANCELLED]
        assert run.reports("agent.request") == []
        assert ("idle", "Run make") not in run.states()
        assert await run.send(ASK) is None  # the next turn is not cancelled
        await eventually(lambda: run.became("Run make"))


async def test_a_question_asked_in_a_turn_beyond_its_time_limit_is_cancelled(tmp_path: Path) -> None:
    """Nobody is asked, and the agent ends its turn with that answer."""
    form = json.dumps({"name": {"type": "string"}})
    async with acp_run(tmp_path, turn_timeout="1s") as run:
        await run.start(f"once-cancelled: form: 1 {form}")
        await run.until_state("idle", "The turn was interrupted.")
        assert run.answers("1") == [{"action": "cancel"}]
        assert run.reports("agent.request") == []


async def test_a_request_that_cannot_be_carried_out_is_refused(tmp_path: Path) -> None:
    """Its method is judged before its parameters and its session, and also what is no object gets an answer."""
    calls: list[tuple[str, object, int]] = [
        ("unknown", {}, -32601),
        ("unknown", {"sessionId": "other"}, -32601),
        ("unknown", [1], -32601),
        ("terminal/resize", {"terminalId": "1"}, -32601),
        ("terminal/output", {"terminalId": "1"}, -32002),
        ("session/request_permission", {"sessionId": "other"}, -32602),
        ("session/request_permission", {}, -32602),
        ("session/request_permission", [1], -32602),
        ("elicitation/create", "text", -32602),
    ]
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": f"ask-{number}", "method": method, "params": params})
        for number, (method, params, _) in enumerate(calls)
    ]
    async with acp_run(tmp_path, client_terminals=True) as run:
        await run.start(steps(*(f"raw: {line}" for line in lines), f"answer-of: {len(calls) - 1}"))
        await run.until_state("idle", "-32602")
        codes = {each["id"]: each["error"]["code"] for each in run.received() if "method" not in each}
        assert codes == {f"ask-{number}": code for number, (_, _, code) in enumerate(calls)}
        assert run.texts("notice") == []


async def test_an_agent_withdraws_its_request(tmp_path: Path) -> None:
    """By the protocol's cancellation of a request, or by ending its turn; it is answered as cancelled."""
    cancel = json.dumps({"jsonrpc": "2.0", "method": "$/cancel_request", "params": {"requestId": "ask-1"}})
    async with acp_run(tmp_path) as run:
        await run.start(steps("ask-only: 1 Change a", f"raw: {cancel}", "answer-of: 1", "ask-only: 2 Change b"))
        await run.until_became("Change b", "open", "withdrawn")
        assert run.became("Change a") == ["open", "withdrawn"]
        assert run.answers("1") == run.answers("2") == [CANCELLED]
        assert run.state[0] == "idle"


async def test_a_turn_that_ends_after_a_rejection_says_so(tmp_path: Path) -> None:
    """Some agents end their turn as cancelled; a later turn is told by what happens in it."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "stop: cancelled"))
        assert run.answer(await run.opened(), "o-reject_once") == "done"
        await run.until_state("idle", "The agent ended its turn because this was rejected: Run make")
        assert await run.send("stop: cancelled") is None
        await run.until_state("idle", "was not requested")


async def test_options_are_passed_on_only_as_they_are(tmp_path: Path) -> None:
    """Those that the agent could not get back are left out, the second of two with the same id too."""
    names = ["a", "a", "b\u202e", "c" * 65, "", *map(str, range(20))]
    options = [{"optionId": name, "name": " ", "kind": "allow_once"} for name in names]
    call = {"toolCallId": "1", "title": "x" * 300, "rawInput": {"big": "x" * 20_000}}
    params = json.dumps({"toolCall": call, "options": options})
    async with acp_run(tmp_path) as run:
        await run.start(f"request: 1 session/request_permission {params}")
        request = await run.opened()
        assert [option.id for option in request.options] == ["a", *map(str, range(15))]
        assert {option.label for option in request.options} == {option.id for option in request.options}
        assert len(request.title) == 200
        assert request.tool is not None
        assert request.tool.input is None
        assert "cannot be shown here" in request.detail
        assert run.answer(request, "3") == "done"
        await eventually(lambda: run.answers("1") == [selected("3")])


async def test_what_a_tool_changes_is_in_the_detail(tmp_path: Path) -> None:
    """The text and the changes of the tool call are shown to whom is asked."""
    diff = {"type": "diff", "path": "/a", "oldText": "one\ntwo", "newText": "one\n2"}
    content = [{"type": "content", "content": {"type": "text", "text": "As you said"}}, diff]
    call = {"toolCallId": "1", "title": "Edit a", "kind": "edit", "name": "Edit", "content": content}
    option = {"optionId": "yes", "name": "Yes", "kind": "allow_once"}
    async with acp_run(tmp_path) as run:
        params = json.dumps({"toolCall": call, "options": [option]})
        await run.start(f"request: 1 session/request_permission {params}")
        request = await run.opened()
        assert request.detail == "As you said\nchanges /a\n-one\n-two\n+one\n+2"
        assert request.tool is not None
        assert (request.tool.kind, request.tool.name) == ("edit", "Edit")


async def test_a_form_with_one_field_is_a_question(tmp_path: Path) -> None:
    """A field with choices has options, a text field none; any other form is declined, and the log says so."""
    forms = (
        {"color": {"type": "string", "enum": ["true", "blue"]}},
        {"name": {"type": "string"}},
        {"sure": {"type": "boolean"}},
        {"count": {"type": "integer"}},
        {"color": {"type": "string", "enum": ["red", "red"]}},
    )
    async with acp_run(tmp_path) as run:
        await run.start(steps(*(f"form: {number} {json.dumps(form)}" for number, form in enumerate(forms))))
        for option_id, text in (("true", None), (None, "Ada"), ("true", None)):
            request = await run.opened()
            assert request.kind == "question"
            assert bool(request.options) == (option_id is not None)
            await run.until_state("idle", request.title)
            assert run.answer(request, option_id, text) == "done"
            await run.until_became(request.title, "open", "answered")
        await run.until_state("idle", "4: ")
        assert [run.answers(str(number)) for number in range(5)] == [
            [{"action": "accept", "content": {"color": "true"}}],
            [{"action": "accept", "content": {"name": "Ada"}}],
            [{"action": "accept", "content": {"sure": True}}],
            [{"action": "decline"}],
            [{"action": "decline"}],
        ]
        assert run.requests()["1"][-1].text == "Ada"
        assert sum("form cannot be passed on" in text for text in run.texts("notice")) == 2


async def test_an_input_after_an_answer_comes_after_it(tmp_path: Path) -> None:
    """A steer interrupts the turn that goes on after the answer, and is the next one."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "hang"))
        assert run.answer(await run.opened(), "o-reject_once") == "done"
        assert await run.follower.interrupt() == "stopped"
        assert await run.send("line: steered") is None
        await run.until_state("idle", "steered")
        last = [each.get("method", "answer") for each in run.received()][-3:]
        assert last == ["answer", "session/cancel", "session/prompt"]
        assert run.answers("1") == [selected("o-reject_once")]
