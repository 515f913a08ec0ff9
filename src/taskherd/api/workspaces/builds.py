"""A workspace build as people's tools see it: the same shape wherever a build is told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel

from taskherd.domain.reports import JobStatus, Transition, rfc3339
from taskherd.domain.view import WORKSPACE_STATUS
from taskherd.messages.work import build_id

if TYPE_CHECKING:
    from taskherd.store.reader import Row

ENDED: Final = frozenset({"succeeded", "failed", "canceled", "unknown"})
"""What a job's status is when there is nothing to wait for any longer."""
REASONS: Final[Mapping[str, str]] = {"stop": "task_manual_pause", "start": "task_resume", "delete": "initiator"}


class JobOut(BaseModel):
    """The provisioner's job of a build; `id` is the build's. Unknown: it was displaced before its end was heard of."""

    id: UUID
    status: Literal["pending", "running", "succeeded", "canceling", "canceled", "failed", "unknown"]
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    error: str | None = None


class BuildOut(BaseModel):
    """A build: `status` is the workspace's with this build (pending, starting, running, stopping, stopped, …)."""

    id: UUID
    build_number: int
    transition: Literal["start", "stop", "delete"]
    status: str
    job: JobOut
    workspace_id: UUID | None
    workspace_name: str
    workspace_owner_id: UUID
    workspace_owner_name: str
    template_version_id: UUID
    initiator_id: UUID | None
    initiator_name: str
    reason: str
    resources: list[Any]
    created_at: str
    updated_at: str


class BuildAsked(BaseModel):
    """The build that was asked for."""

    workspace_build: BuildOut
    workspace_build_id: UUID


def build_json(row: Row) -> dict[str, Any]:
    """A build from a row of `store.builds`."""
    status = row["job_status"]
    job = {"id": str(row["build_id"]), "status": status, "created_at": rfc3339(row["created_at"])}
    if status != "pending":
        job["started_at"] = job["created_at"]
    if status in ENDED:
        job["completed_at"] = rfc3339(row["updated_at"])
    if row["error"] and status == "failed":
        job["error"] = row["error"]
    return _build(
        job,
        number=row["number"],
        transition=row["transition"],
        workspace_id=row["workspace_id"],
        workspace_name=row["workspace_name"],
        owner=(row["owner_id"], row["username"]),
        version_id=row["template_version_id"],
        initiator=(row["owner_id"], row["username"]),
        reason="initiator" if row["number"] == 1 else REASONS[row["transition"]],
        updated_at=rfc3339(row["updated_at"]),
    )


def requested_build_json(
    task: Mapping[str, Any], transition: str, initiator_id: UUID, initiator_name: str
) -> dict[str, Any]:
    """What a pause or resume answers: `task` is the document right after it."""
    number = task["workspace_build_number"]
    identifier = str(build_id(UUID(task["id"]), number))
    at = task["updated_at"]
    build = _build(
        {"id": identifier, "status": "pending", "created_at": at},
        number=number,
        transition=transition,
        workspace_id=task["workspace_id"],
        workspace_name=task["workspace_name"],
        owner=(task["owner_id"], task["owner_name"]),
        version_id=task["template_version_id"],
        initiator=(str(initiator_id), initiator_name),
        reason=REASONS[transition],
        updated_at=at,
    )
    return {"workspace_build": build, "workspace_build_id": identifier}


def _build(
    job: dict[str, str],
    *,
    number: int,
    transition: str,
    workspace_id: Any,
    workspace_name: str,
    owner: tuple[Any, str],
    version_id: Any,
    initiator: tuple[Any, str],
    reason: str,
    updated_at: str,
) -> dict[str, Any]:
    return {
        "id": job["id"],
        "build_number": number,
        "transition": transition,
        "status": workspace_status(transition, job["status"]),
        "job": job,
        "workspace_id": workspace_id,
        "workspace_name": workspace_name,
        "workspace_owner_id": owner[0],
        "workspace_owner_name": owner[1],
        "template_version_id": version_id,
        "initiator_id": initiator[0],
        "initiator_name": initiator[1],
        "reason": reason,
        "resources": [],
        "created_at": job["created_at"],
        "updated_at": updated_at,
    }


def workspace_status(transition: str, job_status: str) -> str:
    """The status of the workspace with a build in this state; that of a build of unknown end is the job's."""
    if job_status == "unknown":
        return job_status
    return str(WORKSPACE_STATUS.get((Transition(transition), JobStatus(job_status)), job_status))
