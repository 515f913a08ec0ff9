"""What all followers of agents share: the reports about the end of an agent, and about its prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import LogSource
from taskherd.messages.work import WorkRequestOwner, WorkspaceStart
from taskherd.runner.agents.context import AgentContext, log_last_output, report_exit, shorten
from taskherd.runner.agents.interrupting import as_interrupted
from taskherd.runner.journal import InputDelivery
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.contexts import Spending, make_context, reports_of

DONE = ExitRecord("exited", code=0)
FAILED = ExitRecord("exited", code=3)


def said(context: AgentContext) -> list[tuple[str, ...]]:
    """Return what was reported about the agent, without how it ended."""
    found = []
    for report in reports_of(context.outbox):
        fields = (report.get(name) for name in ("state", "message", "health", "lifecycle"))
        found.append(tuple(filter(None, fields)))
    return [each for each in found if each]


@pytest.mark.parametrize(
    ("on_exit", "ended", "said_last", "expected"),
    [
        ("complete", DONE, ("working", ""), [("complete", "The agent has completed its task."), ("disabled",)]),
        ("complete", DONE, ("", "All done."), [("complete", "All done."), ("disabled",)]),
        ("complete", DONE, ("complete", "All done."), [("disabled",)]),
        ("complete", DONE, ("failed", "No."), [("disabled",)]),
        ("idle", DONE, ("working", "Bye."), [("idle", "Bye."), ("disabled",)]),
        ("idle", DONE, ("idle", "Bye."), [("disabled",)]),
        ("idle", DONE, ("complete", "Bye."), [("idle", "Bye."), ("disabled",)]),
        ("idle", DONE, ("failed", "Bye."), [("disabled",)]),
        ("complete", FAILED, ("complete", ""), [("failed", "The agent ended with exit status 3."), ("unhealthy",)]),
        (
            "complete",
            FAILED,
            ("working", "No space"),
            [("failed", "The agent ended with exit status 3. Last output: No space"), ("unhealthy",)],
        ),
        ("complete", ExitRecord("stopped", code=0), ("working", "x"), []),
        (
            "complete",
            ExitRecord("interrupted", signal=15),
            ("working", "x"),
            [("idle", "The agent was ended by an interrupt. Resume the task to start it again."), ("disabled",)],
        ),
    ],
)
def test_the_state_after_an_exit(
    tmp_path: Path, on_exit: str, ended: ExitRecord, said_last: tuple[str, str], expected: list[tuple[str, ...]]
) -> None:
    """An agent's own word that it has completed or failed stands, unless its exit says more."""
    context = make_context(tmp_path, on_exit=on_exit)
    context.journal.ready_reported = True
    report_exit(context, ended, *said_last, "the words")
    assert said(context) == expected
    (report,) = reports_of(context.outbox, "agent.exit")
    assert (report["why"], report["words"]) == (ended.why, "the words")
    assert (report.get("status"), report.get("signal")) == (ended.code, ended.signal)


@pytest.mark.parametrize(
    ("ended", "has_failed"),
    [(DONE, True), (FAILED, True), (ExitRecord("stopped"), False), (ExitRecord("interrupted"), False)],
)
def test_an_agent_that_ends_before_it_is_ready_did_not_start(
    tmp_path: Path, ended: ExitRecord, *, has_failed: bool
) -> None:
    """Else its task would be starting for ever; one that was stopped is not starting."""
    context = make_context(tmp_path)
    report_exit(context, ended, "", "", "")
    assert (("start_error",) in said(context)) is has_failed


@pytest.mark.parametrize(
    ("ended", "is_logged"), [(FAILED, True), (ExitRecord("lost"), True), (DONE, False), (ExitRecord("stopped"), False)]
)
def test_the_last_output_of_an_agent_that_failed_is_logged(
    tmp_path: Path, ended: ExitRecord, *, is_logged: bool
) -> None:
    """Where its output is not its log anyway; its words are returned in any case."""
    context = make_context(tmp_path)
    assert log_last_output(context, ended) == ""
    context.folder.output.mkdir()
    (context.folder.output / f"{0:020d}").write_text("first\n\x1b[31mNo space left\n")
    assert log_last_output(context, ended) == "first\nNo space left"
    entries = [entry for report in reports_of(context.outbox, "task.log") for entry in report["entries"]]
    expected = "taskherd: the agent's last output:\nfirst\nNo space left"
    assert [(entry["id"], entry["content"]) for entry in entries] == ([(2**42, expected)] if is_logged else [])


@pytest.mark.parametrize(
    ("interrupted", "transition", "reason", "counts"),
    [
        (True, "start", "exited", True),
        (True, "start", "stopped", True),
        (True, "start", "timeout", False),
        (True, "stop", "stopped", False),
        (True, "delete", "stopped", False),
        (False, "start", "exited", False),
    ],
)
def test_which_exits_are_those_of_an_interrupt(
    tmp_path: Path, *, interrupted: bool, transition: Any, reason: str, counts: bool
) -> None:
    """Unless the workspace was to be stopped anyway, or the time limit had ended the agent."""
    context = make_context(tmp_path)
    context.journal.interrupted, context.journal.transition = interrupted, transition
    ended = ExitRecord(reason, code=1)
    assert as_interrupted(context, ended) == (ExitRecord("interrupted", code=1) if counts else ended)


def test_a_status_message_has_160_characters() -> None:
    """A longer one ends in an ellipsis."""
    assert shorten("x" * 160) == "x" * 160
    assert shorten("x" * 161) == "x" * 159 + "…"


def given_start(context: AgentContext) -> UUID:
    """Let the context be of a start with a prompt, and return the id of that."""
    task_id = context.journal.task_id
    context.journal.start = WorkspaceStart(
        request_id=task_id, attempt=1, task_id=task_id, task_name="a",
        owner=WorkRequestOwner(id=task_id, username="alice"), build_number=1, build_id=task_id,
        template_version_id=task_id, run={}, prompt="Do it", preset=None,
        agent_token="t",
    )  # fmt: skip
    assert context.journal.prompt_id is not None
    return context.journal.prompt_id


def test_a_prompt_whose_delivery_was_not_noted_is_concluded(tmp_path: Path) -> None:
    """If the agent has it, that is recorded; if not, it is given again. What has an outcome already keeps it."""
    context = make_context(tmp_path)
    context.recover_prompt(is_given=True)
    context.recover_prompt(is_given=False)
    assert (context.prompt, context.journal.inputs) == ("", {})
    prompt_id = given_start(context)
    assert context.prompt == "Do it"
    for before, is_given, after, recorded in (
        (None, True, None, False),
        (InputDelivery.DELIVERING, False, None, False),
        (InputDelivery.FAILED, True, InputDelivery.FAILED, False),
        (InputDelivery.DELIVERED, False, InputDelivery.DELIVERED, False),
        (InputDelivery.DELIVERING, True, InputDelivery.DELIVERED, True),
    ):
        context.journal.inputs = {} if before is None else {prompt_id: before}
        context.journal.given_prompt = ""
        context.recover_prompt(is_given=is_given)
        assert context.journal.inputs.get(prompt_id) is after
        assert context.journal.was_given("Do it") is recorded
    context.journal.gives_prompt = False
    assert context.prompt == ""


async def test_the_prompt_of_a_build_that_gives_none_is_not_posted(tmp_path: Path) -> None:
    """Nor is there one to post without a start."""
    context = replace(make_context(tmp_path), deliver_once=lambda *_: pytest.fail("there is no prompt"))
    assert await context.post_prompt() is None
    given_start(context)
    context.journal.gives_prompt = False
    assert await context.post_prompt() is None
    assert not context.journal.was_given("Do it"), "nothing was delivered"


@pytest.mark.parametrize(
    ("outcome", "error"), [(InputDelivery.DELIVERED, None), (InputDelivery.FAILED, "busy"), (None, "interrupted")]
)
async def test_a_prompt_that_was_delivered_is_recorded(
    tmp_path: Path, outcome: InputDelivery | None, error: str | None
) -> None:
    """On disk, too; otherwise it is said why not."""
    given: list[tuple[UUID, str]] = []
    saved: list[bool] = []

    async def deliver(input_id: UUID, text: str) -> str | None:
        given.append((input_id, text))
        if outcome is not None:
            context.journal.inputs[input_id] = outcome
        return error

    async def save() -> None:
        saved.append(context.journal.was_given("Do it"))

    context = replace(make_context(tmp_path), deliver_once=deliver, save=save)
    prompt_id = given_start(context)
    assert await context.post_prompt() == error
    assert given == [(prompt_id, "Do it")]
    assert saved == ([True] if error is None else [])


def test_the_last_16_kib_of_output_are_looked_at(tmp_path: Path) -> None:
    """For the words that an agent has ended with."""
    context = make_context(tmp_path)
    context.folder.output.mkdir()
    segment = context.folder.output / f"{0:020d}"
    for length, first in ((16 * 1024 - 6, "first"), (16 * 1024 - 5, "irst")):
        segment.write_text("first\n" + " " * (length - 5) + "last\n")
        assert log_last_output(context, DONE).split() == [first, "last"]


def test_a_report_has_up_to_four_entries(tmp_path: Path) -> None:
    """The last ones are left to the caller, who has the checkpoint."""
    context = make_context(tmp_path)
    entries = [context.reporter.entry(number, LogSource.OUTPUT, f"line {number}") for number in range(9)]
    assert context.log_all_but_last(entries[:4]) == entries[:4]
    assert (context.log_all_but_last([]), reports_of(context.outbox)) == ([], [])
    assert context.log_all_but_last(entries) == entries[8:]
    budget = Spending()
    tool = context.reporter.entry(9, LogSource.OUTPUT, "é", data={"a": 1})
    assert replace(context, log_budget=budget).log_all_but_last([tool, entries[0]]) == [tool, entries[0]]
    assert budget.spent == [(2, len('é{"a":1}line 0'.encode()))]
    assert [len(report["entries"]) for report in reports_of(context.outbox)] == [4, 4]


def test_the_checkpoint_of_another_build_is_none(tmp_path: Path) -> None:
    """A follower begins anew."""
    context = make_context(tmp_path)
    assert context.checkpoint == {}
    for build, found in ((1, True), (2, False)):
        context.outbox.append([], {"build": build, "state": "idle"})
        assert bool(context.checkpoint) is found
