"""Responses have every field that codersdk's Go types have, of the same kind; the differences are those on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.api.test_clients import WORKSPACE, expected_build_id, report_idle, start_build
from tests.clients.codersdk_fields import FACTS, TYPES, differences
from tests.harness.api import ApiHarness

FIELDS: dict[str, Any] = json.loads(FACTS.read_text())["types"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
LATER = {
    "Workspace.is_prebuild",
    "Workspace.task_id",
    "Workspace.template_use_classic_parameter_flow",
    "WorkspaceBuild.has_ai_task",
    "WorkspaceBuild.has_external_agent",
    "WorkspaceBuild.workspace_owner_avatar_url",
    "WorkspaceAgent.parent_id",
}
"""Fields of later revisions of Coder, which the compared one does not have yet."""
OWN = {"Task.agent_exit", "Task.stalled_since"}
"""Fields of taskherd's own; clients ignore them."""


def unexpected(name: str, value: Any) -> list[str]:
    """Return the differences that are neither on record nor fields of taskherd's own."""
    found = []
    for each in differences(FIELDS, name, value):
        field, _, what = each.partition(": ")
        if what != "unknown" or not any(later.partition(".")[2] == field.rpartition(".")[2] for later in LATER | OWN):
            found.append(each)
    return found


async def test_responses_match_the_go_types(api_harness: ApiHarness) -> None:
    """Before, while and after a build runs, no route lacks a field or shows a null or a kind that Go rejects."""
    task = await api_harness.create()
    client = api_harness.alice
    found: list[str] = []

    async def compare(name: str, path: str) -> None:
        response = await client.get(path)
        assert response.status_code == 200, (path, response.text)
        found.extend(f"{path}: {each}" for each in unexpected(name, response.json()))

    for prepare in (None, start_build, report_idle):
        if prepare is not None:
            await prepare(api_harness, task["id"])
        workspace = task["id"] if prepare is None else WORKSPACE
        await compare("TasksListResponse", "/tasks")
        await compare("Task", f"/tasks/me/{task['id']}")
        await compare("TaskLogsResponse", f"/tasks/me/{task['id']}/logs")
        await compare("WorkspacesResponse", "/workspaces")
        await compare("Workspace", f"/workspaces/{workspace}")
        await compare("WorkspaceBuild", f"/workspacebuilds/{expected_build_id(task['id'], 1)}")
    assert sorted(set(found)) == []


def test_every_compared_type_is_in_the_document() -> None:
    """``docs/compatibility.md`` names each type that is compared."""
    text = DOCUMENT.read_text()
    assert set(FIELDS) == set(TYPES)
    assert [name for name in TYPES if f"`{name}`" not in text] == []
