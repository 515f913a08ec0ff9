"""A follower of a stream of events, without processes: inputs, what the next runner finds, and the end of the agent."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import InterruptOutcome
from taskherd.messages.limits import LOG_BURST
from taskherd.runner import outbox
from taskherd.runner.agents import interrupting, output
from taskherd.runner.agents.acp.lines import LineWriter
from taskherd.runner.agents.context import NOT_FOLLOWED, DeliveryUnknown, NotDelivered
from taskherd.runner.agents.event_stream import follower
from taskherd.runner.agents.event_stream.follower import EventStreamFollower
from taskherd.runner.agents.log_budget import LOG_SHARE, READ_COST, LogBudget, LogRates
from taskherd.runner.agents.status_pace import STATUS_EVERY
from taskherd.runner.journal import InputDelivery
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.acp_life import LineLife, continue_in_next_segment
from tests.pure.runner.contexts import Spending, reports_of
from tests.pure.runner.life import a_few_steps, recorded
from tests.pure.runner.test_context import given_start
from tests.pure.runner.test_outbox import full_disk

INIT = {"type": "system", "subtype": "init", "session_id": "s"}
DONE = {"type": "result", "subtype": "success", "result": "Done."}


def said(text: str) -> dict[str, Any]:
    """Return the event of a message."""
    return {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}}


def call(title: str) -> dict[str, Any]:
    """Return the event of a tool call."""
    block = {"type": "tool_use", "id": title, "name": title, "input": {}}
    return {"type": "assistant", "message": {"content": [block]}}


class StreamLife(LineLife[EventStreamFollower]):
    """A follower of Claude Code's stream of events."""

    def __init__(self, folder: Path, **run: Any) -> None:
        super().__init__(folder, EventStreamFollower, **{"output": "claude-stream-json", **run})

    def read(self, *events: dict[str, Any] | str) -> None:
        """Let the agent write these events, and the follower read them."""
        self.write(*events)
        while self.follower._read():
            pass

    @property
    def contents(self) -> list[tuple[str | None, str]]:
        """Kind and content of the entries of the log."""
        return [(entry.get("kind"), entry["content"]) for entry in self.entries]


@pytest.fixture
def life(tmp_path: Path) -> StreamLife:
    """Return a follower that has not begun."""
    return StreamLife(tmp_path)


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the follower look at once again, and no group end because the machine is slow."""
    monkeypatch.setattr(follower, "POLL_INTERVAL", 0.001)
    monkeypatch.setattr(follower, "GROUP_TIME", 60)


async def test_an_agent_without_a_prompt_waits_from_its_start(life: StreamLife) -> None:
    """It is ready once; its session is noted when it says it."""
    async with life.followed():
        await life.until(lambda: life.states)
        assert life.said == [("ready",), ("idle",)]
        assert life.saved == [True]
        assert not life.works()
        life.write(INIT)
        await life.until(lambda: len(life.saved) == 2)
        assert life.context.journal.stream_session == "s"
        life.write(DONE)
        await life.until(lambda: life.states[-1] == ("idle", "Done."))
    told = life.said
    life.follow_again()
    async with life.followed():
        await life.until(life.follower._has_begun.is_set)
        await a_few_steps()
    assert (life.said, len(life.saved)) == (told, 2)


async def test_an_agent_with_a_prompt_works_before_it_is_ready(life: StreamLife) -> None:
    """A prompt that could not be given is told, and the agent waits then."""
    given_start(life.context)
    posted: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    life.change(deliver_once=lambda *_: posted)
    async with life.followed():
        await life.until(lambda: life.saved)
        assert life.said == [("working",), ("ready",)]
        assert life.works()
        posted.set_result("it is out of paper")
        await life.until(lambda: life.states[-1][0] == "idle")
    assert life.contents == [("notice", "taskherd: prompt delivery failed: it is out of paper")]


@pytest.mark.parametrize("prompt", [False, True])
async def test_an_agent_that_takes_no_inputs_works_until_it_ends(tmp_path: Path, *, prompt: bool) -> None:
    """It was given its prompt at its start, if there is one; that is told once."""
    life = StreamLife(tmp_path, stdin="none")
    if prompt:
        given_start(life.context)
    for _ in range(2):
        life.follow_again()
        async with life.followed():
            await life.until(life.follower._has_begun.is_set)
            assert life.follower.is_at_work is prompt
    assert life.contents == ([(None, "Do it")] if prompt else [])
    with pytest.raises(NotDelivered, match="takes no inputs: its template has `stdin: none`"):
        await life.follower.deliver("more", recorded)
    life.read(INIT, DONE)
    assert [state for state, _ in life.states] == ["working"] * len(life.states)
    await life.follower.conclude(ExitRecord("exited", code=0))
    assert life.states[-1] == ("complete", "Done.")
    (tmp_path / "early").mkdir()
    early = StreamLife(tmp_path / "early", stdin="none")
    await early.follower.conclude(ExitRecord("exited", code=0))
    assert [state for state, _ in early.states] == ["working", "complete"]


async def deliver(life: StreamLife, then: Callable[[], Any]) -> str:
    """Give the agent an input; do something once it is submitted; return what was raised."""
    delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
    await life.until(life.waiting)
    assert life.works()
    then()
    try:
        await delivery
    except (NotDelivered, DeliveryUnknown) as error:
        return f"{type(error).__name__}: {error}"
    return ""


NOT_READ = "The agent did not read the input from its stdin within 0.3 s."


@pytest.mark.parametrize(
    ("suffix", "error"),
    [
        (".done", ""),
        (".failed", "NotDelivered: The agent is not running."),
        (".open", f"DeliveryUnknown: {NOT_READ} It may have received a part of the input."),
        (None, f"NotDelivered: {NOT_READ}"),
        ("exit", "NotDelivered: The agent is not running."),
    ],
)
async def test_what_became_of_an_input(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch, suffix: str | None, error: str
) -> None:
    """Only what the shim wrote as a whole was given; what it did not begin is taken back, and the agent waits."""
    async with life.followed():
        await life.until(lambda: life.states)
        if suffix in {".open", None}:
            monkeypatch.setattr(follower, "WRITE_TIMEOUT", 0.3)

        def then() -> None:
            message = {"type": "user", "message": {"role": "user", "content": "hello"}}
            assert [*life.waiting().values()] == [message]
            if suffix == "exit":
                life.folder.exit.write_text("{}")
            elif suffix is not None:
                life.take(suffix)

        assert await deliver(life, then) == error
        is_given = suffix in {".done", ".open"}
        assert life.states[-1][0] == ("working" if is_given else "idle")
        assert life.follower.is_at_work is is_given
        assert sorted(path.name for path in life.folder.stdin.iterdir()) == (["0.open"] if suffix == ".open" else [])
    assert life.context.outbox.checkpoint["line"] == (0 if suffix == ".open" else None)
    assert life.context.outbox.checkpoint["next_line"] == 1


@pytest.mark.parametrize("is_submitted", [False, True])
async def test_an_input_changes_nothing_about_an_agent_that_has_ended(life: StreamLife, *, is_submitted: bool) -> None:
    """If the agent ends while the input is recorded, or before it is taken: the state after its end stands."""

    async def end() -> None:
        if not is_submitted:
            life.folder.exit.write_text("{}")
        await life.follower.conclude(ExitRecord("exited", code=3))

    async with life.followed():
        await life.until(lambda: life.states)
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded if is_submitted else end))
        if is_submitted:
            await life.until(life.waiting)
            life.folder.exit.write_text("{}")
        else:
            await asyncio.wait({delivery}, timeout=30)
    if is_submitted:
        await life.follower.conclude(ExitRecord("exited", code=3))
    with pytest.raises(NotDelivered, match="The agent is not running"):
        await delivery
    assert life.states[-1][0] == "failed"
    assert (life.waiting(), life.follower._stream.in_turn) == ({}, False)


@pytest.mark.parametrize(
    ("suffix", "error"),
    [
        (".done", ""),
        (".failed", "NotDelivered: The agent is not running."),
        (".open", f"DeliveryUnknown: {NOT_FOLLOWED} It may have received a part of the input."),
        (None, f"NotDelivered: {NOT_FOLLOWED}"),
    ],
)
async def test_an_input_whose_follower_failed(life: StreamLife, suffix: str | None, error: str) -> None:
    """Its outcome is told at once, and the next one goes on without what is taken back; nothing else is recorded."""
    async with life.followed():
        await life.until(lambda: life.states)
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
        await life.until(life.waiting)
        if suffix is not None:
            life.take(suffix)
    old, checkpoint = life.follower, life.context.outbox.checkpoint
    life.follow_again()
    life.follower._recover()  # it forgets the line
    is_given = suffix in {".done", ".open"}
    assert life.follower._stream.in_turn is is_given
    life.write(DONE)
    life.read()
    after = life.context.outbox.checkpoint
    assert after["offset"] > checkpoint["offset"]
    raised = ""
    try:
        await asyncio.wait_for(delivery, 30)
    except (NotDelivered, DeliveryUnknown) as exception:
        raised = f"{type(exception).__name__}: {exception}"
    assert (raised, life.context.outbox.checkpoint) == (error, after)
    with pytest.raises(NotDelivered):
        await old.deliver("another", recorded)
    assert (life.waiting(), life.context.outbox.checkpoint) == ({}, after)


async def test_an_input_that_an_agent_did_not_get_before_its_end_was_no_turn(life: StreamLife) -> None:
    """It had ended the one before, and so its work."""
    life.context.journal.ready_reported = True
    async with life.followed():
        await life.until(lambda: life.states)
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
        await life.until(life.waiting)
        life.folder.exit.write_text("{}")
    await life.follower.conclude(ExitRecord("exited", code=0))
    with pytest.raises(NotDelivered, match="The agent is not running"):
        await delivery
    assert life.states[-1][0] == "complete"


@pytest.mark.parametrize("fails", ["the record", "the line"])
async def test_an_input_that_cannot_be_written_to_disk_begins_no_turn(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """None is given that the next runner would not know; the agent waits, and takes the next one."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with life.followed():
        await life.until(lambda: life.states)
        with monkeypatch.context() as patch:
            patch.setattr(follower, "WRITE_TIMEOUT", 0.05)
            if fails == "the record":
                patch.setattr(Outbox, "is_saved", property(lambda _: False, lambda *_: None), raising=False)
            else:
                patch.setattr(LineWriter, "submit", fail)
            with pytest.raises(OSError, match=r"No space|cannot be recorded"):
                await life.follower.deliver("lost", recorded)
        assert life.waiting() == {}
        assert life.states[-1][0] == "idle"
        assert not life.works()
        assert life.context.outbox.checkpoint["line"] is None
        assert await deliver(life, life.take) == ""
        assert life.states[-1][0] == "working"


async def test_what_no_record_on_disk_knows_is_not_deleted(life: StreamLife) -> None:
    """The next runner reads it again, if this one is killed before the disk has room."""
    life.read(INIT)
    checkpoint = life.context.outbox.checkpoint
    life.write(DONE)
    first = continue_in_next_segment(life)
    with full_disk(0):
        assert life.follower._read()
    assert (life.follower._stream.in_turn, first.exists()) == (False, True)
    life.context.outbox.checkpoint = checkpoint  # what the next runner finds on disk
    life.follow_again()
    assert life.follower._stream.in_turn is True
    life.read()
    assert (life.follower._stream.in_turn, first.exists()) == (False, False)


async def test_an_agent_that_waits_for_room_goes_on_when_the_disk_has_some(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote is recorded again although nothing changes any more, and then deleted."""
    monkeypatch.setattr(follower, "RETRY_EVERY", 0)
    async with life.followed():
        await life.until(lambda: life.states)
        life.write({"type": "x"})
        first = continue_in_next_segment(life)
        with full_disk(0):
            await life.until(lambda: life.follower._reader.offset == output.size(life.folder.output))
            await a_few_steps()
            assert first.exists()
        await life.until(lambda: not first.exists())


async def test_what_a_runner_had_recorded_and_not_deleted_is_deleted_by_the_next(tmp_path: Path) -> None:
    """An agent whose output has no room would wait for that for ever."""
    life = StreamLife(tmp_path, stdin="none")
    life.read(INIT)
    first = continue_in_next_segment(life)
    life.follow_again()
    async with life.followed():
        await life.until(lambda: not first.exists())


@pytest.mark.parametrize("is_submitted", [False, True])
async def test_an_input_whose_runner_died(life: StreamLife, *, is_submitted: bool) -> None:
    """If it was not submitted it began no turn; otherwise the turn goes on."""
    async with life.followed():
        await life.until(lambda: life.states)
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
        await life.until(life.waiting)
        delivery.cancel()
        await asyncio.wait({delivery})
    if not is_submitted:
        (life.folder.stdin / "0").unlink()
    life.follow_again()
    async with life.followed():
        await life.until(life.follower._has_begun.is_set)
        await life.until(lambda: life.context.outbox.checkpoint["line"] is None)
        assert life.follower._stream.in_turn is is_submitted
        assert life.states[-1][0] == ("working" if is_submitted else "idle")


def journaling_prompt(life: StreamLife) -> list[str]:
    """Let the follower have a prompt to give, at most once by the journal, and return what it gives."""
    prompt_id, inputs, given = given_start(life.context), life.context.journal.inputs, list[str]()

    async def deliver_once(input_id: UUID, text: str) -> str | None:
        async def record() -> None:
            inputs[input_id] = InputDelivery.DELIVERING

        assert input_id == prompt_id
        if input_id not in inputs:
            given.append(text)
            await life.follower.deliver(text, record)
            inputs[input_id] = InputDelivery.DELIVERED
        return None

    life.change(deliver_once=deliver_once)
    return given


DIED = pytest.mark.parametrize(
    ("died", "is_given"),
    [
        ("before it was submitted", False),
        ("before it was taken", True),
        ("before that was noted", True),
        ("before the journal was saved", True),
        ("when the agent had closed its stdin", False),
    ],
)


async def lose_runner(life: StreamLife, died: str, *, is_given: bool) -> UUID:
    """Let a runner die while it gives the prompt, and another one follow the agent; return the id of the prompt."""
    journal = life.context.journal
    async with life.followed():
        await life.until(life.waiting)
        if died == "before the journal was saved":
            life.take()
            await life.until(lambda: life.context.outbox.checkpoint["was_given"])
    if died in {"before that was noted", "when the agent had closed its stdin"}:
        life.take(".done" if is_given else ".failed")
    elif died == "before it was submitted":
        (life.folder.stdin / "0").unlink()
    prompt_id = journal.prompt_id
    assert prompt_id is not None
    journal.inputs[prompt_id] = InputDelivery.DELIVERING
    journal.given_prompt = ""
    life.follow_again()
    return prompt_id


@DIED
async def test_a_prompt_whose_runner_died(life: StreamLife, died: str, *, is_given: bool) -> None:
    """The next one finds out whether the agent has it, and gives it if not: neither never nor twice."""
    given, journal = journaling_prompt(life), life.context.journal
    prompt_id = await lose_runner(life, died, is_given=is_given)
    async with life.followed():
        if not is_given:
            await life.until(lambda: len(given) == 2)
            await life.until(life.waiting)
            life.take()
        await life.until(lambda: journal.was_given("Do it"))
        await life.until(life.follower._has_begun.is_set)
    assert given == ["Do it"] * (1 if is_given else 2)
    assert journal.inputs == {prompt_id: InputDelivery.DELIVERED}
    assert life.follower._stream.in_turn
    assert {state for state, _ in life.states} == {"working"}
    assert [entry["content"] for entry in life.entries] == ["Do it"]


async def test_a_prompt_that_was_taken_while_the_disk_was_full_is_not_given_again(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shim says of it stays until a checkpoint is on disk."""
    given = journaling_prompt(life)
    outbox, checkpoint = life.context.outbox, dict[str, Any]()
    async with life.followed():
        await life.until(life.waiting)
        checkpoint = outbox.checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "is_saved", property(lambda _: False, lambda *_: None), raising=False)
            life.take()
            await life.until(life.follower._has_begun.is_set)
    outbox.checkpoint = checkpoint  # what the next runner finds on disk
    assert life.context.journal.prompt_id is not None
    life.context.journal.inputs[life.context.journal.prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    async with life.followed():
        await life.until(life.follower._has_begun.is_set)
    assert given == ["Do it"]
    assert [path.name for path in life.folder.stdin.iterdir()] == []


async def test_a_checkpoint_of_an_earlier_release_gives_no_prompt_again(life: StreamLife) -> None:
    """It does not say whether the agent was given a message, only that there was one."""
    given = journaling_prompt(life)
    async with life.followed():
        await life.until(life.waiting)
        life.take()
        await life.until(life.follower._has_begun.is_set)
    del life.context.outbox.checkpoint["was_given"]
    assert life.context.journal.prompt_id is not None
    life.context.journal.inputs[life.context.journal.prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    async with life.followed():
        await life.until(life.follower._has_begun.is_set)
    assert given == ["Do it"]


async def test_a_prompt_that_is_given_again_replaces_no_other_entry(life: StreamLife) -> None:
    """What the agent printed meanwhile stays in the log."""
    given = journaling_prompt(life)
    async with life.followed():
        await life.until(life.waiting)
        life.write("Warning")
        await life.until(lambda: (None, "Warning") in life.contents)
    life.take(".failed")
    assert life.context.journal.prompt_id is not None
    life.context.journal.inputs[life.context.journal.prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    async with life.followed():
        await life.until(lambda: len(given) == 2)
        await life.until(life.waiting)
        life.take()
        await life.until(life.follower._has_begun.is_set)
    assert [text for _, text in life.contents] == ["Do it", "Warning", "Do it"]


@DIED
async def test_a_prompt_whose_runner_died_before_the_agent_did(life: StreamLife, died: str, *, is_given: bool) -> None:
    """It counts as given if the shim wrote it; else the next build's agent is given it."""
    journaling_prompt(life)
    await lose_runner(life, died, is_given=is_given)
    life.folder.exit.write_text("{}")
    await life.follower.conclude(ExitRecord("exited", code=0))
    assert life.context.journal.was_given("Do it") is (is_given and died != "before it was taken")


async def test_an_agent_whose_reports_wait_is_not_read(tmp_path: Path) -> None:
    """Neither while the log has no budget; reports of states and of usage count for it."""
    outbox = Outbox(tmp_path / "small.jsonl", Budget(1), lambda _: None)
    life = StreamLife(tmp_path, outbox=outbox)
    async with life.followed():
        await life.until(lambda: len(outbox))
        before = outbox.checkpoint["offset"]
        life.write(said("Hello"))
        await a_few_steps()
        assert outbox.checkpoint["offset"] == before == 0
        while len(outbox):
            outbox.confirm(len(outbox))
            await a_few_steps()
        await life.until(lambda: outbox.checkpoint["offset"] > 0)
    life.context.log_budget.spend(10**12, 0)
    offset = outbox.checkpoint["offset"]
    outbox.confirm(len(outbox))
    async with life.followed():
        life.write(said("Hello again"))
        await a_few_steps()
        assert outbox.checkpoint["offset"] == offset


async def test_what_is_reported_counts_for_the_budget(tmp_path: Path) -> None:
    """A state, a report of usage and an entry by one each, texts by their bytes; of each line a share."""
    life, budget = StreamLife(tmp_path), Spending()
    life.change(log_budget=budget)
    done = {**DONE, "modelUsage": {"m": {"inputTokens": 1}}}
    life.read(INIT, said("é"), done)
    shares = life.follower._reader.offset // LOG_SHARE + 3 * 64
    invisible = len(json.dumps(INIT)) + len(json.dumps(done))
    assert shares + invisible < READ_COST
    assert [sum(numbers) for numbers in zip(*budget.spent, strict=True)] == [2 + 1, 2 + READ_COST]


async def test_each_line_counts_for_the_budget_however_short(tmp_path: Path) -> None:
    """By 64 bytes and a sixteenth of its own, from 512 in all on."""
    life, budget = StreamLife(tmp_path), Spending()
    life.change(log_budget=budget)
    life.read("\n" * 31)
    assert [sum(numbers) for numbers in zip(*budget.spent, strict=True)] == [0, 32 * 64 + 32 // 16]


@pytest.mark.parametrize("line", ["1", '{"type":"x"}', "", '{"type":"user","message":{"content":[]}}', "{}"])
async def test_what_shows_nothing_is_not_read_without_end(tmp_path: Path, line: str) -> None:
    """It costs the agent's budget, or it would keep the runner busy; the agent is read again when it has some."""
    life, now, offset = StreamLife(tmp_path), [0.0], 0
    life.change(log_budget=LogBudget(LogRates(2**18, 50), lambda: now[0]))
    life.write("\n".join([line] * 200_000))
    async with life.followed():
        for _ in range(2):
            await life.until(lambda: not life.context.log_budget.has_room)
            await a_few_steps()
            offset = life.context.outbox.checkpoint["offset"]
            await a_few_steps()
            assert life.context.outbox.checkpoint["offset"] == offset
            now[0] += 60
        await life.until(lambda: life.context.outbox.checkpoint["offset"] > offset)
    assert offset < 100_000 * (len(line) + 1)
    assert life.entries == []


async def test_other_tasks_run_between_groups_of_lines(life: StreamLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group ends after a time, and after many entries; the next one begins with the line after it."""
    life.write(*(said(f"{number}") for number in range(300)), "a", "b")
    shown = []
    while life.follower._read():
        shown.append(len(life.entries))
    assert shown == [follower.MAX_SHOWN, 301]
    monkeypatch.setattr(follower, "GROUP_TIME", 0)
    life.write("c", "d")
    while life.follower._read():
        shown.append(len(life.entries))
    assert shown[2:] == [302, 303]
    assert life.contents[300:] == [(None, "a\nb"), (None, "c"), (None, "d")]


async def test_plain_lines_that_came_together_are_one_entry(life: StreamLife) -> None:
    """In their place between the events, and up to its size."""
    life.read("one", "\x1b[1m", "two", said("Hello."), "three", "[]", "four")
    life.read("x" * 20_000, "y" * 16_000, "z" * 383, "!!")
    assert life.contents == [
        (None, "one\n\ntwo"),
        ("message", "Hello."),
        (None, "three"),
        (None, "four"),
        (None, "x" * 20_000),
        (None, "y" * 16_000),
        (None, "z" * 383 + "\n!!"),
    ]
    assert life.follower._stream.last_words == "z" * 383
    life.read("y" * 16_000, "z" * 382, "!")
    assert [len(text) for _, text in life.contents[7:]] == [16_383, 1]


async def test_plain_lines_without_end_neither_stop_nor_fill_the_runner(life: StreamLife) -> None:
    """When the agent has ended, too: there are few entries, and other tasks run meanwhile."""
    life.write(*["a"] * 131_072)
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(life.context.outbox.checkpoint.get("offset", 0))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await life.follower.conclude(ExitRecord("exited", code=0))
    looking.cancel()
    assert any(0 < offset < 2**18 for offset in seen)
    assert "".join(text for _, text in life.contents).count("a") > 131_000
    assert len(life.entries) < 100
    assert sum(map(len, life.context.outbox.peek(10**6, 10**9))) < 2**20
    assert life.context.metrics.runner_output_lost._value.get() == 0


async def test_of_plain_lines_that_are_left_the_first_mebibyte_is_logged(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All events count nevertheless: the result of the turn is the last one. What is left out is told."""
    monkeypatch.setattr(outbox, "MAX_TASK_BYTES", 2**30)
    life.write(INIT, *["x" * 1_023] * 1_500, {"type": "result", "subtype": "error", "result": "No credit"}, *["y"] * 9)
    await life.follower.conclude(ExitRecord("exited", code=0))
    kept = sum(text.count("x") for _, text in life.contents)
    assert 2**20 - 2 * 16_384 < kept <= 2**20
    dropped = int(life.context.metrics.runner_output_lost._value.get())
    assert 1_500 * 1_023 - kept < dropped < 1_500 * 1_024 - kept + 18
    assert life.contents[-2:] == [
        ("notice", "taskherd: The agent could not carry out its turn: No credit"),
        ("notice", f"taskherd: {dropped} bytes of output that are no events were left out"),
    ]
    assert life.states[-1][1] == "y"


async def test_a_large_plain_line_leaves_room_for_others(life: StreamLife) -> None:
    """Its entry is shortened, so it counts for no more than that: what says why the agent has ended is logged."""
    life.write("x" * 2_000_000, {"type": "x"}, "fatal: no key")
    await life.follower.conclude(ExitRecord("exited", code=1))
    assert (None, "fatal: no key") in life.contents


async def test_output_in_small_pieces_is_not_read_without_end(tmp_path: Path) -> None:
    """Each read costs, however little it finds."""
    life = StreamLife(tmp_path)
    life.change(log_budget=LogBudget(LogRates(1_000, 1_000), lambda: 0.0))
    life.read(INIT)
    reads = 0
    while life.context.log_budget.has_room:
        reads += 1
        with (life.folder.output / f"{0:020d}").open("a") as file:
            file.write("x")
        life.follower._read()
    assert reads < 1_000 * LOG_BURST / READ_COST + 1


async def test_a_plain_line_between_events_counts_more_than_its_bytes(life: StreamLife) -> None:
    """Or an agent could leave very many entries of a byte each."""
    for _ in range(1_200):
        life.write("x", {"type": "x"})
    await life.follower.conclude(ExitRecord("exited", code=0))
    assert [text for _, text in life.contents] == [
        *["x"] * 1_024, "taskherd: 176 bytes of output that are no events were left out"
    ]  # fmt: skip


async def test_states_are_told_at_intervals(life: StreamLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change sooner than a message alone; what waits is told at the end of the time, and never twice."""
    clock = [128.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    life.read(INIT)
    assert life.states == [("working", "The agent has begun its turn.")]
    monkeypatch.setattr(follower, "CHANGE_EVERY", 0.25)
    for passed, event, last in (
        (STATUS_EVERY - 0.01, said("One."), "The agent has begun its turn."),
        (0.01, said("Two."), "Two."),
        (0.24, DONE, "Two."),
        (0.01, "", "Done."),
    ):
        clock[0] += passed
        life.read(event)
        assert life.states[-1][1] == last
    count = len(life.states)
    clock[0] += 60
    life.read("")
    assert (len(life.states), life.states[-1]) == (count, ("idle", "Done."))
    assert not life.follower._is_due(clock[0])


async def test_what_is_no_event_is_output(life: StreamLife) -> None:
    """Its words are the last ones; an event of another form is counted, and a line that is too long is told."""
    life.read("\x1b[1mNo credit\x1b[0m", "  ", "[]", "x" * (4 * 2**20 + 1))
    assert life.contents == [(None, "No credit"), ("notice", "taskherd: a line of the agent is too long")]
    assert life.follower._stream.last_words == "No credit"
    assert life.context.metrics.runner_agent_events_bad._value.get() == 1


@pytest.mark.parametrize(
    ("ended", "is_told"),
    [
        (ExitRecord("exited", code=3), True),
        (ExitRecord("lost"), True),
        (ExitRecord("exited", code=0), False),
        (ExitRecord("stopped", signal=15), False),
    ],
)
async def test_the_end_of_an_agent(life: StreamLife, ended: ExitRecord, *, is_told: bool) -> None:
    """What it wrote last is read, and what it left open is closed; an exit in the middle of a turn is no success."""
    life.context.journal.ready_reported = True
    life.read(INIT, call("Bash"))
    life.write(said("I give up."))
    (life.folder.log / f"{0:020d}").write_text("first\nNo space\n")
    await life.follower.conclude(ended)
    expected = [("tool_call", "Bash"), ("message", "I give up.")]
    assert life.contents == expected + [("notice", "taskherd: the agent's last output:\nfirst\nNo space")] * is_told
    assert [entry.get("status") for entry in life.entries[:1]] == [None]
    (report,) = reports_of(life.context.outbox, "agent.exit")
    assert report["words"] == "first\nNo space"
    assert life.context.journal.stream_session == "s"
    assert not life.follower._stream.in_turn
    if ended.reason == "exited":
        words = "The agent ended with exit status 3." if ended.code else follower._IN_TURN
        assert life.states[-1] == ("failed", f"{words} Last output: I give up.")
    else:
        assert life.states[-1][0] == ("working" if ended.reason == "stopped" else "failed")


@pytest.mark.parametrize("code", [0, 3])
async def test_an_end_is_told_alike_by_the_next_runner(life: StreamLife, code: int) -> None:
    """One that is killed before its journal says that it has told the end changes neither the state nor the log."""
    life.read(INIT)
    (life.folder.log / f"{0:020d}").write_text("No space\n")
    ended: list[Any] = []
    for _ in range(2):
        life.follow_again()
        await life.follower.conclude(ExitRecord("exited", code=code))
        ended.append((life.states[-1], life.contents))
    assert ended[0] == ended[1]
    words = "The agent ended with exit status 3." if code else follower._IN_TURN
    assert ended[1][0] == ("failed", f"{words} Last output: No space")
    assert ended[1][1] == [("notice", "taskherd: the agent's last output:\nNo space")] * bool(code)


@pytest.mark.parametrize("said_so", [False, True])
async def test_the_last_words_of_an_agent_that_said_nothing(life: StreamLife, *, said_so: bool) -> None:
    """Are those of its stderr; a turn that has failed is told also if it ended just before the agent."""
    life.read(INIT)
    if said_so:
        life.write({"type": "result", "subtype": "error", "result": "No credit"})
    else:
        life.write(DONE | {"result": ""})
    (life.folder.log / f"{0:020d}").write_text("first\nNo space\n")
    await life.follower.conclude(ExitRecord("exited", code=0))
    if said_so:
        assert life.states[-1] == ("failed", "The agent could not carry out its turn: No credit")
    else:
        assert life.states[-1] == ("complete", "No space")


async def test_an_interrupt_of_an_agent_that_waits(life: StreamLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left alone; one whose prompt is not given in time is interrupted."""
    monkeypatch.setattr(follower, "REACTION_TIMEOUT", 0.05)
    monkeypatch.setattr(interrupting, "LINGER_TIMEOUT", 0.05)
    signals: list[str] = []
    life.change(interrupt_agent=lambda: signals.append("INT"))
    life.follower._has_begun.set()
    assert await life.follower.interrupt() is InterruptOutcome.ENDED
    assert (signals, life.saved) == ([], [])
    life.follower._has_begun.clear()
    assert await life.follower.interrupt() is InterruptOutcome.STOPPED
    assert (signals, len(life.saved), life.context.journal.interrupted) == (["INT"], 2, False)


@pytest.mark.parametrize("ends", ["the turn", "the agent", "nothing"])
async def test_an_interrupt_of_an_agent_that_works(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """It goes on if it ends its turn; otherwise its end is that of an interrupt, and it is ended if need be."""
    monkeypatch.setattr(follower, "REACTION_TIMEOUT", 0.2)
    monkeypatch.setattr(interrupting, "LINGER_TIMEOUT", 0.05)
    monkeypatch.setattr(interrupting, "KILL_TIMEOUT", 0.2)
    life.read(INIT)
    life.follower._has_begun.set()

    def react() -> None:
        if ends == "the turn":
            life.follower._stream.in_turn = False
        elif ends == "the agent":
            life.folder.exit.write_text("{}")

    life.change(interrupt_agent=react)
    life.change(stop_agent=lambda: life.folder.exit.write_text("{}"))
    assert await life.follower.interrupt() is InterruptOutcome.STOPPED
    assert life.context.journal.interrupted is (ends != "the turn")
    assert life.folder.exit.exists() is (ends != "the turn")


async def test_a_long_last_line_is_read_to_its_end(life: StreamLife) -> None:
    """However few bytes of it are read at once."""
    life.write(INIT, {**DONE, "result": "x" * 1_000_000 + " Done."})
    await life.follower.conclude(ExitRecord("exited", code=0))
    assert life.follower._stream.last_words.endswith("Done.")
    assert life.states[-1][0] == "complete"


async def test_an_input_is_awaited_though_its_line_could_not_be_looked_for(
    life: StreamLife, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors it is looked for again, and not told as failed."""
    failures = iter([OSError(errno.EMFILE, "Too many open files")])
    endings = LineWriter.endings

    def fail_once(writer: LineWriter) -> dict[int, bool]:
        for error in failures:
            raise error
        return endings(writer)

    life.follower._recover()
    (life.folder.stdin / "0.done").touch()
    monkeypatch.setattr(LineWriter, "endings", fail_once)
    await life.follower._wait_written(0)
    assert life.follower._was_given


async def test_a_line_that_is_nested_too_deeply_is_bad(life: StreamLife, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some releases of Python cannot show such a value in words; the turn ends with the next line."""
    apply, failures = life.follower._stream.apply, iter([RecursionError()])

    def fail_once(event: Any) -> None:
        for error in failures:
            raise error
        apply(event)

    monkeypatch.setattr(life.follower._stream, "apply", fail_once)
    life.follower._stream.begin_turn("Do it")
    bad = life.context.metrics.runner_agent_events_bad._value
    life.read(said("Hello"), DONE)
    assert (bad.get(), life.follower._stream.in_turn) == (1, False)
