"""What each route is in codersdk: its request and response types, and the fields that differ, with the reason.

``tests/api/test_codersdk.py`` compares real responses with these declarations. ``docs/compatibility.md`` shows them;
``python -m tests.clients.codersdk_routes`` writes them there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.codersdk_fields import FACTS

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"
_NAME: Final = re.compile(r"^((?:agentsdk\.)?\w+)\.(.+)$")
_SECTION: Final = re.compile(r"(<!-- compared: .*? -->\n).*?(<!-- end -->\n)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Compared:
    """The types of a route in codersdk: of its response, empty if it has none, and of its request.

    ``own`` says why there is no such type: the route is not one of Coder's, or its body is not one of codersdk's.
    """

    response: str = ""
    request: str = ""
    own: str = ""


_EXTENSION: Final = Compared(own="taskherd's own")

ROUTES: Final[Mapping[str, Compared]] = {
    "GET /tasks": Compared("TasksListResponse"),
    "POST /tasks/{user}": Compared("Task", "CreateTaskRequest"),
    "GET /tasks/{user}/{task}": Compared("Task"),
    "DELETE /tasks/{user}/{task}": Compared(),
    "PATCH /tasks/{user}/{task}/input": Compared("", "UpdateTaskInputRequest"),
    "POST /tasks/{user}/{task}/send": Compared("", "TaskSendRequest"),
    "GET /tasks/{user}/{task}/logs": Compared("TaskLogsResponse"),
    "POST /tasks/{user}/{task}/pause": Compared("PauseTaskResponse"),
    "POST /tasks/{user}/{task}/resume": Compared("ResumeTaskResponse"),
    "GET /tasks/watch": _EXTENSION,
    "GET /tasks/{user}/{task}/watch": _EXTENSION,
    "POST /tasks/{user}/{task}/interrupt": _EXTENSION,
    "GET /tasks/{user}/{task}/events": _EXTENSION,
    "GET /tasks/{user}/{task}/explain": _EXTENSION,
    "GET /tasks/{user}/{task}/logs/watch": _EXTENSION,
    "GET /tasks/{user}/{task}/durations": _EXTENSION,
    "PATCH /tasks/{user}/{task}/labels": _EXTENSION,
    "GET /tasks/{user}/{task}/requests": _EXTENSION,
    "POST /tasks/{user}/{task}/requests/{request}/answer": _EXTENSION,
    "GET /requests": _EXTENSION,
    "GET /task-totals": _EXTENSION,
    "GET /task-overview": _EXTENSION,
    "GET /deleted-tasks": _EXTENSION,
    "GET /usage": _EXTENSION,
    "GET /fleet": _EXTENSION,
    "GET /dead-letters": _EXTENSION,
    "POST /dead-letters/replay": _EXTENSION,
    "POST /task-batches": _EXTENSION,
    "POST /task-actions": _EXTENSION,
    "GET /task-actions": _EXTENSION,
    "GET /task-actions/{action}": _EXTENSION,
    "GET /task-actions/{action}/results": _EXTENSION,
    "GET /task-actions/{action}/watch": _EXTENSION,
    "POST /task-actions/{action}/cancel": _EXTENSION,
    "GET /workspaces": Compared("WorkspacesResponse"),
    "GET /workspaces/{id}": Compared("Workspace"),
    "GET /workspaces/{id}/watch": Compared("Workspace"),
    "SOCKET /workspaces/{id}/watch-ws": Compared("ServerSentEvent"),
    "GET /users/{user}/workspace/{workspace}": Compared("Workspace"),
    "POST /organizations/{organization}/members/{user}/workspaces": Compared("Workspace", "CreateWorkspaceRequest"),
    "POST /users/{user}/workspaces": Compared("Workspace", "CreateWorkspaceRequest"),
    "GET /workspaces/{id}/builds": Compared("[]WorkspaceBuild"),
    "POST /workspaces/{id}/builds": Compared("WorkspaceBuild", "CreateWorkspaceBuildRequest"),
    "GET /workspacebuilds/{id}": Compared("WorkspaceBuild"),
    "GET /workspacebuilds/{id}/parameters": Compared("[]WorkspaceBuildParameter"),
    "GET /workspacebuilds/{id}/logs": Compared("[]ProvisionerJobLog"),
    "SOCKET /workspacebuilds/{id}/logs": Compared("ProvisionerJobLog"),
    "GET /workspaceagents/{id}/logs": Compared("[]WorkspaceAgentLog"),
    "SOCKET /workspaceagents/{id}/logs": Compared("[]WorkspaceAgentLog"),
    "PATCH /workspaceagents/me/app-status": Compared("", "agentsdk.PatchAppStatus"),
    "POST /workspaceagents/me/tasks/{id}/log-snapshot": Compared(own="the messages of AgentAPI"),
    "POST /workspaceagents/me/usage": _EXTENSION,
    "POST /workspaceagents/me/logs": _EXTENSION,
    "POST /workspaceagents/me/requests": _EXTENSION,
    "GET /workspaceagents/me/requests/{request}": _EXTENSION,
    "GET /buildinfo": Compared("BuildInfoResponse"),
    "GET /users/first": Compared("Response"),
    "GET /users": Compared("GetUsersResponse"),
    "GET /users/{user}": Compared("User"),
    "GET /users/{user}/organizations": Compared("[]Organization"),
    "POST /users/{user}/keys": Compared("GenerateAPIKeyResponse"),
    "GET /organizations": Compared("[]Organization"),
    "GET /organizations/{organization}": Compared("Organization"),
    "GET /organizations/{organization}/templates": Compared("[]Template"),
    "GET /organizations/{organization}/templates/{template}": Compared("Template"),
    "GET /organizations/{organization}/templates/{template}/versions/{version}": Compared("TemplateVersion"),
    "GET /templates": Compared("[]Template"),
    "GET /templates/{template}": Compared("Template"),
    "GET /templateversions/{version}": Compared("TemplateVersion"),
    "GET /templateversions/{version}/presets": Compared("[]Preset"),
    "GET /templateversions/{version}/rich-parameters": Compared("[]TemplateVersionParameter"),
}
"""Every route, below ``/api/v2``. An error of any of them is a ``Response``."""

_NO_TIMES: Final = "the directory file has no times"
_NO_AUTHOR: Final = "the directory file has no authors"

LEFT_OUT: Final[Mapping[str, str]] = {
    "Organization.created_at": _NO_TIMES,
    "Organization.updated_at": _NO_TIMES,
    "ProvisionerJob.file_id": "no file is uploaded to a job",
    "Template.created_at": _NO_TIMES,
    "Template.created_by_id": _NO_AUTHOR,
    "Template.created_by_name": _NO_AUTHOR,
    "Template.provisioner": "it is neither Terraform nor Coder's `echo`",
    "Template.updated_at": _NO_TIMES,
    "TemplateVersion.created_at": _NO_TIMES,
    "TemplateVersion.created_by": _NO_AUTHOR,
    "TemplateVersion.job.created_at": _NO_TIMES,
    "TemplateVersion.job.initiator_id": _NO_AUTHOR,
    "TemplateVersion.updated_at": _NO_TIMES,
    "User.created_at": _NO_TIMES,
    "User.updated_at": _NO_TIMES,
}
"""Fields that Go always sends and that no response has; a Go client reads their zero value."""

ADDED: Final[Mapping[str, str]] = {
    "PauseTaskResponse.workspace_build_id": "as in earlier versions of Coder",
    "ResumeTaskResponse.workspace_build_id": "as in earlier versions of Coder",
    "Task.agent_exit": "how the agent ended",
    "Task.interrupt": "the interrupt that is going on",
    "Task.requests": "what its agent asks: the first ten open requests",
    "Task.requests_open": "how many open requests its agent has",
    "Task.stalled_since": "since when the agent has been busy without a sign of progress",
    "Task.usage": "what its agents used and cost",
    "TasksListResponse.next": "the next page",
}
"""Fields that Go does not know, which its clients ignore."""

IGNORED: Final[Mapping[str, str]] = {
    "CreateWorkspaceBuildRequest.log_level": "there is one level",
    "CreateWorkspaceBuildRequest.orphan": "a delete never fails for want of a provisioner's state",
    "CreateWorkspaceBuildRequest.reason": "the transition decides it",
    "CreateWorkspaceBuildRequest.rich_parameter_values": "a task keeps its preset's",
    "CreateWorkspaceBuildRequest.state": "there is no provisioner's state",
    "CreateWorkspaceBuildRequest.template_version_id": "a task keeps its version",
    "CreateWorkspaceBuildRequest.template_version_preset_id": "a task keeps its preset",
    "CreateWorkspaceRequest.automatic_updates": "a task keeps its version",
    "CreateWorkspaceRequest.autostart_schedule": "there are no schedules",
    "CreateWorkspaceRequest.ttl_ms": "there are no schedules",
    "agentsdk.PatchAppStatus.icon": "deprecated in codersdk",
    "agentsdk.PatchAppStatus.needs_user_attention": "deprecated in codersdk",
}
"""Fields of requests that are accepted and change nothing."""

REFUSED: Final[Mapping[str, str]] = {
    "CreateWorkspaceBuildRequest.dry_run": "400 if true: a build would be made",
    "CreateWorkspaceBuildRequest.on_success": "400 unless null: request the start once the stop has succeeded",
    "CreateWorkspaceRequest.rich_parameter_values": "400 for another parameter than `AI Prompt`: presets set them",
}
"""Fields of requests that are refused with a 400."""


def section() -> str:
    """Return the tables in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    stored = json.loads(FACTS.read_text())
    yield f"The types are those of `{stored['repository']}` at `{stored['tag']}`, commit"
    yield f"`{stored['commit']}`: {len(stored['types'])} structs, and the constants of {len(stored['enums'])} string"
    yield "types."
    yield ""
    yield "| route | request | response |"
    yield "|---|---|---|"
    for route, compared in ROUTES.items():
        request, response = (f"`{name}`" if name else "" for name in (compared.request, compared.response))
        yield f"| `{route.replace('SOCKET', 'GET (WebSocket)')}` | {request} | {compared.own or response} |"
    for title, fields in (
        ("responses lack", LEFT_OUT),
        ("responses add", ADDED),
        ("requests, ignored", IGNORED),
        ("requests, refused", REFUSED),
    ):
        yield from ("", f"| {title} | field | |", "|---|---|---|")
        for name, why in sorted(fields.items()):
            kind, field = _NAME.findall(name)[0]
            yield f"| `{kind}` | `{field}` | {why} |"


def updated(document: str) -> str:
    """Return a document with the current tables between its two marks."""
    return _SECTION.sub(lambda match: match[1] + section() + match[2], document)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
