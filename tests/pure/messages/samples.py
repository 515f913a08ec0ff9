"""Sample messages as producers send them, and strategies that generate more."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

from hypothesis import strategies as st

from taskherd.directory_file.run import ToolKind
from taskherd.domain import reports as domain
from taskherd.domain.request_values import OptionKind, RequestKind, RequestState
from taskherd.messages import texts

TASK = "497f6eca-6276-4993-bfeb-53cbbbba6f08"
AGENT = "8826ee2e-7933-4665-aef2-2393f84a0d05"
OTHER = "c6d67e98-83ea-49f0-8812-e4abae2b68bc"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

REPORTS: list[dict[str, Any]] = [
    {
        "type": "workspace.build",
        "task_id": TASK,
        "build_number": 1,
        "seq": 5,
        "observed_at": "2026-03-01T13:00:00+01:00",
        "agent_id": AGENT,
        "transition": "start",
        "job_status": "succeeded",
        "workspace": {"id": OTHER, "name": "fix-login"},
        "app": {"id": OTHER, "slug": "claude", "url": "https://example.com/app", "health": "healthy"},
        "runner": "runner-1",
        "error": "none to speak of",
        "restart": True,
        "reason": "the machine is drained",
    },
    {"type": "agent.lifecycle", "task_id": TASK, "lifecycle": "ready"},
    {"type": "agent.heartbeat", "task_id": TASK, "build_number": 2, "seq": 0, "agent_id": AGENT},
    {"type": "agent.disconnected", "task_id": TASK, "observed_at": "2026-03-01T11:59:59.5Z"},
    {"type": "agent.exit", "task_id": TASK, "why": "signalled", "status": 139, "signal": 11, "words": "core\ndumped"},
    {"type": "app.health", "task_id": TASK, "health": "unhealthy"},
    {"type": "app.status", "task_id": TASK, "state": "failure", "message": "all\nof it", "uri": "file:///tmp/x"},
    {
        "type": "task.log",
        "task_id": TASK,
        "entries": [
            {"id": 0, "type": "input", "content": "hello", "time": "2026-03-01T11:59:59Z"},
            {
                "id": 1,
                "type": "output",
                "content": "make",
                "time": "2026-03-01T11:59:59Z",
                "kind": "tool_call",
                "title": "make",
                "status": "in_progress",
                "data": {"kind": "execute", "locations": [{"path": "/a", "line": 1}]},
            },
        ],
    },
    {"type": "task.input", "task_id": TASK, "input_id": OTHER, "outcome": "failed", "detail": "the agent is gone"},
    {
        "type": "agent.usage",
        "task_id": TASK,
        "model": "sonnet",
        "input_tokens": 1200,
        "output_tokens": 300,
        "cache_read_tokens": 50_000,
        "cache_write_tokens": 0,
        "cost": {"amount": "0.0123", "currency": "USD"},
        "context_used": 51_500,
        "context_size": 200_000,
    },
    {
        "type": "agent.interrupted",
        "task_id": TASK,
        "interrupt_id": OTHER,
        "outcome": "failed",
        "detail": "it cannot be interrupted",
    },
    {
        "type": "agent.request",
        "task_id": TASK,
        "request_id": OTHER,
        "kind": "approval",
        "title": "Run make test",
        "detail": "in /home/agent\nwith the network",
        "tool": {"kind": "execute", "name": "Bash", "input": {"command": "make test"}},
        "options": [
            {"id": "once", "label": "Allow", "kind": "allow_once"},
            {"id": "never", "label": "Never", "kind": "reject_always"},
        ],
        "state": "answered",
        "option_id": "once",
        "text": "but only once",
        "expires_at": "2026-03-01T13:00:00Z",
        "pull": True,
    },
]

REPORT_OF: dict[str, dict[str, Any]] = {fields["type"]: fields for fields in REPORTS}
"""The sample report of each type."""

COMMANDS: list[dict[str, Any]] = [
    {
        "type": "task.create",
        "command_id": OTHER,
        "task_id": TASK,
        "actor_id": AGENT,
        "owner_id": AGENT,
        "template_version_id": OTHER,
        "template_version_preset_id": OTHER,
        "input": "Fix the login",
        "name": "fix-login",
        "display_name": "Fix the login",
        "labels": {"repo": "acme/app"},
    },
    {"type": "task.delete", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT},
    {"type": "task.update_input", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT, "input": "again"},
    {
        "type": "task.send",
        "command_id": OTHER,
        "task_id": TASK,
        "actor_id": AGENT,
        "input": "go on",
        "interrupt": True,
    },
    {"type": "task.pause", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT},
    {"type": "task.resume", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT},
    {"type": "task.interrupt", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT},
    {
        "type": "task.answer",
        "command_id": OTHER,
        "task_id": TASK,
        "actor_id": AGENT,
        "request_id": OTHER,
        "option_id": "once",
        "text": "but only once",
    },
    {
        "type": "task.update_labels",
        "command_id": OTHER,
        "task_id": TASK,
        "actor_id": AGENT,
        "labels": {"repo": "acme/app", "team": None},
    },
]

_TEXTS = st.text(max_size=30) | st.text("a\x00\x1b\x85\n\té…", max_size=30)
_TIMES = st.datetimes(timezones=st.just(UTC)).map(domain.format_rfc3339)
_UUIDS = st.uuids().map(str)
_BUILDS = st.integers(1, 2**31 - 1)
_SEQS = st.integers(0, 2**53 - 1)
_NAMES = st.text("abcé-\x07", min_size=1, max_size=63).map(lambda name: "n" + name)
_COMMON = {"build_number": st.none() | _BUILDS, "seq": _SEQS, "observed_at": _TIMES, "agent_id": _UUIDS}
_URIS = st.sampled_from(["", "https://example.com/", "HTTP://x", "javascript:alert(1)", "file:/x", "ht\x00tps://x"])


def _report(kind: str, required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    fields: dict[str, st.SearchStrategy[Any]] = {"type": st.just(kind), "task_id": _UUIDS, **required}
    return st.fixed_dictionaries(fields, optional={**_COMMON, **optional})


_ENTRIES = st.fixed_dictionaries(
    {
        "id": st.integers(0, 2**63 - 1),
        "type": st.sampled_from([*domain.LogSource]).map(str),
        "content": _TEXTS,
        "time": _TIMES,
    },
    optional={
        "kind": st.sampled_from([*domain.LogKind]).map(str),
        "title": _TEXTS,
        "status": st.sampled_from([*domain.LogStatus]).map(str),
        "data": st.dictionaries(_TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXTS, max_size=3),
    },
)

any_report: st.SearchStrategy[dict[str, Any]] = st.one_of(
    _report(
        "workspace.build",
        {
            "transition": st.sampled_from([*domain.Transition]).map(str),
            "job_status": st.sampled_from([*domain.JobStatus]).map(str),
        },
        workspace=st.none() | st.fixed_dictionaries({"id": _UUIDS, "name": _NAMES}),
        app=st.fixed_dictionaries({"id": _UUIDS, "slug": _NAMES}, optional={"url": _URIS}),
        runner=st.just("runner-1"),
        error=_TEXTS,
        restart=st.booleans(),
        reason=_TEXTS,
    ),
    _report("agent.lifecycle", {"lifecycle": st.sampled_from([*domain.Lifecycle]).map(str)}),
    _report("agent.heartbeat", {}),
    _report("agent.disconnected", {}),
    _report(
        "agent.exit",
        {"why": st.sampled_from([*domain.ExitReason]).map(str)},
        status=st.integers(0, 255),
        signal=st.integers(1, 64),
        words=_TEXTS,
    ),
    _report("app.health", {"health": st.sampled_from([*domain.Health]).map(str)}),
    _report("app.status", {"state": st.sampled_from([*domain.AgentState]).map(str)}, message=_TEXTS, uri=_URIS),
    _report("task.log", {"entries": st.lists(_ENTRIES, max_size=3)}),
    _report(
        "task.input", {"input_id": _UUIDS, "outcome": st.sampled_from([*domain.InputOutcome]).map(str)}, detail=_TEXTS
    ),
    _report(
        "agent.interrupted",
        {"interrupt_id": _UUIDS, "outcome": st.sampled_from([*domain.InterruptOutcome]).map(str)},
        detail=_TEXTS,
    ),
)

_TOKENS = st.integers(0, 2**53 - 1)
_AMOUNTS = st.decimals(0, "999999999999.999999999", places=9).map(lambda amount: f"{amount:.9f}")
_COSTS = st.fixed_dictionaries({"amount": _AMOUNTS, "currency": st.sampled_from(["USD", "EUR", "JPY"])})
any_report |= _report(
    "agent.usage",
    {},
    model=_NAMES,
    input_tokens=_TOKENS,
    output_tokens=_TOKENS,
    cache_read_tokens=_TOKENS,
    cache_write_tokens=_TOKENS,
    cost=_COSTS,
    context_used=_TOKENS,
    context_size=_TOKENS,
)

_OPTIONS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text("abc-é ", min_size=1, max_size=64),
            "label": _NAMES,
            "kind": st.sampled_from([*OptionKind]).map(str),
        }
    ),
    max_size=16,
    unique_by=lambda option: option["id"],
)
_TOOL_INPUTS = st.dictionaries(_TEXTS, st.none() | st.booleans() | _TEXTS, max_size=3).filter(
    lambda fields: len({texts.sanitize(name, {}) for name in fields}) == len(fields)  # else it is refused
)
_TOOLS = st.fixed_dictionaries(
    {"kind": st.sampled_from(get_args(ToolKind))}, optional={"name": _TEXTS, "input": _TOOL_INPUTS}
)
any_report |= _report(
    "agent.request",
    {
        "request_id": _UUIDS,
        "kind": st.sampled_from([*RequestKind]).map(str),
        "title": _TEXTS.map(lambda text: "t" + text),
        "state": st.sampled_from([*RequestState]).map(str),
    },
    detail=_TEXTS,
    tool=_TOOLS,
    options=_OPTIONS,
    option_id=st.sampled_from(["allow", "once"]),
    text=_TEXTS,
    expires_at=_TIMES,
    pull=st.booleans(),
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
