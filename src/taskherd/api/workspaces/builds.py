"""The JSON shape of a workspace build, the same in every response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from taskherd.api.workspaces.resources import resources_json
from taskherd.domain.reports import JobStatus, Transition, format_rfc3339
from taskherd.domain.view import WORKSPACE_STATUS
from taskherd.messages.work import build_id

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

ENDED: Final = frozenset({"succeeded", "failed", "canceled", "unknown"})
"""Statuses of a job that has ended."""
_REASONS: Final[Mapping[str, str]] = {"stop": "task_manual_pause", "start": "task_resume", "delete": "initiator"}


def build_json(row: Row, statuses: Sequence[Row] | None = None) -> dict[str, Any]:
    """Return the JSON of a build, from a row of ``store.builds``; ``statuses`` as in ``resources_json``."""
    status = row["job_status"]
    job: dict[str, Any] = {
        "id": str(row["build_id"]),
        "status": status,
        "created_at": format_rfc3339(row["created_at"]),
    }
    if status != "pending":
        job["started_at"] = job["created_at"]
    if status in ENDED:
        job["completed_at"] = format_rfc3339(row["updated_at"])
    if row["error"] and status == "failed":
        job["error"] = row["error"]
    build = _build_json(
        job,
        task={**row, "id": row["task_id"]},
        number=row["number"],
        transition=row["transition"],
        workspace_id=row["workspace_id"],
        workspace_name=row["workspace_name"],
        owner=(row["owner_id"], row["username"]),
        version_id=row["template_version_id"],
        initiator=(row["owner_id"], row["username"]),
        reason="initiator" if row["number"] == 1 else _REASONS[row["transition"]],
        updated_at=format_rfc3339(row["updated_at"]),
    )
    build["template_version_name"] = job["metadata"]["template_version_name"] = row["template_version_name"]
    build["template_version_preset_id"] = row["preset_id"]
    build["workspace_owner_avatar_url"] = row["avatar_url"]
    build["resources"] = resources_json(row, statuses)
    return build


def requested_build_json(
    task: Mapping[str, Any], transition: str, initiator_id: UUID, initiator_name: str
) -> dict[str, Any]:
    """Return the JSON of the build that a pause or resume requested; ``task`` is the document after it."""
    number = task["workspace_build_number"]
    requested_id = str(build_id(UUID(task["id"]), number))
    requested_at = task["updated_at"]
    build = _build_json(
        {"id": requested_id, "status": "pending", "created_at": requested_at},
        task=task,
        number=number,
        transition=transition,
        workspace_id=task["workspace_id"],
        workspace_name=task["workspace_name"],
        owner=(task["owner_id"], task["owner_name"]),
        version_id=task["template_version_id"],
        initiator=(str(initiator_id), initiator_name),
        reason=_REASONS[transition],
        updated_at=requested_at,
    )
    return {"workspace_build": build, "workspace_build_id": requested_id}


def _build_json(
    job: dict[str, Any],
    *,
    task: Mapping[str, Any],
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
    workspace_id = workspace_id or task["id"]
    job |= job_json(task, initiator[0], "workspace_build")
    job["input"] = {"workspace_build_id": job["id"]}
    job["metadata"] |= {
        "workspace_id": workspace_id,
        "workspace_name": workspace_name,
        "workspace_build_transition": transition,
    }
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
        "template_version_name": "",
        "template_version_preset_id": None,
        "initiator_id": initiator[0],
        "initiator_name": initiator[1],
        "reason": reason,
        "resources": [],
        "daily_cost": 0,
        "has_ai_task": True,
        "has_external_agent": False,
        "created_at": job["created_at"],
        "updated_at": updated_at,
    }


def job_json(template: Mapping[str, Any], initiator_id: Any, kind: str) -> dict[str, Any]:
    """Return what all jobs have, those of builds and of template versions; runners have no queue or tags to show.

    Args:
        template: ids and names of the template and its organization, with the prefix of their kind.
        initiator_id: the user's id, or None if the user is not known.
        kind: the job's type.
    """
    return {
        "organization_id": template["organization_id"],
        **({} if initiator_id is None else {"initiator_id": initiator_id}),
        "type": kind,
        "tags": {},
        "queue_position": 0,
        "queue_size": 0,
        "logs_overflowed": False,
        "metadata": {
            "template_version_name": "",
            **{f"template_{name}": template[f"template_{name}"] for name in ("id", "name", "display_name", "icon")},
        },
    }


def workspace_status(transition: str, job_status: str) -> str:
    """Return the status of the workspace with a build in this state; as in Coder, an unknown result is a failure."""
    if job_status == "unknown":
        return "failed"
    return str(WORKSPACE_STATUS.get((Transition(transition), JobStatus(job_status)), job_status))
