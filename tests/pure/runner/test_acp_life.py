"""The follower of ACP, without processes: what it does when lines are late, lost or refused, and when it ends."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import pytest

from taskherd.domain.reports import InterruptOutcome
from taskherd.runner.agents import output
from taskherd.runner.agents.acp import cancelling, connection, follower, recorder
from taskherd.runner.agents.acp.lines import LineWriter
from taskherd.runner.agents.context import AnswerOutcome, DeliveryUnknown, NotDelivered
from taskherd.runner.journal import InputDelivery
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.acp_life import SESSION, AcpLife, continue_in_next_segment
from tests.pure.runner.contexts import reports_of
from tests.pure.runner.life import a_few_steps, recorded
from tests.pure.runner.test_context import given_start
from tests.pure.runner.test_outbox import full_disk


@pytest.fixture
def life(tmp_path: Path) -> AcpLife:
    """Return a follower that has not begun."""
    return AcpLife(tmp_path)


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the follower look at once again."""
    monkeypatch.setattr(follower, "POLL_INTERVAL", 0.001)
    monkeypatch.setattr(recorder, "FLUSH_EVERY", 0.0)


async def test_an_agent_is_ready_when_its_session_is_open(life: AcpLife) -> None:
    """Without a prompt it waits from then on; an update of a session that is not open shows nothing."""
    async with life.followed():
        initialize = await life.until_given()
        assert (initialize["method"], life.follower.start_outcome) == ("initialize", None)
        life.say("Too early")
        life.respond(0, protocolVersion=1)
        assert (await life.until_given())["method"] == "session/new"
        assert (life.saved, life.said) == ([], [])
        life.respond(1, sessionId=SESSION)
        await life.until(lambda: life.states)
    assert (life.saved, life.said) == ([True], [("ready",), ("idle",)])
    assert life.entries == []
    assert not life.works()


async def test_an_agent_with_a_prompt_works_before_it_is_ready(life: AcpLife) -> None:
    """The state says so before the task is active; a prompt that could not be given is told, and it waits then."""
    given_start(life.context)
    posted: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    life.change(deliver_once=lambda *_: posted)
    async with life.followed():
        await life.accept()
        await life.until(lambda: life.saved)
        assert life.said == [("working", "The agent has begun its turn."), ("ready",)]
        assert life.works()
        posted.set_result("it is out of paper")
        await life.until(lambda: life.states[-1][0] == "idle")
        assert not life.works()
    assert life.notices == ["prompt delivery failed: it is out of paper"]


async def test_the_next_runner_goes_on_with_the_start(life: AcpLife) -> None:
    """It asks nothing again, tells nothing again, and leaves a task complete that is."""
    async with life.followed():
        await life.until_given()
    life.follow_again()
    async with life.followed():
        await a_few_steps()
        assert life.waiting() == {}
        life.respond(0, protocolVersion=1)
        life.respond((await life.until_given())["id"], sessionId=SESSION)
        await life.until(lambda: life.states)
    life.follower._recorder.set_state("complete", "All done.")  # type: ignore[arg-type]
    told = life.said
    life.follow_again()
    async with life.followed():
        await life.until(lambda: life.follower._has_begun)
        await a_few_steps()
    assert (life.said, life.saved, life.waiting()) == (told, [True], {})
    life.follower._recorder.set_state("working", "All done.")  # type: ignore[arg-type]
    life.follow_again()
    async with life.followed():
        await life.until(lambda: life.states[-1] == ("idle", ""))


async def test_an_input_waits_for_the_session_and_for_the_end_of_the_turn(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt is recorded just before it is given. One that waits too long was not delivered."""
    events: list[str] = []

    async def note() -> None:
        events.append("attempt")

    delivery = asyncio.create_task(life.follower.deliver("one", note))
    async with life.followed():
        await life.until(life.waiting)
        assert events == []
        await life.accept()
        prompt = await life.until_given()
        assert (events, prompt["method"]) == (["attempt"], "session/prompt")
        assert prompt["params"] == {"sessionId": SESSION, "prompt": [{"type": "text", "text": "one"}]}
        await delivery
        monkeypatch.setattr(follower, "READY_TIMEOUT", 0.05)
        with pytest.raises(NotDelivered, match=r"did not end its turn within 0\.05 s"):
            await life.follower.deliver("two", note)
        life.respond(prompt["id"], stopReason="end_turn")
        await life.until(lambda: not life.follower.is_at_work)
        assert (events, life.waiting()) == (["attempt"], {})
    await life.follower.conclude(ExitRecord("exited", code=0))
    with pytest.raises(NotDelivered, match="The agent is not running"):
        await life.follower.deliver("three", note)
    assert events == ["attempt"]


async def deliver(life: AcpLife, then: Callable[[], Any]) -> str:
    """Give an agent with an open session an input; do something once it is submitted; return what was raised."""
    delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
    await life.until(life.waiting)
    then()
    try:
        await delivery
    except (NotDelivered, DeliveryUnknown) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("suffix", "error"),
    [
        (".done", ""),
        (".failed", "NotDelivered: The agent did not read the input from its stdin within 0.3 s."),
        (
            ".open",
            (
                "DeliveryUnknown: The agent did not read the input from its stdin within 0.3 s."
                " It may have received a part of the input."
            ),
        ),
        (None, "NotDelivered: The agent did not read the input from its stdin within 0.3 s."),
    ],
)
async def test_what_became_of_an_input(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch, suffix: str | None, error: str
) -> None:
    """Only what the shim wrote as a whole was given; what it did not begin is taken back, and the agent waits."""
    async with life.followed():
        await life.accept()
        await life.until(lambda: life.states)
        monkeypatch.setattr(connection, "WRITE_TIMEOUT", 0.3)
        if suffix == ".failed":  # it is seen only when the time is over
            monkeypatch.setattr(connection.Connection, "acknowledged", lambda _: {})
        raised = await deliver(life, lambda: None if suffix is None else life.take(suffix))
        assert raised == error
        deadlines = [line["deadline"] - time.monotonic() for line in life.follower._connection.lines.values()]
        if suffix == ".done":
            assert (life.states[-1][0], life.follower.is_at_work) == ("working", True)
        else:
            assert life.states[-1] == ("idle", "The agent did not read the input from its stdin within 0.3 s.")
            assert not life.works()
        if suffix == ".open":
            assert [1 < each <= 2 for each in deadlines] == [True], "the log says so before the agent is ended"
        if suffix is None:
            assert (life.waiting(), deadlines) == ({}, [])
        assert life.follower._awaited == {}


async def test_an_agent_that_closes_its_stdin_is_ended(life: AcpLife) -> None:
    """Also if it has read another line before; the input was not delivered."""
    async with life.followed():
        await life.accept()
        await life.until(lambda: life.states)
        life.follower._connection.notify("first", {})
        error = await deliver(life, lambda: end_lines(life, {2: ".done", 3: ".failed"}))
        assert error == "NotDelivered: The agent is not running."
        await life.until(lambda: life.stops)
    assert life.notices == ["The agent has closed its stdin."]
    assert (life.stops, life.context.journal.ended_because) == (1, "The agent has closed its stdin.")


def end_lines(life: AcpLife, suffixes: dict[int, str]) -> None:
    """Let the shim end these lines."""
    for number, suffix in suffixes.items():
        (life.folder.stdin / str(number)).rename(life.folder.stdin / f"{number}{suffix}")


async def test_a_delivery_ends_with_its_follower(life: AcpLife) -> None:
    """What becomes of the input is found out by the next one; this one records nothing of it."""
    async with life.followed():
        await life.accept()
        await life.until(lambda: life.states)
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
        await life.until(life.waiting)
        life.take(".open")
    told = life.said
    async with asyncio.timeout(20):
        with pytest.raises(DeliveryUnknown, match="The runner failed to follow the agent; its log"):
            await delivery
    assert life.said == told
    assert life.works()


async def test_answers_are_taken_by_a_follower_that_knows_all(life: AcpLife) -> None:
    """Not before it knows what an earlier runner has given, nor once another one may follow."""
    await life.open()
    life.ask(1, "Run make")
    await life.step()
    (report,) = reports_of(life.context.outbox, "agent.request")
    life.follow_again()
    request_id = next(iter(life.follower._requests.ids))
    assert str(request_id) == report["request_id"]
    assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.LATER
    async with life.followed():
        await life.until(lambda: life.follower._is_recovered)
    assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.LATER
    assert (life.waiting(), life.states) == ({}, [("idle", "Run make")])
    life.follow_again()
    life.follower._recover()
    assert life.follower.answer(request_id, "maybe", None) is AnswerOutcome.IGNORED
    assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.DONE
    assert [each["result"]["outcome"]["optionId"] for each in life.take()] == ["yes"]


async def test_an_interrupt_waits_for_a_turn_that_is_about_to_begin(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not for ever, nor if the follower ends."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 0.05)
    assert await life.follower.interrupt() is InterruptOutcome.ENDED
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 60.0)
    interrupt = asyncio.create_task(life.follower.interrupt())
    async with life.followed():
        await life.until(life.waiting)
        assert not interrupt.done()
    async with asyncio.timeout(20):
        assert await interrupt is InterruptOutcome.ENDED
    assert life.stops == 0


@pytest.mark.parametrize(
    ("ended", "is_told"),
    [
        (ExitRecord("exited", code=3), True),
        (ExitRecord("lost"), True),
        (ExitRecord("exited", code=0), False),
        (ExitRecord("stopped", signal=15), False),
        (ExitRecord("interrupted", signal=15), False),
    ],
)
async def test_the_last_output_of_an_agent_that_failed_is_told(
    life: AcpLife, ended: ExitRecord, *, is_told: bool
) -> None:
    """It is what the state says, too, if the agent has said nothing itself; calls that it left open have no state."""
    await life.open()
    life.context.journal.ready_reported = True
    life.update("tool_call", toolCallId="1", title="Run make", status="in_progress")
    await life.step()
    (life.folder.log / f"{0:020d}").write_text("first\nNo space\n")
    await life.follower.conclude(ended)
    assert life.notices == (["the agent's last output:\nfirst\nNo space"] if is_told else [])
    (report,) = reports_of(life.context.outbox, "agent.exit")
    assert report["words"] == "first\nNo space"
    assert [entry.get("status") for entry in life.entries if entry["kind"] == "tool_call"] == [None]
    if ended.reason == "exited":
        assert life.states[-1][1].endswith("No space")


async def test_an_agent_that_ends_without_a_word_is_told_as_such(life: AcpLife) -> None:
    """Its own last sentence counts more than what it printed; its start has failed if it has no session."""
    await life.open()
    life.say("I give up.")
    await life.step()
    await life.follower.conclude(ExitRecord("exited", code=3))
    assert life.notices == []
    assert life.states[-1] == ("failed", "The agent ended with exit status 3. Last output: I give up.")


async def test_a_start_that_ends_says_how(life: AcpLife) -> None:
    """With the last words of the agent, unless it is known already why."""
    life.follower._recover()
    (life.folder.log / f"{0:020d}").write_text("No key\n")
    await life.follower.conclude(ExitRecord("exited", code=3))
    assert life.follower.start_outcome == "The agent could not be started: The agent ended with exit status 3. No key"
    (report,) = reports_of(life.context.outbox, "agent.exit")
    assert report["why"] == "not_started"
    assert life.states[-1][0] == "failed"
    life.follow_again()
    life.follower._opening.fail("It wants a key.")
    await life.follower.conclude(ExitRecord("exited", code=3))
    assert life.follower.start_outcome == "It wants a key."


@pytest.mark.parametrize("is_open", [False, True])
async def test_how_an_agent_ended_is_in_the_log_once(life: AcpLife, *, is_open: bool) -> None:
    """Also if its runner is killed before its journal says that it has told the end, and the next one tells it."""
    if is_open:
        await life.open()
    (life.folder.log / f"{0:020d}").write_text("No space\n")
    told: list[Any] = []
    for _ in range(2):
        life.follow_again()
        await life.follower.conclude(ExitRecord("exited", code=3))
        told.append((life.notices, life.states[-1]))
    assert told[0] == told[1]
    start = "The agent could not be started: The agent ended with exit status 3. No space"
    assert told[1][0] == ["the agent's last output:\nNo space", *[start] * (not is_open)]


@pytest.mark.parametrize(
    ("shim", "answers", "was_given"),
    [
        ("", "not", False),
        (".open", "not", False),
        (".failed", "not", False),
        (".done", "not", True),
        ("forgotten", "not", True),
        ("", "unread", True),
        ("", "read", True),
    ],
)
async def test_whether_an_agent_that_has_ended_was_given_its_prompt(
    life: AcpLife, shim: str, answers: str, *, was_given: bool
) -> None:
    """The shim says so, or the agent's answer; else the next build gives it again."""
    await life.open()
    prompt_id = given_start(life.context)
    number = life.follower._send_prompt("Do it")
    life.context.journal.inputs[prompt_id] = InputDelivery.DELIVERING
    if shim == "forgotten":
        life.take()
        await life.step()
    elif shim:
        life.take(shim)
    if answers != "not":
        life.respond(number, stopReason="end_turn")
    if answers == "read":  # before the shim has said that the prompt was written
        await life.step()
        assert not life.follower._turn.is_open
    await life.follower.conclude(ExitRecord("exited", code=3))
    assert life.context.journal.was_given("Do it") is was_given


async def test_without_a_turn_no_prompt_was_given(life: AcpLife) -> None:
    """Whatever else the agent was given."""
    await life.open()
    prompt_id = given_start(life.context)
    life.context.journal.inputs[prompt_id] = InputDelivery.DELIVERING
    await life.follower.conclude(ExitRecord("exited", code=3))
    assert not life.context.journal.was_given("Do it")


@pytest.mark.parametrize("fails", ["the record", "the line"])
async def test_an_input_that_cannot_be_written_to_disk_is_not_given_later(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """It counts as failed, so nothing of it waits; the agent is idle, and takes the next one."""
    await life.open()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "the record":
            patch.setattr(Outbox, "is_saved", property(lambda _: False, lambda *_: None), raising=False)
        else:
            patch.setattr(LineWriter, "submit", fail)
        with pytest.raises(OSError, match=r"No space left|cannot be recorded"):
            await life.follower.deliver("lost", recorded)
    life.follower._recorder.commit()
    assert life.waiting() == {}
    assert life.states[-1][0] == "idle"
    assert life.follower._turn.begun == 0
    number = await life.begin("Go on")
    assert life.states[-1][0] == "working"
    life.respond(number, stopReason="end_turn")
    await life.step()
    assert [entry["content"] for entry in life.entries][-1:] == ["Go on"]
    assert len({entry["id"] for entry in life.entries}) == 1


@pytest.mark.parametrize("turns", [1, 2])
async def test_a_prompt_that_was_not_submitted_is_taken_back(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """The first one is given again; after a later one the agent waits. Its entry is that of the next one."""
    await life.open()
    prompt_id = given_start(life.context)
    if turns == 2:
        life.respond(await life.begin("one"), stopReason="end_turn")
        await life.step()
    with monkeypatch.context() as patch:
        patch.setattr(connection.Connection, "submit", lambda _: None)
        life.follower._send_prompt("lost")
    life.context.journal.inputs[prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    life.follower._recover()
    assert not life.follower._turn.is_open
    assert life.states[-1][0] == ("working" if turns == 1 else "idle")
    assert life.context.journal.inputs == ({} if turns == 1 else {prompt_id: InputDelivery.DELIVERED})
    await life.begin("next")
    assert life.entries[-1]["content"] == "next"
    assert [entry["type"] for entry in life.entries] == ["input"] * turns


async def test_a_turn_that_goes_on_was_given_its_prompt(life: AcpLife) -> None:
    """Also if the runner died before it noted that."""
    await life.open()
    prompt_id = given_start(life.context)
    await life.begin("Do it")
    life.context.journal.inputs[prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    life.follower._recover()
    assert life.context.journal.was_given("Do it")
    assert life.follower._turn.is_open
    assert life.waiting() == {}


async def test_what_was_recorded_and_not_submitted_is_given_by_the_next_runner(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request to end the turn, people's answers, and answers that must not be lost; others are refused."""
    await life.open()
    await life.begin()
    life.ask("a", "Run make")
    await life.step()
    (request_id,) = life.follower._requests.ids
    with monkeypatch.context() as patch:
        patch.setattr(connection.Connection, "submit", lambda _: None)
        life.follower.answer(request_id, "no", None)
        life.follower._cancellation.cancel()
        life.ask("b", "Run rm")
        life.write({"id": "c", "method": "unknown"})
        await life.step()
    for _ in range(2):
        life.follow_again()
        life.follower._recover()
    given = life.take()
    assert [each["params"] for each in given if "method" in each] == [{"sessionId": SESSION}]
    assert {each["id"]: each.get("result") for each in given if "method" not in each} == {
        "a": {"outcome": {"outcome": "selected", "optionId": "no"}},
        "b": {"outcome": {"outcome": "cancelled"}},
        "c": None,
    }
    (refusal,) = [each["error"] for each in given if "error" in each]
    assert refusal == {"code": -32603, "message": "taskherd was restarted while it handled this request"}
    await life.step()
    assert life.became() == [("Run make", "open"), ("Run make", "answered")]


@pytest.mark.parametrize("in_turn", [False, True])
async def test_a_prompt_of_which_no_record_knows_is_cancelled(life: AcpLife, *, in_turn: bool) -> None:
    """The agent may work on it; other messages of which nothing is known end no turn."""
    await life.open()
    if in_turn:
        await life.begin()
        life.follower._turn.cancelled = True  # as it was told, before its record was lost
        life.follower._recorder.commit()
    for method, cancels in (("session/cancel", False), ("session/prompt", True)):
        number = life.follower._connection._next_line + 5
        message = {"id": 9, "method": method, "params": {}}
        (life.folder.stdin / f"{number}.open").write_text(json.dumps(message))
        life.follow_again()
        life.follower._recover()
        assert [each["method"] for each in life.take()] == ["session/cancel"] * cancels
    assert life.follower._turn.cancelled is in_turn


async def test_what_no_record_on_disk_knows_is_not_deleted(life: AcpLife) -> None:
    """The next runner reads it again, if this one is killed before the disk has room."""
    await life.open()
    number = await life.begin()
    life.respond(number, stopReason="end_turn")
    first = continue_in_next_segment(life)
    with full_disk(0):
        assert life.follower._reading.read()
    assert (life.follower._turn.is_open, first.exists()) == (False, True)
    life.context.outbox.checkpoint = on_disk(life)
    life.follow_again()
    life.follower._recover()
    assert (life.follower._turn.is_open, first.exists()) == (True, True)
    await life.step()
    assert (life.follower._turn.is_open, first.exists()) == (False, False)


async def test_an_agent_that_waits_for_room_goes_on_when_the_disk_has_some(life: AcpLife) -> None:
    """What it wrote is recorded again although nothing changes any more, and then deleted."""
    async with life.followed():
        await life.accept()
        await life.until(lambda: life.states)
        life.write({"method": "n"})
        first, connection = continue_in_next_segment(life), life.follower._connection
        with full_disk(0):
            await life.until(lambda: connection.reader.offset == output.size(life.folder.output))
            await a_few_steps()
            assert first.exists()
        await life.until(lambda: not first.exists())


async def test_an_agent_whose_reports_wait_is_not_read(tmp_path: Path) -> None:
    """Its output waits in its segments."""
    outbox = Outbox(tmp_path / "small.jsonl", Budget(1), lambda _: None)
    life = AcpLife(tmp_path, outbox=outbox)
    async with life.followed():
        call = await life.until_given()
        outbox.append(["{}"])
        await a_few_steps()
        life.respond(call["id"], protocolVersion=1)
        await a_few_steps()
        assert life.waiting() == {}
        outbox.confirm(1)
        assert (await life.until_given())["method"] == "session/new"


async def test_an_agent_that_does_not_read_is_ended_in_time(life: AcpLife) -> None:
    """When one line is late, unless its caller waits for that itself."""
    await life.open()
    for name in ("a", "b"):
        life.follower._connection.notify(name, {})
    first, second = life.follower._connection.lines.values()
    first["deadline"] = time.monotonic() + 0.9
    await life.follower._check_deadlines()
    assert life.stops == 0
    second["deadline"] = time.monotonic() - 1
    life.follower._awaited[3] = None
    await life.follower._check_deadlines()
    assert (life.stops, life.saved) == (0, [])
    life.follower._awaited.clear()
    await life.follower._check_deadlines()
    await life.follower._check_deadlines()
    assert life.notices == ["The agent did not read from its stdin for 60 s."]
    assert (life.stops, len(life.saved)) == (1, 1)


async def test_a_turn_that_is_late_is_cancelled_and_then_its_agent_ended(life: AcpLife) -> None:
    """It has as long to end as after an interrupt."""
    await life.open()
    number = await life.begin()
    call = life.follower._connection.calls[number]
    call["deadline"] = time.monotonic() + 0.9
    await life.follower._check_deadlines()
    assert (life.notices, life.waiting()) == ([], {})
    call["deadline"] = time.monotonic() - 1
    await life.follower._check_deadlines()
    assert 14 < call["deadline"] - time.monotonic() <= 15
    assert [each["method"] for each in life.take()] == ["session/cancel"]
    assert life.notices == ["the turn exceeded its time limit (`turn_timeout`) and is cancelled"]
    call["deadline"] = time.monotonic() - 1
    await life.follower._check_deadlines()
    late = "The agent did not end its turn in time (`turn_timeout`), nor when it was cancelled."
    assert (life.stops, life.context.journal.ended_because, life.notices[1:]) == (1, late, [late])


async def test_a_turn_is_not_late_while_its_output_is_not_read(life: AcpLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read while reports wait for the broker; its end was written in time."""
    monkeypatch.setattr(connection, "CATCH_UP_TIME", -1.0)
    await life.open()
    number = await life.begin()
    budget = life.context.outbox._budget
    budget.maximum = 0
    budget.room.clear()
    async with life.followed():
        await life.until(lambda: life.follower._connection._paused_at is not None)
        life.follower._connection.calls[number]["deadline"] = life.follower._connection._paused_at
        life.respond(number, stopReason="end_turn")
        await life.follower._check_deadlines()
        assert life.follower._turn.is_open
        budget.maximum = 10**9
        budget.room.set()
        await life.until(lambda: not life.follower._turn.is_open)
    assert life.notices == []


async def test_the_next_runner_reads_before_anything_is_late(life: AcpLife) -> None:
    """Nobody has read meanwhile."""
    await life.open()
    number = await life.begin()
    life.follower._connection.calls[number]["deadline"] = time.monotonic() - 1000
    life.follower._recorder.commit()
    life.respond(number, stopReason="end_turn")
    life.follow_again()
    async with life.followed():
        await life.until(lambda: not life.follower._turn.is_open)
    assert life.notices == []


async def test_a_call_that_is_late_fails_the_start(life: AcpLife) -> None:
    """Once; a prompt whose turn is over is none that anybody waits for."""
    await life.open()
    number = await life.begin()
    life.follower._turn.end()
    life.follower._call("session/load", {})
    for call in life.follower._connection.calls.values():
        call["deadline"] = time.monotonic() - 1
    for _ in range(2):
        await life.follower._check_deadlines()
    assert life.notices == ["The agent did not answer `session/load` within 120 s."]
    assert [*life.follower._connection.calls] == [number]
    assert life.stops == 1


async def test_messages_that_show_nothing_are_counted(life: AcpLife) -> None:
    """They end nothing; what no schema knows, and updates of another session, are left out."""
    await life.open()
    other = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "Not mine"}}
    life.write({"method": "session/update", "params": {"sessionId": "other", "update": other}})
    life.write({"method": "session/other", "params": {"sessionId": SESSION, "update": other}})
    await life.step()
    assert bad_events(life) == 0
    life.update("no_such_update")
    life.update("plan", entries=[0] * 10_000)
    life.write({"id": 1, "method": "unknown", "params": [1]}, {"id": 2, "method": "terminal/create", "params": {}})
    life.write({"id": 3, "method": "session/request_permission", "params": [1]})
    await life.step()
    assert bad_events(life) == 3
    assert (life.entries, life.stops) == ([], 0)
    assert [(each["id"], each["error"]["code"]) for each in life.take()] == [(1, -32601), (2, -32601), (3, -32602)]


def bad_events(life: AcpLife) -> float:
    """Return how many events were counted as bad."""
    return float(life.context.metrics.runner_agent_events_bad._value.get())


async def test_100_lines_in_a_row_that_are_no_messages_end_an_agent(life: AcpLife) -> None:
    """A message between them begins the count anew; the next runner goes on with it. The first one is logged."""
    await life.open()
    life.write(*["x" * 300] * 99, {"method": "n"}, *["no JSON"] * 60)
    await life.step()
    life.follower._recorder.commit()
    life.follow_again()
    life.write(*["no JSON"] * 39)
    await life.step()
    assert (bad_events(life), life.stops) == (198, 0)
    life.write("no JSON")
    await life.step()
    reason = "The agent does not speak the protocol: 100 lines in a row are no messages of it."
    ignored = f"a line of the agent is ignored, because it is no JSON: {'x' * 200} (others are only counted)"
    assert (life.notices, life.stops) == ([ignored, reason], 1)


@pytest.mark.parametrize("gives_up", ["it does not speak the protocol", "it does not read"])
async def test_why_an_agent_is_given_up_survives_the_runner(life: AcpLife, gives_up: str) -> None:
    """It is recorded before the agent is stopped; the next runner stops it, too, and reports it as failed."""
    found: list[str | None] = []
    life.change(stop_agent=lambda: found.append(on_disk(life).get("ended_because")))
    await life.open()
    await life.begin()
    journal = life.context.journal.model_copy(deep=True)
    if gives_up == "it does not speak the protocol":
        life.write(*["no message"] * 100)
        await life.step()
        reason = "The agent does not speak the protocol: 100 lines in a row are no messages of it."
    else:
        life.follower._connection.notify("a", {})
        (line,) = life.follower._connection.lines.values()
        line["deadline"] = time.monotonic() - 1
        await life.follower._check_deadlines()
        reason = "The agent did not read from its stdin for 60 s."
    assert found == [reason]
    life.context.outbox.checkpoint = on_disk(life)
    life.change(journal=journal)
    life.follower._recover()
    assert found == [reason] * 2
    await life.follower.conclude(ExitRecord("stopped", signal=15))
    (report,) = reports_of(life.context.outbox, "agent.exit")
    assert (report["why"], life.states[-1]) == ("signalled", ("failed", reason))


def on_disk(life: AcpLife) -> dict[str, Any]:
    """Return the checkpoint that the next runner finds."""
    return Outbox(life.context.outbox._path, Budget(10**9), lambda _: None).checkpoint


async def test_the_journal_says_why_an_agent_is_stopped_before_it_is(life: AcpLife) -> None:
    """If it can be written: on a full disk the agent is stopped nevertheless, once."""
    events: list[str | None] = []

    async def save() -> None:
        events.append(life.context.journal.ended_because)
        raise OSError(28, "No space left on device")

    life.change(save=save, stop_agent=lambda: events.append("stop"))
    await life.open()
    for _ in range(2):
        await life.follower._ending.end("It does not read.")
    assert events == ["It does not read.", "stop"]


async def test_a_later_agent_is_not_given_up_for_an_earlier_one(life: AcpLife) -> None:
    """A start that was accepted meanwhile has a journal without a reason, whoever still follows the earlier agent."""
    await life.open()
    given_start(life.context)
    await life.follower._ending.end("It does not read.")
    journal = life.context.journal
    life.follow_again()
    assert journal.ended_because == "It does not read."
    assert journal.start is not None
    journal.start, journal.ended_because = journal.start.model_copy(update={"build_number": 3}), None
    life.follow_again()
    assert journal.ended_because is None


async def test_a_start_that_failed_is_not_ended_by_the_next_runner(life: AcpLife) -> None:
    """It opens the session again, and what was recorded of the first attempt ends no agent that has one."""
    life.follower._recover()
    life.follower._opening.begin()
    (call,) = life.take()
    life.write({"id": call["id"], "error": {"code": 1, "message": "Busy"}})
    await life.step()
    assert life.follower.start_outcome == "The agent refused `initialize`: Busy"
    life.context.journal.ended_because = None
    life.follow_again()
    await life.open()
    life.follow_again()
    life.follower._recover()
    assert (life.stops, life.context.journal.ended_because) == (0, None)


async def test_the_id_of_an_open_request_is_not_used_twice(life: AcpLife) -> None:
    """A number and a text are different ids, also for whoever withdraws one."""
    await life.open()
    for number, title in ((1, "one"), ("1", "two"), (1, "three")):
        life.ask(number, title)
    await life.step()
    assert life.became() == [("one", "open"), ("two", "open")]
    assert len(life.notices) == bad_events(life) == 1
    for number in ("2", 2, "1"):
        life.write({"method": "$/cancel_request", "params": {"requestId": number}})
    await life.step()
    assert life.take() == [{"id": "1", "result": {"outcome": {"outcome": "cancelled"}}}]
    await life.step()
    assert life.became()[2:] == [("two", "withdrawn")]
    assert life.states[-1] == ("idle", "one")


async def test_an_answer_is_repeated_while_the_agent_may_not_have_it(life: AcpLife) -> None:
    """What is answered twice is given once, whichever other answers are under way."""
    await life.open()
    for title in ("one", "two"):
        life.ask(title, title)
    await life.step()
    first, second = life.follower._requests.ids
    for request_id in (first, second):
        assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.DONE
        assert life.follower.answer(request_id, "no", None) is AnswerOutcome.REPEATED
    assert life.follower.answer(life.context.journal.task_id, "yes", None) is AnswerOutcome.IGNORED
    assert [each["result"]["outcome"]["optionId"] for each in life.take()] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("always", "The agent says that its turn was cancelled, although that was not requested (cancelled)."),
        ("never", "The agent ended its turn because this was rejected: Run make"),
        ("no", "The agent ended its turn because this was rejected: Run make"),
    ],
)
async def test_only_a_rejection_is_the_reason_of_a_turn_that_ends(life: AcpLife, chosen: str, message: str) -> None:
    """For once or for ever."""
    await life.open()
    number = await life.begin()
    life.ask(1, "Run make", ("always", "allow_always"), ("never", "reject_always"), ("no", "reject_once"))
    await life.step()
    (request_id,) = life.follower._requests.ids
    assert life.follower.answer(request_id, chosen, None) is AnswerOutcome.DONE
    life.respond(number, stopReason="cancelled")
    await life.step()
    assert life.states[-1] == ("idle", message)


@pytest.mark.parametrize(
    ("length", "outcome"),
    [(1_024, {"outcome": "selected", "optionId": "x" * 1_024}), (1_025, {"outcome": "cancelled"})],
)
async def test_a_request_that_offers_nothing_to_people_is_rejected(
    life: AcpLife, length: int, outcome: dict[str, str]
) -> None:
    """By its option for that, however long its id is, within limits."""
    await life.open()
    life.ask(1, "", ("x" * length, "reject_once"))
    await life.step()
    assert [each["result"]["outcome"] for each in life.take()] == [outcome]
    title = "A tool call"
    advice = "(the template's `run.approvals` can decide instead)"
    assert life.notices == [f"this was rejected, because it offers nothing to choose from: {title} {advice}"]
    assert (life.became(), life.follower._turn.rejected) == ([], title)


async def test_a_form_that_cannot_be_passed_on_is_declined(life: AcpLife) -> None:
    """With its message, if it has one; a short question is its title, and a long one is its detail, too."""
    await life.open()
    form = {"type": "object", "properties": {"name": {"type": "string"}}}
    questions: list[dict[str, Any]] = [
        {"mode": "url", "requestedSchema": form},
        {"mode": "url", "message": "Go there"},
        {"mode": "form", "message": " Which name? ", "requestedSchema": form},
        {"mode": "form", "message": "Which\nname?", "requestedSchema": form},
        {"mode": "form", "requestedSchema": form},
    ]
    for number, params in enumerate(questions):
        life.write({"id": number, "method": "elicitation/create", "params": params})
    await life.step()
    assert life.take() == [{"id": number, "result": {"action": "decline"}} for number in (0, 1)]
    assert [notice.rpartition(": ")[2] for notice in life.notices] == ["The agent asks a question", "Go there"]
    asked = [(each["title"], each.get("detail", "")) for each in reports_of(life.context.outbox, "agent.request")]
    assert asked == [("Which name?", ""), ("Which name?", "Which\nname?"), ("name", "")]


@pytest.mark.parametrize(("line", "kept"), [(str(10**23), None), (str(2**63), None), (str(2**63 - 1), 2**63 - 1)])
async def test_a_line_that_no_record_can_hold_is_left_out(life: AcpLife, line: str, kept: int | None) -> None:
    """The schema takes strings of digits; the call is shown without it, and the turn ends."""
    await life.open()
    number = await life.begin()
    life.update("tool_call", toolCallId="t", title="Look", locations=[{"path": "/a", "line": line}])
    await life.step()
    life.follower._recorder.commit()
    life.respond(number, stopReason="end_turn")
    await life.step()
    assert life.states[-1][0] == "idle"
    assert [entry["content"] for entry in life.entries] == ["Do it", "Look"]
    assert life.entries[1]["data"]["locations"] == [{"path": "/a"} if kept is None else {"path": "/a", "line": kept}]


def out_of_descriptors(path: object, *_: object, **__: object) -> Never:
    """Fail as a process does that has no file descriptor left."""
    raise OSError(errno.EMFILE, "Too many open files", str(path))


async def test_an_answer_is_given_once_though_its_line_could_not_be_looked_for(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors recovery fails and changes nothing, and nothing else is given; it is tried again."""
    await life.open()
    await life.begin()
    life.ask(1, "Run it")
    await life.step()
    (request_id,) = life.follower._requests.ids
    assert life.follower.answer(request_id, "yes", None) is AnswerOutcome.DONE
    before, given = life.context.outbox.checkpoint, life.waiting()
    assert [each["id"] for each in given.values()] == [1]
    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", out_of_descriptors)
        life.follow_again()
        with pytest.raises(OSError, match="Too many open files"):
            life.follower._recover()
        assert not life.follower._is_recovered
    assert (life.context.outbox.checkpoint, life.waiting()) == (before, given)
    life.follow_again()
    life.follower._recover()
    assert life.waiting() == given


async def test_an_input_waits_for_the_recovery(life: AcpLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that it is not known what the agent was given."""
    await life.open()
    life.follow_again()
    monkeypatch.setattr(follower, "READY_TIMEOUT", 0.01)
    with pytest.raises(NotDelivered, match="did not end its turn"):
        await life.follower.deliver("hello", recorded)
    assert life.waiting() == {}


async def test_an_input_is_not_told_as_lost_though_its_line_could_not_be_looked_for(
    life: AcpLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unknown then whether the agent got it."""
    await life.open()
    number = life.follower._send_prompt("Do it")
    life.take(".open")
    life.follower._is_detached = True
    monkeypatch.setattr("os.listdir", out_of_descriptors)
    with pytest.raises(DeliveryUnknown):
        await life.follower._wait_written(number)


def fail(*_: object, **__: object) -> Never:
    """Fail as the handling of a message that nobody has thought of."""
    raise TypeError


async def test_an_answer_that_cannot_be_handled_fails_the_start(life: AcpLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call is over, so that nothing else would end the start."""
    monkeypatch.setattr("taskherd.runner.agents.acp.handshake.authentication_needed", fail)
    life.follower._recover()
    life.follower._opening.begin()
    life.respond(life.take()[0]["id"], protocolVersion=1)
    await life.step()
    reason = "The agent refused `initialize`: taskherd could not handle the answer"
    assert life.follower.start_outcome == reason


async def test_an_end_that_cannot_be_handled_ends_the_turn(life: AcpLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has failed, and the agent takes another input."""
    await life.open()
    number = await life.begin()
    with monkeypatch.context() as patch:
        patch.setattr(life.follower._turn, "state_after", fail_once(life.follower._turn.state_after))
        life.respond(number, stopReason="end_turn")
        await life.step()
    words = "The agent could not carry out its turn: taskherd could not handle the answer"
    assert (life.states[-1], life.follower._turn.is_open, life.stops) == (("failed", words), False, 0)


async def test_an_agent_whose_turn_cannot_be_ended_is_ended(life: AcpLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even as failed: it would be at work for ever."""
    await life.open()
    number = await life.begin()
    monkeypatch.setattr(life.follower._turn, "state_after", fail)
    life.respond(number, stopReason="end_turn")
    await life.step()
    assert (life.notices[-1], life.stops) == ("An answer of the agent could not be handled.", 1)


def fail_once(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that fails, and calls another one from then on."""
    failures = iter([TypeError()])

    def called(*args: object, **kwargs: object) -> object:
        for error in failures:
            raise error
        return call(*args, **kwargs)

    return called
