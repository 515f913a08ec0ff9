"""What a reader must see after a set of reports, worked out once more from the contract alone.

It knows no order and keeps no memory: it looks at all reports at once, as JSON, and picks. The fold must come to the
same whatever way the reports came.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from taskherd.domain.reports import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskherd.domain.reports import Report

Said = dict[str, Any]

LOST_AFTER = timedelta(seconds=30)
CONNECT_TIMEOUT = timedelta(seconds=120)
REMEMBERED = 16
ASKED: Said = {
    "type": "workspace.build",
    "build_number": 1,
    "seq": -1,
    "transition": "start",
    "job_status": "pending",
}


def expected(told: Sequence[Report], quiet: timedelta) -> Said:
    """The view of a task that was created and then told all this, after ``quiet`` of drained silence."""
    said = [json.loads(canonical_json(report)) for report in told]
    return _Reading(said, quiet).view()


def _latest(said: Iterable[Said]) -> Said | None:
    """The greatest by build number, seq and canonical JSON."""

    def rank(one: Said) -> tuple[int, int, str]:
        text = json.dumps(one, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return one["build_number"], one["seq"], text

    return max(said, key=rank, default=None)


def _highest(said: Iterable[Said]) -> set[int]:
    return set(sorted({one["build_number"] for one in said})[-REMEMBERED:])


class _Reading:
    def __init__(self, said: list[Said], quiet: timedelta) -> None:
        def of(*types: str) -> list[Said]:
            return [one for one in said if one["type"] in types]

        # build 1 is the start that the worker asked for; it asked for no other
        builds = [one for one in of("workspace.build") if one["build_number"] != 1 or one["transition"] == "start"]
        self.build: Said = _latest([ASKED, *builds]) or ASKED
        self.number: int = self.build["build_number"]
        self.quiet = quiet
        self.workspace = _latest(one for one in builds if "workspace" in one)
        self.agent = self._here(_latest(one for one in builds if "agent_id" in one))
        self.app = self._here(_latest(one for one in builds if "app" in one))
        self.lifecycle = self._here(_latest(of("agent.lifecycle")))
        self.health = self._here(_latest(of("app.health")))
        self.connection = self._here(_latest(of("agent.heartbeat", "agent.disconnected")))
        self.status = _latest(of("app.status"))
        self.heard = self.number in _highest(of("agent.heartbeat"))

    def _here(self, facet: Said | None) -> Said | None:
        """A facet that counts only for a start, and with its number."""
        here = self.build["transition"] == "start" and facet and facet["build_number"] == self.build["build_number"]
        return facet if here else None

    def view(self) -> Said:
        named = self.workspace["workspace"] if self.workspace else {"id": None, "name": "task-name"}
        agent = self.agent or self.lifecycle or self.connection
        return {
            "status": self.task_status(),
            "workspace_id": named["id"],
            "workspace_name": named["name"],
            "workspace_status": self.workspace_status(),
            "workspace_build_number": self.number,
            "agent_id": self.agent_id(),
            "lifecycle": self.agent_lifecycle() if agent else None,
            "health": self.agent_health() if agent else None,
            "app_id": self.app["app"]["id"] if self.app else None,
            "current_state": self.current_state(),
        }

    def agent_id(self) -> str | None:
        if self.agent:
            return str(self.agent["agent_id"])
        spoken = [one for one in (self.lifecycle, self.connection) if one and "agent_id" in one]
        return str(max(spoken, key=lambda one: one["seq"])["agent_id"]) if spoken else None

    def agent_lifecycle(self) -> str:
        return str(self.lifecycle["lifecycle"]) if self.lifecycle else "created"

    def app_health(self) -> str:
        given = self.app["app"].get("health") if self.app else None
        return str(self.health["health"] if self.health else given or "disabled")

    def workspace_status(self) -> str:
        running = {"start": "starting", "stop": "stopping", "delete": "deleting"}
        succeeded = {"start": "running", "stop": "stopped", "delete": "deleted"}
        job = self.build["job_status"]
        words = {"running": running, "succeeded": succeeded}.get(job, {})
        return words.get(self.build["transition"], str(job))

    def task_status(self) -> str:
        job = self.build["job_status"]
        if job in {"failed", "canceling", "canceled"}:
            return "error"
        if self.build["transition"] != "start":
            return "paused" if job == "succeeded" else "unknown"
        return "pending" if job == "pending" else self._agent_status()

    def _agent_status(self) -> str:
        if not (self.agent or self.lifecycle or self.connection):
            return "initializing"
        lifecycle = self.agent_lifecycle()
        if lifecycle in {"created", "starting"}:
            return "initializing"
        if lifecycle not in {"ready", "start_timeout", "start_error"}:
            return "unknown"
        return {"initializing": "initializing", "unhealthy": "error"}.get(self.app_health(), "active")

    def agent_health(self) -> Said:
        reason = self._reason()
        return {"healthy": reason is None, "reason": reason}

    def _reason(self) -> str | None:
        goodbye = self.connection is not None and self.connection["type"] == "agent.disconnected"
        connected = self.heard and not goodbye and self.quiet <= LOST_AFTER
        lifecycle = self.agent_lifecycle()
        reasons = {
            "agent is not running": not connected and lifecycle == "off",
            "agent has not yet connected": not self.heard and not goodbye and self.quiet <= CONNECT_TIMEOUT,
            "agent is taking too long to connect": not self.heard and not goodbye,
            "agent has lost connection": not connected,
            "agent startup script exited with an error": lifecycle == "start_error",
            "agent is shutting down": lifecycle in {"shutting_down", "shutdown_timeout", "shutdown_error"},
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def current_state(self) -> Said | None:
        status = self.status
        if status and (self.build["transition"] != "start" or status["build_number"] == self.number):
            state = "failed" if status["state"] == "failure" else status["state"]
            return {"state": state, "message": status.get("message", ""), "uri": status.get("uri", "")}
        if self.task_status() == "initializing":
            return {"state": "working", "message": self._start_up(), "uri": ""}
        if self.build["job_status"] == "failed":
            return {"state": "failed", "message": self.build.get("error", ""), "uri": ""}
        return None

    def _start_up(self) -> str:
        if self.build["job_status"] == "running":
            return "Workspace is starting"
        if not (self.agent or self.lifecycle or self.connection):
            return "Initializing workspace"
        says = {"created": "Agent is connecting", "starting": "Agent is starting"}
        return says.get(self.agent_lifecycle(), "App is initializing")
