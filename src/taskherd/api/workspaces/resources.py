"""The JSON shape of what a build started: one resource with the task's agent, whose program is its app."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

import orjson

from taskherd.domain.reports import format_rfc3339

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

MAX_STATUSES: Final = 100
"""Maximum number of statuses of an app, the newest first."""
_NOT_YET, _LOST, _ENDED = "agent has not yet connected", "agent has lost connection", "agent is not running"
_CONNECTION: Final = {_NOT_YET: "connecting", _LOST: "disconnected", _ENDED: "disconnected"}
_HEALTH: Final = {True: "healthy", False: "unhealthy", None: "initializing"}


def resources_json(row: Row, statuses: Sequence[Row] | None) -> list[dict[str, Any]]:
    """Return the resources of a build, none before it started an agent.

    Args:
        row: a row of ``store.builds``.
        statuses: what the app reported, newest first; None shows only the current status.
    """
    if row["agent_id"] is None:
        return []
    resource_id = str(uuid5(row["build_id"], "resource"))
    return [
        {
            "id": resource_id,
            "created_at": format_rfc3339(row["created_at"]),
            "job_id": str(row["build_id"]),
            "workspace_transition": row["transition"],
            "type": "taskherd_workspace",
            "name": "workspace",
            "hide": False,
            "icon": "",
            "agents": [_agent(row, resource_id, statuses)],
            "metadata": [],
            "daily_cost": 0,
        }
    ]


def latest_status(row: Row) -> dict[str, Any] | None:
    """Return the current status of the app, or None if it has reported none since the latest start."""
    state = orjson.loads(row["current_state"]) if row["current_state"] and row["is_latest"] else None
    if state is None or row["agent_id"] is None:
        return None
    return _status(row, state["timestamp"], state["state"], state["message"], state["uri"])


def _agent(row: Row, resource_id: str, statuses: Sequence[Row] | None) -> dict[str, Any]:
    latest = row["is_latest"]
    healthy = bool(row["healthy"]) and latest
    reason = row["health_reason"] if latest else _ENDED
    created_at, updated_at = format_rfc3339(row["created_at"]), format_rfc3339(row["updated_at"])
    return {
        "id": str(row["agent_id"]),
        "parent_id": None,
        "created_at": created_at,
        "updated_at": updated_at,
        "status": "connected" if healthy else _CONNECTION.get(reason or "", "connected" if latest else "disconnected"),
        "lifecycle_state": (row["lifecycle"] if latest else "off") or "created",
        "name": "main",
        "resource_id": resource_id,
        "architecture": "",
        "operating_system": "",
        "environment_variables": {},
        "logs_length": 0,
        "logs_overflowed": False,
        "version": "",
        "api_version": "",
        "apps": [_app(row, statuses, healthy=row["healthy"] if latest else False)],
        "connection_timeout_seconds": 0,
        "troubleshooting_url": "",
        "subsystems": [],
        "health": {"healthy": healthy, **({} if healthy or not reason else {"reason": reason})},
        "display_apps": [],
        "log_sources": [],
        "scripts": [],
        "startup_script_behavior": "non-blocking",
    }


def _app(row: Row, statuses: Sequence[Row] | None, *, healthy: bool | None) -> dict[str, Any]:
    if statuses is None:
        current = latest_status(row)
        shown = [] if current is None else [current]
    else:
        shown = [
            _status(row, format_rfc3339(each["occurred_at"]), each["state"], each["message"], each["uri"])
            for each in statuses
        ]
    return {
        "id": _app_id(row),
        "url": "",
        "external": False,
        "slug": row["app_slug"] or "agent",
        "display_name": row["template_display_name"] or row["template_name"],
        "icon": row["template_icon"],
        "subdomain": False,
        "sharing_level": "owner",
        "healthcheck": {"url": "", "interval": 0, "threshold": 0},
        "health": _HEALTH[healthy],
        "hidden": False,
        "open_in": "slim-window",
        "statuses": shown,
    }


def _status(row: Row, at: str, state: str, message: str, uri: str) -> dict[str, Any]:
    return {
        "id": str(uuid5(UUID(_app_id(row)), at)),
        "created_at": at,
        "workspace_id": str(row["workspace_id"] or row["task_id"]),
        "agent_id": str(row["agent_id"]),
        "app_id": _app_id(row),
        "state": "failure" if state == "failed" else state,
        "needs_user_attention": state == "idle",
        "message": message,
        "uri": uri,
        "icon": "",
    }


def _app_id(row: Row) -> str:
    return str((row["app_id"] if row["is_latest"] else None) or uuid5(row["agent_id"], "app"))
