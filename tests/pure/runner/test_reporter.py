from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from taskherd.domain.reports import (
    AgentState,
    Cost,
    ExitReason,
    Health,
    InputOutcome,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    LogKind,
    LogSource,
    LogStatus,
    Transition,
)
from taskherd.domain.request_values import RequestKind, RequestState
from taskherd.runner.journal import Journal
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CEILING = 2_000_000_000_000_000
"""A seq above those of the clock, as an earlier runner has recorded it."""


def start(path: Path, journal: Journal) -> tuple[Reporter, Outbox]:
    """Return what a runner that has just begun reports with, whose journal is not written any more."""
    outbox = Outbox(path, Budget(2**30), lambda _: None)
    sequence = SequenceGenerator(journal, lambda: NOW, lambda: None, above=outbox.last_seq)
    start = Transition.START
    reporter = Reporter(journal, 1, transition=start, runner="r", outbox=outbox, sequence=sequence, now=lambda: NOW)
    return reporter, outbox


def test_no_seq_comes_twice_although_a_runner_dies_at_once(tmp_path: Path) -> None:
    """A runner that is killed before its journal is written has recorded reports; the next one goes on above them."""
    task_id, path = uuid.uuid4(), tmp_path / "outbox.jsonl"
    for state in (AgentState.WORKING, AgentState.IDLE, AgentState.COMPLETE):
        journal = Journal(task_id=task_id, task_name="t", seq_ceiling=CEILING)
        reporter, outbox = start(path, journal)
        for _ in range(3):
            reporter.status(state)
        outbox.close()
    seqs = [json.loads(report)["seq"] for report in Outbox(path, Budget(2**30), lambda _: None).peek(99, 2**20)]
    assert seqs == sorted(set(seqs))
    assert seqs[0] > CEILING


SEQ = int(NOW.timestamp()) * 1_000_000
TASK = uuid.UUID(int=0x70)
BUILD = {"task_id": str(TASK), "build_number": 3}


class Reported:
    """A reporter of build 3, and its reports."""

    def __init__(self, folder: Path, transition: Transition = Transition.START) -> None:
        journal = Journal(task_id=TASK, task_name="fix-it")
        self.outbox = Outbox(folder / "outbox.jsonl", Budget(2**30), lambda _: None)
        sequence = SequenceGenerator(journal, lambda: NOW, lambda: None)
        self.reporter = Reporter(
            journal, 3, transition=transition, runner="r1", outbox=self.outbox, sequence=sequence, now=lambda: NOW
        )

    def take(self) -> list[dict[str, Any]]:
        """Return the reports so far, without what all of them have in common."""
        reports = [json.loads(report) for report in self.outbox.peek(99, 2**20)]
        assert [report.pop("seq") for report in reports] == [*range(SEQ, SEQ + len(reports))]
        assert all({name: report.pop(name) for name in BUILD} == BUILD for report in reports)
        return reports


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    """Return a reporter of a start."""
    return Reported(tmp_path)


def test_a_start_names_its_agent_and_app(reported: Reported) -> None:
    """Ids are the same at every repetition; the app's health is reported if it is known."""
    agent, workspace, app = (str(uuid.uuid5(TASK, name)) for name in ("agent/3", "workspace", "app"))
    reported.reporter.build(JobStatus.RUNNING)
    reported.reporter.build(JobStatus.SUCCEEDED, health=Health.HEALTHY)
    common = {
        "type": "workspace.build", "agent_id": agent, "transition": "start", "runner": "r1",
        "workspace": {"id": workspace, "name": "fix-it"},
    }  # fmt: skip
    assert reported.take() == [
        {**common, "job_status": "running", "app": {"id": app, "slug": "agent"}},
        {**common, "job_status": "succeeded", "app": {"id": app, "slug": "agent", "health": "healthy"}},
    ]


def test_a_stop_has_neither_and_may_ask_for_the_next_start(tmp_path: Path) -> None:
    """With the reason for people; an error is sanitized."""
    reported = Reported(tmp_path, Transition.STOP)
    reported.reporter.build(JobStatus.FAILED, error="no\x00 space")
    reported.reporter.build(JobStatus.SUCCEEDED, error="", restart_reason="Drained.")
    failed, drained = reported.take()
    assert (failed["error"], "restart" in failed, "reason" in failed) == ("no space", False, False)
    assert (drained["restart"], drained["reason"], "error" in drained) == (True, "Drained.", False)
    assert all(not {"agent_id", "app"} & report.keys() for report in (failed, drained))


def test_each_report_says_what_it_was_given(reported: Reported) -> None:
    """In the words of the contract; an agent is connected before it is ready."""
    reporter, one = reported.reporter, uuid.UUID(int=1)
    reporter.ready()
    reporter.lifecycle(Lifecycle.OFF)
    reporter.disconnected()
    reporter.health(Health.UNHEALTHY)
    reporter.agent_exit(ExitReason.SIGNALLED, 2, 9, "so\x00 long")
    reporter.agent_exit(ExitReason.EXITED, None, None, "")
    reporter.status(AgentState.IDLE)
    reporter.status(AgentState.WORKING, "a\x00b", "javascript:1")
    reporter.input(one, InputOutcome.FAILED, "gone\x00")
    reporter.input(one, InputOutcome.DELIVERED, "")
    reporter.interrupted(one, InterruptOutcome.FAILED, "why\x00")
    reporter.interrupted(one, InterruptOutcome.STOPPED)
    agent, at = str(reporter.agent_id), "2026-11-26T12:00:00.000000Z"
    assert reported.take() == [
        {"type": "agent.heartbeat", "agent_id": agent},
        {"type": "agent.lifecycle", "lifecycle": "ready"},
        {"type": "agent.lifecycle", "lifecycle": "off"},
        {"type": "agent.disconnected"},
        {"type": "app.health", "health": "unhealthy"},
        {"type": "agent.exit", "observed_at": at, "why": "signalled", "status": 2, "signal": 9, "words": "so long"},
        {"type": "agent.exit", "observed_at": at, "why": "exited"},
        {"type": "app.status", "state": "idle"},
        {"type": "app.status", "state": "working", "message": "ab"},
        {"type": "task.input", "input_id": str(one), "outcome": "failed", "detail": "gone"},
        {"type": "task.input", "input_id": str(one), "outcome": "delivered"},
        {"type": "agent.interrupted", "interrupt_id": str(one), "outcome": "failed", "detail": "why"},
        {"type": "agent.interrupted", "interrupt_id": str(one), "outcome": "stopped"},
    ]


def test_entries_come_before_what_is_concluded_from_them(reported: Reported) -> None:
    """In one record with the checkpoint; without entries there is no report of the log."""
    reporter = reported.reporter
    cost = Cost(Decimal("0.5"), "USD")
    entry = reporter.entry(
        7, LogSource.OUTPUT, "mak\x00e", NOW - timedelta(seconds=1), kind=LogKind.TOOL_CALL, title="ma\nke",
        status=LogStatus.FAILED, data={"b": 1, "a": None},
    )  # fmt: skip
    usage = reporter.usage_report(model="m", input_tokens=5, cost=cost)
    request = reporter.request_report(
        request_id=uuid.UUID(int=2), kind=RequestKind.QUESTION, title="Which?", state=RequestState.OPEN
    )
    reporter.log([entry], reporter.renewed(request), checkpoint={"offset": 3})
    reporter.log([], usage)
    assert reported.outbox.checkpoint == {"offset": 3}
    reports = [json.loads(report) for report in reported.outbox.peek(9, 2**20)]
    assert [(report["type"], report["seq"] - SEQ) for report in reports] == [
        ("task.log", 3), ("agent.request", 2), ("agent.usage", 0)
    ]  # fmt: skip
    assert reports[0]["entries"] == [
        {
            "id": 7, "type": "output", "content": "make", "time": "2026-11-26T11:59:59.000000Z", "kind": "tool_call",
            "title": "ma ke", "status": "failed", "data": {"a": None, "b": 1},
        }
    ]  # fmt: skip
    assert reports[2]["cost"] == {"amount": "0.5", "currency": "USD"}
    plain = reporter.entry(8, LogSource.INPUT, "x")
    assert (plain.time, plain.kind, plain.title, plain.status, plain.data) == (NOW, None, None, None, None)


def test_a_heartbeat_is_not_in_the_outbox(reported: Reported) -> None:
    """A late one would be useless; a report that is repeated is the same as before."""
    heartbeat = json.loads(reported.reporter.heartbeat())
    assert (heartbeat["type"], heartbeat["agent_id"]) == ("agent.heartbeat", str(reported.reporter.agent_id))
    assert len(reported.outbox) == 0
    reported.reporter.repeat('{"seq":7}')
    assert reported.outbox.peek(9, 99) == [b'{"seq":7}']


def test_numbers_rise_whatever_the_clock_does() -> None:
    """The journal has a ceiling above all of them, which is written every ten minutes, and never after it is needed."""
    journal, clock, saved = Journal(task_id=TASK, task_name="a"), [NOW], []
    sequence = SequenceGenerator(journal, lambda: clock[0], lambda: saved.append(journal.seq_ceiling))
    assert sequence.next() == SEQ
    assert saved == [SEQ + 600_000_000]
    clock[0] = NOW - timedelta(days=1)
    assert [sequence.next(), sequence.next()] == [SEQ + 1, SEQ + 2]
    clock[0] = NOW + timedelta(minutes=10) - timedelta(microseconds=1)
    assert sequence.next() == SEQ + 599_999_999
    assert len(saved) == 1
    clock[0] = NOW + timedelta(minutes=10)
    assert sequence.next() == SEQ + 600_000_000
    assert saved[1:] == [SEQ + 1_200_000_000]
    clock[0] = NOW
    assert SequenceGenerator(journal, lambda: NOW, lambda: None).next() == SEQ + 1_200_000_001
    assert SequenceGenerator(journal, lambda: NOW, lambda: None, above=2 * SEQ).next() == 2 * SEQ + 1
