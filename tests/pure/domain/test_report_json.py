"""The canonical JSON of reports, letter for letter: it is compared, stored and sent."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import (
    AgentExit,
    AgentInterrupted,
    AgentRequest,
    AgentState,
    AgentUsage,
    App,
    AppHealth,
    AppStatus,
    Cost,
    ExitReason,
    Health,
    InputOutcome,
    InputOutcomeReport,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    LogEntry,
    LogKind,
    LogSource,
    LogStatus,
    TaskLog,
    Transition,
    Workspace,
    format_amount,
)
from taskherd.domain.request_values import OptionKind, RequestKind, RequestOption, RequestState, RequestTool
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_fold import build, disconnected, heartbeat, lifecycle

if TYPE_CHECKING:
    from taskherd.domain.reports import Report

ONE, TWO = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
ANY: dict[str, Any] = {"task_id": TASK, "build_number": 2, "seq": 3}


def usage(**fields: Any) -> AgentUsage:
    """Return a report of usage."""
    return AgentUsage(**ANY, **fields)


def request(**fields: Any) -> AgentRequest:
    """Return a report of a question."""
    return AgentRequest(**ANY, request_id=UUID(ONE), kind=RequestKind.QUESTION, title="Which päckage?", **fields)


def test_the_form_of_the_text() -> None:
    """Keys are sorted at every level, there are no spaces, and characters are written as they are."""
    asked = request(
        tool=RequestTool("execute", "bash", '{"command":"make"}'),
        options=(RequestOption("a", "A", OptionKind.OTHER),),
        expires_at=NOON,
        observed_at=NOON + timedelta(microseconds=5),
        agent_id=UUID(TWO),
    )
    assert canonical_json(asked) == (
        f'{{"agent_id":"{TWO}","build_number":2,"expires_at":"2026-03-01T12:00:00.000000Z","kind":"question",'
        '"observed_at":"2026-03-01T12:00:00.000005Z","options":[{"id":"a","kind":"other","label":"A"}],'
        f'"request_id":"{ONE}","seq":3,"state":"open","task_id":"{TASK}","title":"Which päckage?",'
        '"tool":{"input":{"command":"make"},"kind":"execute","name":"bash"},"type":"agent.request"}'
    )


@pytest.mark.parametrize(
    ("report", "fields"),
    [
        (heartbeat(2, 3), {}),
        (disconnected(2, 3, agent_id=UUID(ONE)), {"agent_id": ONE}),
        (lifecycle(Lifecycle.READY, 2, 3), {"lifecycle": "ready"}),
        (build(2, 3), {"transition": "start", "job_status": "running"}),
        (
            build(
                2,
                3,
                JobStatus.FAILED,
                transition=Transition.STOP,
                workspace=Workspace(UUID(ONE), "w"),
                app=App(UUID(TWO), "web", "https://example.com", Health.HEALTHY),
                runner="r",
                error="e",
                restart=True,
                reason="drain",
            ),
            {
                "transition": "stop",
                "job_status": "failed",
                "workspace": {"id": ONE, "name": "w"},
                "app": {"id": TWO, "slug": "web", "url": "https://example.com", "health": "healthy"},
                "runner": "r",
                "error": "e",
                "restart": True,
                "reason": "drain",
            },
        ),
        (
            build(2, 3, app=App(UUID(TWO), "web")),
            {"transition": "start", "job_status": "running", "app": {"id": TWO, "slug": "web"}},
        ),
        (AgentExit(**ANY, why=ExitReason.EXITED), {"why": "exited"}),
        (
            AgentExit(**ANY, why=ExitReason.SIGNALLED, status=0, signal=9, words="w"),
            {"why": "signalled", "status": 0, "signal": 9, "words": "w"},
        ),
        (AppHealth(**ANY, health=Health.DISABLED), {"health": "disabled"}),
        (AppStatus(**ANY, state=AgentState.IDLE), {"state": "idle"}),
        (
            AppStatus(**ANY, state=AgentState.IDLE, message="m", uri="u", guessed_from="g"),
            {"state": "idle", "message": "m", "uri": "u", "guessed_from": "g"},
        ),
        (
            TaskLog(
                **ANY,
                entries=(
                    LogEntry(4, LogSource.INPUT, "c", NOON),
                    LogEntry(
                        5, LogSource.OUTPUT, "d", NOON, LogKind.TOOL_CALL, "t", LogStatus.COMPLETED, '{"exit":null}'
                    ),
                ),
            ),
            {
                "entries": [
                    {"id": 4, "type": "input", "content": "c", "time": "2026-03-01T12:00:00.000000Z"},
                    {
                        "id": 5,
                        "type": "output",
                        "content": "d",
                        "time": "2026-03-01T12:00:00.000000Z",
                        "kind": "tool_call",
                        "title": "t",
                        "status": "completed",
                        "data": {"exit": None},
                    },
                ]
            },
        ),
        (
            InputOutcomeReport(**ANY, input_id=UUID(ONE), outcome=InputOutcome.FAILED, detail="d"),
            {"input_id": ONE, "outcome": "failed", "detail": "d"},
        ),
        (usage(), {}),
        (
            usage(
                model="m",
                input_tokens=0,
                output_tokens=1,
                cache_read_tokens=2,
                cache_write_tokens=3,
                cost=Cost(Decimal("0.10"), "USD"),
                context_used=4,
                context_size=5,
            ),
            {
                "model": "m",
                "input_tokens": 0,
                "output_tokens": 1,
                "cache_read_tokens": 2,
                "cache_write_tokens": 3,
                "cost": {"amount": "0.1", "currency": "USD"},
                "context_used": 4,
                "context_size": 5,
            },
        ),
        (
            AgentInterrupted(**ANY, interrupt_id=UUID(ONE), outcome=InterruptOutcome.ENDED),
            {"interrupt_id": ONE, "outcome": "ended"},
        ),
        (request(), {"request_id": ONE, "kind": "question", "title": "Which päckage?", "state": "open"}),
        (
            request(
                detail="d",
                tool=RequestTool("edit"),
                options=(RequestOption("b", "B", OptionKind.ALLOW_ONCE),),
                state=RequestState.ANSWERED,
                option_id="b",
                text="t",
                pull=True,
            ),
            {
                "request_id": ONE,
                "kind": "question",
                "title": "Which päckage?",
                "detail": "d",
                "tool": {"kind": "edit"},
                "options": [{"id": "b", "label": "B", "kind": "allow_once"}],
                "state": "answered",
                "option_id": "b",
                "text": "t",
                "pull": True,
            },
        ),
    ],
)
def test_what_says_nothing_is_left_out(report: Report, fields: dict[str, object]) -> None:
    """Absent values, empty texts and switches that are off; zeros are kept, and so is the time of an entry."""
    common = {"type": report.type, "task_id": str(TASK), "build_number": 2, "seq": 3}
    assert json.loads(canonical_json(report)) == {**common, **fields}


@pytest.mark.parametrize(
    ("amount", "text"),
    [("0.0012", "0.0012"), ("1.50", "1.5"), ("100", "100"), ("1E+2", "100"), ("2.000", "2"), ("1E-9", "0.000000001")],
)
def test_an_amount_has_one_form(amount: str, text: str) -> None:
    """It has no exponent and no final zeros after the point."""
    assert format_amount(Decimal(amount)) == text
