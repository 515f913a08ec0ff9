"""What an agent or provisioner says of one build of one task: reports, published as they happen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names


@dataclass(frozen=True, slots=True)
class Voice:
    """Speaks for one build; every report carries the time at which it was said."""

    publisher: Publisher
    names: Names
    task_id: UUID
    build_number: int
    agent_id: UUID | None = None

    async def say(self, *reports: dict[str, Any]) -> None:
        """Publish one report, or several as an array; returns when the broker has it, raises Unavailable."""
        said = [
            {
                "task_id": str(self.task_id),
                "build_number": self.build_number,
                "observed_at": datetime.now(UTC).isoformat(),
                **({} if self.agent_id is None else {"agent_id": str(self.agent_id)}),
                **report,
            }
            for report in reports
        ]
        await self.say_raw(orjson.dumps(said[0] if len(said) == 1 else said))

    async def say_raw(self, body: bytes) -> None:
        """Publish bytes to the reports, whatever they are."""
        await self.publisher.publish(self.names.reports, str(self.task_id), body)


def build(transition: str, job_status: str, **more: Any) -> dict[str, Any]:
    """A `workspace.build` report."""
    return {"type": "workspace.build", "transition": transition, "job_status": job_status, **more}


def lifecycle(state: str) -> dict[str, Any]:
    """An `agent.lifecycle` report."""
    return {"type": "agent.lifecycle", "lifecycle": state}


def heartbeat() -> dict[str, Any]:
    """An `agent.heartbeat` report."""
    return {"type": "agent.heartbeat"}


def goodbye() -> dict[str, Any]:
    """An `agent.disconnected` report."""
    return {"type": "agent.disconnected"}


def health(verdict: str) -> dict[str, Any]:
    """An `app.health` report."""
    return {"type": "app.health", "health": verdict}


def status(state: str, message: str) -> dict[str, Any]:
    """An `app.status` report."""
    return {"type": "app.status", "state": state, "message": message}


def entry(number: int, speaker: str, content: str) -> dict[str, Any]:
    """A `task.log` report of one entry."""
    now = datetime.now(UTC).isoformat()
    return {"type": "task.log", "entries": [{"id": number, "type": speaker, "content": content, "time": now}]}
