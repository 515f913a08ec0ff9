"""A second implementation of the view, written from the contract alone: the view after a set of reports.

It has no order and no task state: it selects from all reports at once, as JSON. The fold must give the same view
whatever order the reports arrive in.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from taskherd.domain.report_json import canonical_json
from tests.harness.agent_requests import expected_requests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from taskherd.domain.reports import Report

Fields = dict[str, Any]

LOST_AFTER = timedelta(seconds=30)
CONNECT_TIMEOUT = timedelta(seconds=120)
TRACKED_BUILDS = 16
REQUESTED: Fields = {
    "type": "workspace.build",
    "build_number": 1,
    "seq": -1,
    "transition": "start",
    "job_status": "pending",
}


def expected(reports: Sequence[Report], silence: timedelta) -> Fields:
    """Return the view of a new task after these reports and ``silence``, in drained time."""
    return _ExpectedView([json.loads(canonical_json(report)) for report in reports], silence).view()


def expected_open(reports: Sequence[Report]) -> dict[UUID, str]:
    """Return how each request of the task's agents shows after these reports."""
    view = _ExpectedView([json.loads(canonical_json(report)) for report in reports], timedelta())
    return expected_requests(reports, view.build, agent_ended=view.exit is not None)


def _latest(reports: Iterable[Fields]) -> Fields | None:
    """Return the greatest report by build number, seq and canonical JSON."""

    def rank(report: Fields) -> tuple[int, int, str]:
        text = json.dumps(report, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return report["build_number"], report["seq"], text

    return max(reports, key=rank, default=None)


def _highest_builds(reports: Iterable[Fields]) -> set[int]:
    return set(sorted({report["build_number"] for report in reports})[-TRACKED_BUILDS:])


class _ExpectedView:
    def __init__(self, reports: list[Fields], silence: timedelta) -> None:
        def of(*types: str) -> list[Fields]:
            return [report for report in reports if report["type"] in types]

        # the worker requested build 1, a start, and no other build
        builds = [
            report for report in of("workspace.build") if report["build_number"] != 1 or report["transition"] == "start"
        ]
        self.build: Fields = _latest([REQUESTED, *builds]) or REQUESTED
        self.number: int = self.build["build_number"]
        self.silence = silence
        self.workspace = _latest(report for report in builds if "workspace" in report)
        self.agent = self._if_current(_latest(report for report in builds if "agent_id" in report))
        self.app = self._if_current(_latest(report for report in builds if "app" in report))
        self.lifecycle = self._if_current(_latest(of("agent.lifecycle")))
        self.health = self._if_current(_latest(of("app.health")))
        self.connection = self._if_current(_latest(of("agent.heartbeat", "agent.disconnected")))
        self.exit = self._if_current(_latest(of("agent.exit")))
        self.status = _latest(of("app.status"))
        self.has_heartbeat = self.number in _highest_builds(of("agent.heartbeat"))

    def _if_current(self, facet: Fields | None) -> Fields | None:
        """Return the facet if the latest build is a start and the facet belongs to it."""
        current = self.build["transition"] == "start" and facet and facet["build_number"] == self.build["build_number"]
        return facet if current else None

    def view(self) -> Fields:
        workspace = self.workspace["workspace"] if self.workspace else {"id": None, "name": "task-name"}
        agent = self.agent or self.lifecycle or self.connection
        return {
            "status": self.task_status(),
            "workspace_id": workspace["id"],
            "workspace_name": workspace["name"],
            "workspace_status": self.workspace_status(),
            "workspace_build_number": self.number,
            "agent_id": self.agent_id(),
            "lifecycle": self.agent_lifecycle() if agent else None,
            "health": self.agent_health() if agent or self._has_failed() else None,
            "app_id": self.app["app"]["id"] if self.app else None,
            "current_state": self.current_state(),
            "agent_exit": self.agent_exit(),
            "stalled_since": None,
            "usage": None,
            "interrupted_since": None,
            "requests": (),
        }

    def agent_id(self) -> str | None:
        if self.agent:
            return str(self.agent["agent_id"])
        named = [report for report in (self.lifecycle, self.connection) if report and "agent_id" in report]
        return str(max(named, key=lambda report: report["seq"])["agent_id"]) if named else None

    def agent_lifecycle(self) -> str:
        return str(self.lifecycle["lifecycle"]) if self.lifecycle else "created"

    def app_health(self) -> str:
        from_build = self.app["app"].get("health") if self.app else None
        return str(self.health["health"] if self.health else from_build or "disabled")

    def workspace_status(self) -> str:
        running = {"start": "starting", "stop": "stopping", "delete": "deleting"}
        succeeded = {"start": "running", "stop": "stopped", "delete": "deleted"}
        job = self.build["job_status"]
        by_transition = {"running": running, "succeeded": succeeded}.get(job, {})
        return by_transition.get(self.build["transition"], str(job))

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

    def agent_health(self) -> Fields:
        reason = self._reason()
        return {"healthy": reason is None, "reason": reason}

    def agent_exit(self) -> Fields | None:
        if self.exit is None:
            return None
        ended = {name: self.exit.get(name) for name in ("status", "signal")}
        return {"why": self.exit["why"], "words": self.exit.get("words", ""), **ended}

    def _has_failed(self) -> bool:
        if self.exit is None:
            return False
        if self.exit["why"] == "exited":
            return self.exit.get("status") != 0
        return str(self.exit["why"]) not in {"stopped", "interrupted"}

    def _reason(self) -> str | None:
        if self._has_failed():
            return "agent is not running"
        disconnected = self.connection is not None and self.connection["type"] == "agent.disconnected"
        connected = self.has_heartbeat and not disconnected and self.silence <= LOST_AFTER
        lifecycle = self.agent_lifecycle()
        reasons = {
            "agent is not running": not connected and lifecycle == "off",
            "agent has not yet connected": not self.has_heartbeat
            and not disconnected
            and self.silence <= CONNECT_TIMEOUT,
            "agent is taking too long to connect": not self.has_heartbeat and not disconnected,
            "agent has lost connection": not connected,
            "agent startup script exited with an error": lifecycle == "start_error",
            "agent is shutting down": lifecycle in {"shutting_down", "shutdown_timeout", "shutdown_error"},
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def current_state(self) -> Fields | None:
        status = self.status
        if status and (self.build["transition"] != "start" or status["build_number"] == self.number):
            state = "failed" if status["state"] == "failure" else status["state"]
            return {"state": state, "message": status.get("message", ""), "uri": status.get("uri", "")}
        if self.task_status() == "initializing":
            return {"state": "working", "message": self._start_up_message(), "uri": ""}
        if self.build["job_status"] == "failed":
            return {"state": "failed", "message": self.build.get("error", ""), "uri": ""}
        return None

    def _start_up_message(self) -> str:
        if self.build["job_status"] == "running":
            return "Workspace is starting"
        if not (self.agent or self.lifecycle or self.connection):
            return "Initializing workspace"
        messages = {"created": "Agent is connecting", "starting": "Agent is starting"}
        return messages.get(self.agent_lifecycle(), "App is initializing")
