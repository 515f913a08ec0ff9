"""The canonical JSON of reports: one text for each report, which is also how they are sent and stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, assert_never

from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    AgentHeartbeat,
    AgentInterrupted,
    AgentLifecycle,
    AgentRequest,
    AgentUsage,
    AppHealth,
    AppStatus,
    InputOutcomeReport,
    TaskLog,
    WorkspaceBuild,
    format_amount,
    format_rfc3339,
)

if TYPE_CHECKING:
    from taskherd.domain.reports import App, LogEntry, Report, Workspace
    from taskherd.domain.request_values import RequestTool


def canonical_json(report: Report) -> str:
    """Return a report as canonical JSON: keys sorted at every level, known fields only, absent ones omitted.

    It decides which of two different reports with the same ``(build_number, seq)`` is kept, so it depends only on the
    report itself.
    """
    return json.dumps(_json_fields(report), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _json_fields(report: Report) -> dict[str, object]:
    fields: dict[str, object] = {
        "type": report.type,
        "task_id": str(report.task_id),
        "build_number": report.build_number,
        "seq": report.seq,
    }
    if report.observed_at is not None:
        fields["observed_at"] = format_rfc3339(report.observed_at)
    if report.agent_id is not None:
        fields["agent_id"] = str(report.agent_id)
    fields.update((name, value) for name, value in _type_fields(report).items() if value is not None)
    return fields


def _type_fields(report: Report) -> dict[str, object]:  # noqa: C901, PLR0911 - one case for each report type
    match report:
        case WorkspaceBuild():
            return {
                "transition": report.transition,
                "job_status": report.job_status,
                "workspace": _workspace(report.workspace),
                "app": _app(report.app),
                "runner": report.runner,
                "error": report.error,
                "restart": report.restart or None,
                "reason": report.reason,
            }
        case AgentLifecycle():
            return {"lifecycle": report.lifecycle}
        case AgentHeartbeat() | AgentDisconnected():
            return {}
        case AgentExit():
            return {"why": report.why, "status": report.status, "signal": report.signal, "words": report.words}
        case AppHealth():
            return {"health": report.health}
        case AppStatus():
            return {
                "state": report.state,
                "message": report.message or None,
                "uri": report.uri or None,
                "guessed_from": report.guessed_from or None,
            }
        case TaskLog():
            return {"entries": [_entry(entry) for entry in report.entries]}
        case InputOutcomeReport():
            return {"input_id": str(report.input_id), "outcome": report.outcome, "detail": report.detail}
        case AgentUsage():
            return _usage(report)
        case AgentInterrupted():
            return {"interrupt_id": str(report.interrupt_id), "outcome": report.outcome, "detail": report.detail}
        case AgentRequest():
            return _request(report)
        case _:
            assert_never(report)


def _usage(report: AgentUsage) -> dict[str, object]:
    cost = report.cost
    return {
        "model": report.model,
        "input_tokens": report.input_tokens,
        "output_tokens": report.output_tokens,
        "cache_read_tokens": report.cache_read_tokens,
        "cache_write_tokens": report.cache_write_tokens,
        "cost": None if cost is None else {"amount": format_amount(cost.amount), "currency": cost.currency},
        "context_used": report.context_used,
        "context_size": report.context_size,
    }


def _request(report: AgentRequest) -> dict[str, object]:
    options = [{"id": option.id, "label": option.label, "kind": option.kind} for option in report.options]
    return {
        "request_id": str(report.request_id),
        "kind": report.kind,
        "title": report.title,
        "detail": report.detail or None,
        "tool": _tool(report.tool),
        "options": options or None,
        "state": report.state,
        "option_id": report.option_id,
        "text": report.text,
        "expires_at": None if report.expires_at is None else format_rfc3339(report.expires_at),
        "pull": report.pull or None,
    }


def _tool(tool: RequestTool | None) -> dict[str, object] | None:
    if tool is None:
        return None
    given = None if tool.input is None else json.loads(tool.input)
    fields = {"kind": tool.kind, "name": tool.name, "input": given}
    return {name: value for name, value in fields.items() if value is not None}


def _workspace(workspace: Workspace | None) -> dict[str, str] | None:
    return None if workspace is None else {"id": str(workspace.id), "name": workspace.name}


def _app(app: App | None) -> dict[str, str] | None:
    if app is None:
        return None
    fields = {"id": str(app.id), "slug": app.slug, "url": app.url, "health": app.health}
    return {name: value for name, value in fields.items() if value is not None}


def _entry(entry: LogEntry) -> dict[str, object]:
    fields = {
        "id": entry.id,
        "type": entry.type,
        "content": entry.content,
        "time": format_rfc3339(entry.time),
        "kind": entry.kind,
        "title": entry.title,
        "status": entry.status,
        "data": None if entry.data is None else json.loads(entry.data),
    }
    return {name: value for name, value in fields.items() if value is not None}
