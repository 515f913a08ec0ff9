"""Answers to an agent that speaks ACP, under a real shim: each is given once, whatever dies or is lost in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskherd.runner.agents.acp.connection import Connection
from taskherd.runner.agents.acp.lines import LineWriter
from taskherd.runner.outbox import Outbox
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run
from tests.runner.test_acp_requests import ASK, selected, steps

pytestmark = pytest.mark.timeout(120)


async def test_a_late_answer_is_told_what_became_of_the_request(tmp_path: Path) -> None:
    """The report that closed it is sent again as it was, also by the next runner; the agent gets nothing."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "line: done"))
        request = await run.opened()
        assert run.answer(request, "o-reject_once") == "done"
        await run.until_state("idle", "done")
        await run.until_became("Run make", "open", "answered")
        assert run.answer(request, "o-allow_once") == "repeated"
        await run.take_over()
        await eventually(lambda: run.answer(request, "o-allow_once") == "repeated")
        closed = [each for each in run.reports("agent.request") if each["state"] != "open"]
        assert closed == [closed[0]] * 3
        assert run.answers("1") == [selected("o-reject_once")]


async def test_a_request_stays_open_and_answerable_over_runners(tmp_path: Path) -> None:
    """The next runner keeps it open, and gives the answer to the same process."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "line: done"))
        request = await run.opened()
        await run.take_over()
        await run.take_over()
        assert run.open_requests() == [request]
        await eventually(lambda: run.answer(request, "o-allow_once") == "done")
        await run.until_state("idle", "done")
        assert run.answers("1") == [selected("o-allow_once")]
        await run.until_became("Run make", "open", "answered")


async def test_an_answer_that_was_recorded_and_not_submitted_is_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the runner dies between the record of an answer and its submission, the next one submits it."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "line: done"))
        request = await run.opened()
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "submit", lambda _: None)
            assert run.answer(request, "o-allow_once") == "done"
            await run.take_over()
        await run.until_state("idle", "done")
        assert run.answers("1") == [selected("o-allow_once")]
        await run.until_became("Run make", "open", "answered")


async def give_without_record(run: AcpRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer the open request, lose the record of that, and kill the runner."""
    request = await run.opened()
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_write", lambda *_: True)
        patch.setattr(LineWriter, "forget", lambda *_: None)  # only after it was recorded, also that of the prompt
        assert run.answer(request, "o-allow_once") == "done"
        await eventually(lambda: run.answers("1"))
        await run.take_over()


async def test_an_answer_whose_delivery_is_unknown_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is withdrawn, the turn cancelled, and the log says why; a repeated answer finds it closed."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "line: got it", "hang"))
        request = await run.opened()
        await give_without_record(run, monkeypatch)
        await run.until_state("idle", "The turn was interrupted.")
        assert run.became("Run make") == ["open", "withdrawn"]
        assert run.requests()["Run make"][-1].option_id is None
        assert run.answer(request, "o-allow_once") == "repeated"
        assert "session/cancel" in run.received_methods()
        assert any("it is unknown whether the agent got it" in text for text in run.texts("notice"))
        assert await run.send("line: next") is None
        await run.until_state("idle", "next")
        assert run.answers("1") == [selected("o-allow_once")]


async def test_a_policys_answer_whose_record_is_lost_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next runner reads the request again, and knows from the shim's files that it was answered."""
    async with acp_run(tmp_path, approvals={"default": "allow"}) as run:
        await run.start(steps("line: before", "wait: go", ASK, "wait: on", "line: done"))
        await run.until_state("working", "before")
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "_write", lambda *_: True)
            patch.setattr(LineWriter, "forget", lambda *_: None)  # only after it was recorded
            run.touch("go")
            await eventually(lambda: run.answers("1"))
            await run.take_over()
        run.touch("on")
        await run.until_state("idle", "done")
        assert run.answers("1") == [selected("o-allow_once")]


async def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that cannot be written is written as soon as there is room, by this runner or the next one."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async with acp_run(tmp_path) as run:
        await run.start(steps("ask: 1 edit Change a", "ask: 2 edit Change b", "line: done"))
        for number, is_killed in (("1", False), ("2", True)):
            request = await run.opened()
            with monkeypatch.context() as patch:
                patch.setattr(LineWriter, "submit", fail)
                with pytest.raises(OSError, match="No space"):
                    run.answer(request, "o-allow_once")
            if is_killed:
                await run.take_over()
            await run.until_became(request.title, "open", "answered")
            assert run.answers(number) == [selected("o-allow_once")]
        await run.until_state("idle", "done")


async def test_nothing_is_given_that_cannot_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk an answer waits, and an acknowledgement that was not recorded is found by the next runner."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("ask: 1 edit Change a", "ask: 2 edit Change b", "line: done"))
        request = await run.opened()
        with monkeypatch.context() as patch:
            patch.setattr(Outbox, "_write", lambda *_: False)
            with pytest.raises(OSError, match="cannot be recorded"):
                run.answer(request, "o-allow_once")
            assert run.answers("1") == []
        await run.until_became("Change a", "open", "answered")
        request = await run.opened()
        acknowledged = Connection.acknowledged

        def acknowledge_on_a_full_disk(connection: Connection) -> dict[int, bool]:
            monkeypatch.setattr(Outbox, "_write", lambda *_: False)
            return acknowledged(connection)

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "acknowledged", lambda _: {})
            assert run.answer(request, "o-allow_once") == "done"
            await eventually(lambda: run.answers("2"))
            write = Outbox._write
            patch.setattr(Connection, "acknowledged", acknowledge_on_a_full_disk)
            await eventually(lambda: not run.outbox.is_saved)
            await run.take_over()
            monkeypatch.setattr(Outbox, "_write", write)
        await run.until_state("idle", "done")
        await run.until_became("Change b", "open", "answered")
        assert run.answers("2") == [selected("o-allow_once")]


@pytest.mark.parametrize("end", ["dies", "stop", "dies without a runner"])
async def test_requests_do_not_outlive_the_agent(tmp_path: Path, end: str) -> None:
    """Its end withdraws them, and an answer that comes then is told so."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("ask-only: 1 Change a", "ask-only: 2 Change b", "wait: go", "exit: 3"))
        await eventually(lambda: len(run.open_requests()) == 2)
        request = await run.opened()
        assert run.session is not None
        match end:
            case "stop":
                await run.session.stop()
            case "dies":
                run.touch("go")
            case _:
                await run.take_over(meanwhile=lambda: run.touch("go"))
        await run.until_ended()
        assert run.became("Change a") == run.became("Change b") == ["open", "withdrawn"]
        assert run.answer(request, "o-allow_once") != "done"
        assert run.outbox.checkpoint["turn"] is not None  # it has not finished: a resume gives it its prompt again


async def test_an_answer_that_was_written_before_the_agent_ended_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim's acknowledgement counts, also if it is seen only after the end."""
    async with acp_run(tmp_path) as run:
        await run.start(steps(ASK, "exit: 0"))
        request = await run.opened()
        acknowledged = Connection.acknowledged
        monkeypatch.setattr(Connection, "acknowledged", lambda self: acknowledged(self) if run.exits_now() else {})
        assert run.answer(request, "o-allow_once") == "done"
        await run.until_ended()
        assert run.became("Run make") == ["open", "answered"]
