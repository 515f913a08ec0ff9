"""Documents about a task's past: its timeline, how long it was in each state, and what explains it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.http.errors import HTTPError
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.tasks import durations, explain
from taskherd.api.tasks.explain import TimelineQuery
from taskherd.domain import builds
from taskherd.domain.explain import ExplainedValue, Explanation
from taskherd.domain.reports import AgentState, ExitReason, JobStatus, Transition, WorkspaceBuild
from taskherd.domain.task import Stamped
from taskherd.domain.value import replace
from taskherd.domain.view import AgentHealth, CurrentState, EndedAgent, Status
from taskherd.settings import Settings
from taskherd.store import feed, task_state_codec
from taskherd.store.pages import MAX_PAGE_BYTES
from taskherd.store.task_queries import TaskRef

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

ALICE, BOB, TASK, INPUT = (UUID(int=number) for number in range(1, 5))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

Handler = Callable[["RequestContext"], Awaitable[BufferedResponse]]


@dataclass
class Reader:
    """A database with these rows for each statement, in which every task is found or none."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    found: Mapping[str, Any] | None = None
    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    async def fetch(self, statement: str, *values: Any) -> Sequence[Mapping[str, Any]]:
        """Return the rows."""
        self.asked.append((statement, values))
        return self.rows.get(statement, ())

    async def fetch_one(self, _statement: str, *_values: Any) -> Mapping[str, Any] | None:
        """Return the task."""
        return self.found


def call(handler: Handler, reader: Reader, query: TimelineQuery | None = None) -> Any:
    """Return the body of what a handler answers to Alice."""
    return orjson.loads(respond(handler, reader, query).body)


def respond(handler: Handler, reader: Reader, query: TimelineQuery | None = None) -> BufferedResponse:
    """Return what a handler answers to Alice."""
    request = SimpleNamespace(
        reader=reader,
        caller=SimpleNamespace(user_id=ALICE),
        parameters=lambda _model: query or TimelineQuery(),
        task_ref=lambda: TaskRef(ALICE, ALICE, TASK),
        api=SimpleNamespace(settings=Settings(database_url="postgresql://u:p@h/d", amqp_url="amqp://u:p@h")),
    )
    response: BufferedResponse = asyncio.run(cast("Any", handler)(cast("RequestContext", request)))
    return response


def change(version: int, cause: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the row of a change of a status."""
    return {
        "id": TASK,
        "position": version + 10,
        "version": version,
        "occurred_at": NOON + timedelta(minutes=version),
        "changes": ["status"],
        "cause": orjson.dumps(cause).decode(),
        "core_document": '{"status":"active"}',
        "core_document_before": '{"status":"pending"}',
        "prompt": None,
        "prompt_before": None,
        "actor_name": None,
        "found": 1,
        **fields,
    }


def told(row: dict[str, Any]) -> Any:
    """Return the event of a timeline with this row only."""
    (event,) = call(explain.timeline, Reader({feed.TIMELINE: [row]}, {"id": TASK}))["events"]
    return event


def test_a_change_in_a_timeline() -> None:
    """It has the values before and after; those of a prompt are not in the documents."""
    cause = {"kind": "command", "type": "task.update_input", "actor_id": str(BOB)}
    row = change(3, cause, actor_name="bob", changes=["status", "initial_prompt", "new"], prompt="b", prompt_before="a")
    assert told(row) == {
        "position": 13,
        "version": 3,
        "time": "2026-01-01T12:03:00.000000Z",
        "changes": {
            "status": {"from": "pending", "to": "active"},
            "initial_prompt": {"from": "a", "to": "b"},
            "new": {"from": None, "to": None},
        },
        "cause": {**cause, "actor_name": "bob", "words": "bob changed the prompt"},
    }
    first = told(change(1, cause, core_document_before=None))
    assert first["changes"] == {"status": {"from": None, "to": "active"}}
    assert first["cause"]["actor_name"] == str(BOB)
    assert first["cause"]["words"] == f"{BOB} changed the prompt"


@pytest.mark.parametrize(
    ("cause", "document", "words"),
    [
        ({"kind": "report", "type": "app.status"}, {}, "the agent's state was reported"),
        ({"kind": "report", "type": "agent.interrupted", "outcome": "failed"}, {}, "the interrupt failed"),
        (
            {"kind": "report", "type": "agent.request", "request": "Go?", "outcome": "open"},
            {},
            "the agent asks “Go?”",
        ),
        (
            {"kind": "command", "type": "task.answer", "actor_id": "x", "request": "Go?", "answer": "Yes"},
            {},
            "x answered “Go?”: Yes",
        ),
        (
            {"kind": "command", "type": "task.send", "actor_id": "x"},
            {"interrupt": {"since": "now"}},
            "x interrupted the agent and sent an input",
        ),
        ({"kind": "command", "type": "task.send", "actor_id": "x"}, {}, "x sent an input"),
        ({"kind": "command", "type": "task.pause", "actor_id": "x"}, {"interrupt": {}}, "x paused the task"),
        ({"kind": "report", "type": "agent.exit"}, {"agent_exit": None}, "the end of the agent was reported"),
        ({"kind": "report", "type": "app.status"}, {"agent_exit": {"why": "new"}}, "the agent's state was reported"),
    ],
)
def test_the_words_of_a_cause(cause: dict[str, Any], document: dict[str, Any], words: str) -> None:
    """They are of what the cause and the document say."""
    assert told(change(2, cause, core_document=orjson.dumps(document).decode()))["cause"]["words"] == words


@pytest.mark.parametrize(
    ("why", "status", "signal", "words", "expected"),
    [
        ("exited", 3, None, "full", 'the agent exited with status 3 ("full")'),
        ("signalled", None, 9, "oh", 'the agent was ended by signal 9 (SIGKILL) ("oh")'),
    ],
)
def test_the_end_of_an_agent_in_a_timeline(
    why: str, status: int | None, signal: int | None, words: str, expected: str
) -> None:
    """With the reason, by which it is told from others."""
    ended = {"why": why, "status": status, "signal": signal, "words": words, "at": "2026-01-01T12:00:00Z"}
    cause = {"kind": "report", "type": "agent.exit"}
    row = change(2, cause, core_document=orjson.dumps({"agent_exit": ended}).decode())
    assert told(row)["cause"]["words"] == expected


def test_the_page_of_a_timeline() -> None:
    """What was asked for is read; a task that the caller does not see is not found, one without changes has none."""
    for newest, statement in ((False, feed.TIMELINE), (True, feed.TIMELINE_NEWEST)):
        reader = Reader({statement: [change(1, {"kind": "report", "type": "app.status"})]}, {"id": TASK})
        answer = call(explain.timeline, reader, TimelineQuery.model_construct(after=7, limit=8, newest=newest))
        assert len(answer["events"]) == 1
        assert reader.asked == [
            (statement, (ALICE, TASK, 7, 8, MAX_PAGE_BYTES)), (feed.ACTIONS, (ALICE, TASK, explain.MAX_ACTIONS))
        ]  # fmt: skip
    none = Reader({feed.TIMELINE: [change(1, {}, core_document=None)]}, {"id": TASK})
    assert call(explain.timeline, none) == {"events": [], "actions": []}
    assert (TimelineQuery().after, TimelineQuery().limit, explain.MAX_LIMIT, explain.MAX_ACTIONS) == (0, 100, 500, 100)
    for handler in (explain.timeline, explain.explain_task, durations.durations):
        with pytest.raises(HTTPError):
            call(handler, Reader({}))


def test_a_timeline_tells_that_large_changes_left_no_room_for_others() -> None:
    """The answer has a header that says so."""
    for found, headers in ((1, {}), (2, {"X-Taskherd-Truncated": "true"})):
        row = change(1, {"kind": "report", "type": "app.status"}, found=found)
        response = respond(explain.timeline, Reader({feed.TIMELINE: [row]}, {"id": TASK}))
        assert {name: value for name, value in response.headers.items() if name.startswith("X-")} == headers


def test_an_input_in_a_timeline() -> None:
    """It is an action of who sent it, by name if that is known; times that have not come are null."""
    row = {
        "input_id": INPUT,
        "created_at": NOON,
        "sent_at": None,
        "decided_at": None,
        "actor_id": BOB,
        "actor_name": "bob",
        "steers": False,
        "input": "Go on",
        "state": "queued",
        "detail": None,
    }
    later = {**row, "steers": True, "sent_at": NOON + timedelta(hours=1), "decided_at": NOON + timedelta(hours=2)}
    later |= {"state": "failed", "detail": "Gone."}
    changes = [change(1, {"kind": "report", "type": "app.status"})]
    reader = Reader({feed.TIMELINE: changes, feed.ACTIONS: [row, later]}, {"id": TASK})
    first, second = call(explain.timeline, reader)["actions"]
    assert first == {
        "type": "task.send",
        "id": str(INPUT),
        "time": "2026-01-01T12:00:00.000000Z",
        "actor_id": str(BOB),
        "actor_name": "bob",
        "words": "bob sent an input",
        "input": "Go on",
        "steers": False,
        "state": "queued",
        "sent_at": None,
        "decided_at": None,
        "detail": None,
    }
    assert second == {
        **first,
        "words": "bob interrupted the agent and sent an input",
        "steers": True,
        "state": "failed",
        "sent_at": "2026-01-01T13:00:00.000000Z",
        "decided_at": "2026-01-01T14:00:00.000000Z",
        "detail": "Gone.",
    }


def state(status: str, at: datetime) -> dict[str, Any]:
    """Return the row of a change that led to this status."""
    return {
        "occurred_at": at,
        "status": status,
        "state": "working",
        "health": None,
        "exit": None,
        "requests_open": 0,
    }


def test_durations_are_exact_to_a_millisecond() -> None:
    """Those of a state are added up."""
    minute = timedelta(minutes=1, microseconds=400)
    rows = [state(status, NOON + number * minute) for number, status in enumerate(("paused", "active", "paused"))]
    rows.append(state("active", NOON + 3 * minute))
    totals = call(durations.durations, Reader({feed.STATES: rows}, {"id": TASK}))["totals"]
    assert totals[0] == {"state": "paused", "seconds": 120.001}


def test_how_long_a_task_was_in_each_state() -> None:
    """From its changes, with the current span last; of many spans the newest are shown, but all are counted."""
    last = durations.MAX_SPANS + 5
    rows = [state("active" if number % 2 else "paused", NOON + timedelta(minutes=number)) for number in range(last + 1)]
    rows[-1]["occurred_at"] = datetime.now(UTC) + timedelta(days=1)  # by another clock
    reader = Reader({feed.STATES: rows}, {"id": TASK})
    answer = call(durations.durations, reader)
    assert reader.asked == [(feed.STATES, (ALICE, TASK, durations.MAX_CHANGES))]
    assert (durations.MAX_CHANGES, durations.MAX_SPANS) == (10_000, 200)
    assert answer["since"] == "2026-01-01T12:00:00.000000Z"
    assert answer["now"] == answer["spans"][-1]["since"]
    assert [each["state"] for each in answer["totals"]] == ["paused", "working"]
    assert answer["totals"][1]["seconds"] > 24 * 60
    assert len(answer["spans"]) == durations.MAX_SPANS
    assert answer["spans"][0] == {
        "state": "paused",
        "since": "2026-01-01T12:06:00.000000Z",
        "until": "2026-01-01T12:07:00.000000Z",
    }
    assert [each["until"] is None for each in answer["spans"]] == [False] * (durations.MAX_SPANS - 1) + [True]


def test_what_explains_a_task() -> None:
    """The rules that gave its values, its last command, and what is open."""
    found: dict[str, Any] = {
        "id": TASK,
        "state": task_state_codec.dumps(builds.initial_state(TASK, NOON)),
        "pool": "gpu",
        "last_command": '{"type":"task.pause","time":"2026-01-01T12:00:00+00:00","actor_id":"x","actor_name":null}',
        "inbox": '[{"input":"Go on","created_at":"2026-01-01T13:00:00+01:00","sent_at":null}]',
        "requests": None,
    }
    answer = call(explain.explain_task, Reader({}, found))
    assert {name: answer[name] for name in ("pool", "runner", "last_command", "inbox", "requests", "restart_at")} == {
        "pool": "gpu",
        "runner": None,
        "last_command": {
            "type": "task.pause",
            "time": "2026-01-01T12:00:00.000000Z",
            "actor_id": "x",
            "actor_name": "x",
            "words": "x paused the task",
        },
        "inbox": [{"input": "Go on", "created_at": "2026-01-01T12:00:00.000000Z", "sent_at": None}],
        "requests": [],
        "restart_at": None,
    }
    assert answer["status"]["value"] == "pending"
    assert answer["status"]["because"]
    for name in ("current_state", "health", "agent_exit", "stalled_since", "interrupt"):
        assert answer[name]["value"] is None, name
    by_name = found["last_command"].replace("null", '"bob"')
    answer = call(explain.explain_task, Reader({}, {**found, "last_command": by_name, "inbox": None}))
    assert (answer["last_command"]["words"], answer["inbox"]) == ("bob paused the task", [])
    assert call(explain.explain_task, Reader({}, {**found, "last_command": None}))["last_command"] is None


def test_every_value_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule, and the report that decided, if one did."""
    build = WorkspaceBuild(
        task_id=TASK,
        build_number=2,
        seq=7,
        transition=Transition.START,
        job_status=JobStatus.RUNNING,
        runner="r1",
    )
    report = Stamped(build, NOON + timedelta(hours=1))
    explanation = Explanation(
        status=ExplainedValue(Status.ACTIVE, "rule 1", "because 1", report),
        current_state=ExplainedValue(CurrentState(NOON, AgentState.WORKING, "Fixing", "pr"), "rule 2", "because 2"),
        health=ExplainedValue(AgentHealth(healthy=False, reason="lost"), "rule 3", "because 3"),
        agent_exit=ExplainedValue(EndedAgent(ExitReason.EXITED, 3, None, "full", NOON), "rule 4", "because 4"),
        stalled_since=ExplainedValue(NOON + timedelta(minutes=1), "rule 5", "because 5"),
        interrupt=ExplainedValue(NOON + timedelta(minutes=2), "rule 6", "because 6"),
        waiting=ExplainedValue(value=True, rule="rule 7", explanation="because 7"),
        resume=ExplainedValue(value=False, rule="rule 8", explanation="because 8"),
        restart_at=NOON + timedelta(minutes=3),
    )
    state_with_runner = replace(builds.initial_state(TASK, NOON), runner=report)
    found = {"id": TASK, "state": task_state_codec.dumps(state_with_runner), "pool": "gpu"}
    found |= dict.fromkeys(("last_command", "inbox", "requests"))
    monkeypatch.setattr(explain, "explain", lambda _state, _timeouts: explanation)
    answer = call(explain.explain_task, Reader({}, found))
    decided = {"type": "workspace.build", "seq": 7, "build_number": 2, "received_at": "2026-01-01T13:00:00.000000Z"}
    at = "2026-01-01T12:00:00.000000Z"
    values = {
        "status": "active",
        "current_state": {"timestamp": at, "state": "working", "message": "Fixing", "uri": "pr"},
        "health": {"healthy": False, "reason": "lost"},
        "agent_exit": {"why": "exited", "status": 3, "signal": None, "words": "full", "at": at},
        "stalled_since": "2026-01-01T12:01:00.000000Z",
        "interrupt": {"since": "2026-01-01T12:02:00.000000Z"},
        "waiting": True,
        "resume": False,
    }
    for number, (name, value) in enumerate(values.items(), start=1):
        reason = {"value": value, "because": f"because {number}", "rule": f"rule {number}"}
        assert answer[name] == {**reason, "report": decided if name == "status" else None}
    assert (answer["restart_at"], answer["runner"]) == ("2026-01-01T12:03:00.000000Z", "r1")
    nameless = replace(state_with_runner, runner=replace(report, report=replace(build, runner="")))
    assert (
        call(explain.explain_task, Reader({}, {**found, "state": task_state_codec.dumps(nameless)}))["runner"] is None
    )
