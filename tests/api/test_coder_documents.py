"""What clients of Coder read besides tasks: all fields of each document are those of the golden file."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from taskherd import __version__
from tests.api.test_clients import WORKSPACE, expected_build_id, json_of, report_idle, start_build
from tests.api.test_tasks import GOLDEN, TIME
from tests.harness.api import ORGANIZATION, TEMPLATE, VERSION, ApiHarness
from tests.harness.worker import build_report

DERIVED = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""Ids that are made of the id of a task."""


def normalize(shown: dict[str, Any], task: str = "no task") -> Any:
    """Replace what differs between runs by placeholders."""
    text = json.dumps(shown).replace(task, "<task>").replace(__version__, "<version>")
    return json.loads(DERIVED.sub("<derived>", re.sub(f'"{TIME.pattern}"', '"<time>"', text)))


async def test_the_documents_of_the_directory(api_harness: ApiHarness) -> None:
    """Users, organizations, templates, versions, presets and parameters, and what clients ask before they sign in."""
    paths = {
        "build info": "/buildinfo",
        "first user": "/users/first",
        "user": "/users/me",
        "users": "/users?q=bob",
        "organization": "/organizations/acme",
        "organizations": "/users/me/organizations",
        "template": f"/templates/{TEMPLATE}",
        "version": f"/templateversions/{VERSION}",
        "presets": f"/templateversions/{VERSION}/presets",
        "parameters": f"/templateversions/{VERSION}/rich-parameters",
    }
    shown = {name: json_of(await api_harness.alice.get(path)) for name, path in paths.items()}
    assert normalize(shown) == json.loads((GOLDEN / "directory.json").read_text())
    for path in (f"/organizations/{ORGANIZATION}/templates/claude", f"/organizations/default/templates/{TEMPLATE}"):
        assert json_of(await api_harness.alice.get(path)) == shown["template"]
    for path in ("/templates", "/organizations/acme/templates"):
        assert json_of(await api_harness.alice.get(path)) == [shown["template"]]
    versions = "/organizations/acme/templates/claude/versions/V1"
    assert json_of(await api_harness.alice.get(versions)) == shown["version"]
    assert json_of(await api_harness.alice.get("/organizations")) == shown["organizations"]
    assert json_of(await api_harness.alice.get("/organizations/default")) == shown["organization"]


async def test_the_documents_of_a_workspace(api_harness: ApiHarness) -> None:
    """While its agent runs, while a pause is requested, and once it has stopped, with its builds."""
    task = (await api_harness.create(name="golden", display_name="Golden", input="Fix the flaky test"))["id"]
    pending = json_of(await api_harness.alice.get(f"/workspaces/{task}"))
    await start_build(api_harness, task)
    await report_idle(api_harness, task)
    path, builds = f"/workspaces/{WORKSPACE}", [f"/workspacebuilds/{expected_build_id(task, each)}" for each in (1, 2)]
    shown: dict[str, Any] = {"pending": pending, "running": json_of(await api_harness.alice.get(path))}
    shown["requested"] = json_of(await api_harness.alice.post(f"/tasks/me/{task}/pause"), 202)
    shown["stopping"] = json_of(await api_harness.alice.get(path))
    await api_harness.worker.report(build_report(uuid.UUID(task), 2, "stop", "succeeded"))
    await api_harness.worker.until_row("SELECT status FROM tasks WHERE id = $1", uuid.UUID(task), is_="paused")
    shown["stopped"] = json_of(await api_harness.alice.get(path))
    shown["builds"] = [json_of(await api_harness.alice.get(build)) for build in builds]
    shown["parameters"] = json_of(await api_harness.alice.get(f"{builds[0]}/parameters"))
    assert normalize(shown, task) == json.loads((GOLDEN / "workspace.json").read_text())
    listed = json_of(await api_harness.alice.get("/workspaces"))
    assert listed == {"workspaces": [shown["stopped"]], "count": 1}
    assert json_of(await api_harness.alice.get("/users/me/workspace/golden")) == shown["stopped"]
    assert json_of(await api_harness.alice.get(f"{path}/builds"))[0]["id"] == shown["builds"][1]["id"]
