"""Responses of all routes are what codersdk's Go types say; every difference is declared, with a reason."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from taskherd.api.routes import ROUTES as SERVED
from taskherd.api.routes import SOCKETS
from taskherd.domain.reports import AgentState, JobStatus, Lifecycle, LogSource, Transition
from taskherd.domain.view import WORKSPACE_STATUS, Status
from tests.api.test_clients import AGENT, WORKSPACE, expected_build_id, frames, socket, start_build
from tests.clients import codersdk_routes
from tests.clients.codersdk_fields import Difference, Facts, differences, extract, load, read
from tests.clients.codersdk_routes import ADDED, IGNORED, LEFT_OUT, REFUSED, ROUTES
from tests.harness.api import ORGANIZATION, TEMPLATE, VERSION, ApiHarness
from tests.harness.worker import PRESET, WorkerHarness, build_report, make_report

FACTS = load()
KINDS = {"missing": LEFT_OUT, "unknown": ADDED}
"""The declared differences, by problem."""


@dataclass
class Comparison:
    """Responses compared so far: their undeclared differences, the declared ones that occurred, and the routes."""

    harness: ApiHarness
    undeclared: set[str] = field(default_factory=set)
    declared: set[str] = field(default_factory=set)
    routes: set[str] = field(default_factory=set)

    async def request(
        self, route: str, *, status: int = 200, body: Any = None, headers: Any = None, query: str = "", **path: Any
    ) -> Any:
        """Send a request and compare its response with the route's type, an error with the type of errors."""
        method, template = route.split(" ")
        client = self.harness.anonymous if headers else self.harness.alice
        response = await client.request(method, template.format(**path) + query, json=body, headers=headers)
        assert response.status_code == status, (route, response.text)
        return self.compare(route, response)

    def compare(self, route: str, response: httpx.Response) -> Any:
        """Compare a response and return its JSON."""
        expected = ROUTES[route].response if response.is_success else "Response"
        self.routes.add(route)
        if not expected:
            assert response.content in {b"", b"null"}, (route, response.text)
            return None
        self.note(route, expected, response.json())
        return response.json()

    def note(self, route: str, kind: str, value: Any) -> None:
        """Note the differences of a value from a Go type."""
        self.routes.add(route)
        for each in differences(FACTS, kind, value):
            known = set(each.names) & KINDS.get(each.problem, {}).keys()
            self.declared |= known
            if not known:
                self.undeclared.add(f"{route}: {each}")

    async def read_all(self, task: str, number: int, workspace: str, name: str) -> None:
        """Read everything there is to read about a task."""
        build = expected_build_id(task, number)
        await self.request("GET /tasks")
        await self.request("GET /tasks", query="?limit=1")
        for given in (task, name):
            await self.request("GET /tasks/{user}/{task}", user="me", task=given)
        await self.request("GET /tasks/{user}/{task}/logs", user="me", task=task)
        await self.request("GET /workspaces")
        await self.request("GET /workspaces/{id}", id=workspace)
        await self.request("GET /users/{user}/workspace/{workspace}", user="me", workspace=name)
        for rest in ("", "/parameters", "/logs"):
            await self.request(f"GET /workspacebuilds/{{id}}{rest}", id=build)
        if workspace != task:
            await self.request("GET /workspaceagents/{id}/logs", id=AGENT)

    async def follow(self, path: str, name: str, *, count: int) -> None:
        """Compare the first frames of a WebSocket."""
        left = iter(range(count - 1, -1, -1))
        async with socket(self.harness, path) as opened:
            seen = await frames(opened, lambda _: next(left) == 0)
        assert seen, path
        for each in seen:
            self.note(f"SOCKET {name}", ROUTES[f"SOCKET {name}"].response, each)
            if name.endswith("watch-ws") and each["type"] == "data":
                self.note(f"SOCKET {name}", "Workspace", each["data"])

    async def watch(self, workspace: str) -> None:
        """Compare the first event of the stream of a workspace."""
        async with self.harness.alice.stream("GET", f"/workspaces/{workspace}/watch") as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    self.note("GET /workspaces/{id}/watch", "Workspace", json.loads(line.removeprefix("data: ")))
                    return


@pytest.fixture
def comparison(api_harness: ApiHarness) -> Comparison:
    """Return a comparison of nothing yet."""
    return Comparison(api_harness)


async def test_responses_are_of_the_go_types(comparison: Comparison) -> None:
    """Through the life of a task, and of the directory, every route and error; each declared difference occurs."""
    await directory(comparison)
    await errors(comparison)
    await life_of_a_task(comparison)
    await failures(comparison)
    await workspaces(comparison)
    assert sorted(comparison.undeclared) == []
    assert comparison.routes == {route for route, compared in ROUTES.items() if not compared.own}
    assert comparison.declared == LEFT_OUT.keys() | ADDED.keys()


async def directory(comparison: Comparison) -> None:
    """Read users, organizations and templates, and create a key."""
    harness = comparison.harness
    await harness.worker.database.execute("""UPDATE presets SET parameters = '{"cpu": 8}'""")
    for path in ("/buildinfo", "/users/first", "/users", "/organizations", "/templates"):
        await comparison.request(f"GET {path}")
    for user in ("me", "bob"):
        await comparison.request("GET /users/{user}", user=user)
        await comparison.request("GET /users/{user}/organizations", user=user)
    await comparison.request("POST /users/{user}/keys", user="me", status=201)
    organization, template = "GET /organizations/{organization}", "/templates/{template}"
    in_acme: dict[str, Any] = {"organization": ORGANIZATION, "template": "claude", "version": "v1"}
    await comparison.request(organization, **in_acme)
    await comparison.request(f"{organization}/templates", **in_acme)
    await comparison.request(f"{organization}{template}", **in_acme)
    await comparison.request(f"{organization}{template}/versions/{{version}}", **in_acme)
    await comparison.request(f"GET {template}", template=TEMPLATE)
    for rest in ("", "/presets", "/rich-parameters"):
        await comparison.request(f"GET /templateversions/{{version}}{rest}", version=VERSION)


async def errors(comparison: Comparison) -> None:
    """Get each kind of error: with details and validations, and without."""
    task = "GET /tasks/{user}/{task}"
    await comparison.request(task, user="me", task="nothing", status=404)
    await comparison.request(task, user="me", task="x", headers={"Coder-Session-Token": "wrong"}, status=401)
    await comparison.request("GET /tasks", query="?q=nonsense:1", status=400)
    await comparison.request("POST /tasks/{user}", user="me", body={"template_version_id": 7}, status=400)
    await comparison.request("POST /tasks/{user}", user="me", body=[], status=400)
    for method, path, status in (("PUT", "/tasks", 405), ("GET", "/nothing", 404)):
        response = await comparison.harness.alice.request(method, path)
        assert response.status_code == status
        comparison.note("GET /tasks", "Response", response.json())


async def life_of_a_task(comparison: Comparison) -> None:
    """Create, start, work, fail, pause, resume and delete, and read everything in each status."""
    harness, worker = comparison.harness, comparison.harness.worker
    body = {**filled("CreateTaskRequest"), "name": "flaky", "template_version_id": str(VERSION)}
    body["template_version_preset_id"] = str(PRESET)
    task = (await comparison.request("POST /tasks/{user}", user="me", body=body, status=201))["id"]
    of_task, task_id = {"user": "me", "task": task}, uuid.UUID(task)
    await comparison.read_all(task, 1, task, "flaky")
    await worker.report(build_report(task_id, 1, "start", "running"))
    await worker.until(lambda: worker.document(task_id).get("workspace_status") == "starting")
    await comparison.read_all(task, 1, task, "flaky")
    await start_build(harness, task)
    await comparison.read_all(task, 1, WORKSPACE, "flaky")
    await agent_reports(comparison, task_id)
    await worker.report(make_report("agent.disconnected", task_id, build_number=1, agent_id=AGENT))
    await worker.until(lambda: not worker.document(task_id)["workspace_agent_health"]["healthy"])
    await comparison.read_all(task, 1, WORKSPACE, "flaky")
    await worker.report(make_report("agent.heartbeat", task_id, build_number=1, agent_id=AGENT))
    await worker.until(lambda: worker.document(task_id)["workspace_agent_health"]["healthy"])
    for state, uri in (("working", "https://example.com/pr/1"), ("complete", ""), ("failed", ""), ("idle", "")):
        report = make_report("app.status", task_id, build_number=1, state=state, message=state, uri=uri)
        await report_until(worker, report, "current_state", {"state": state})
        await comparison.read_all(task, 1, WORKSPACE, "flaky")
    await comparison.follow(
        f"/workspacebuilds/{expected_build_id(task, 1)}/logs?follow", "/workspacebuilds/{id}/logs", count=3
    )
    await comparison.follow(f"/workspaceagents/{AGENT}/logs?follow", "/workspaceagents/{id}/logs", count=1)
    await comparison.follow(f"/workspaces/{WORKSPACE}/watch-ws", "/workspaces/{id}/watch-ws", count=2)
    await comparison.watch(WORKSPACE)
    await comparison.request("POST /tasks/{user}/{task}/send", **of_task, body=filled("TaskSendRequest"), status=204)
    await worker.report(make_report("agent.exit", task_id, build_number=1, agent_id=AGENT, why="exited", status=3))
    await worker.until(lambda: worker.document(task_id).get("agent_exit"))
    await comparison.read_all(task, 1, WORKSPACE, "flaky")
    await comparison.request("POST /tasks/{user}/{task}/pause", **of_task, status=202)
    await comparison.request("GET /workspaces/{id}/builds", id=task)
    await comparison.request("GET /workspacebuilds/{id}", id=expected_build_id(task, 2))
    await worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await worker.until(lambda: worker.document(task_id).get("status") == "paused")
    await comparison.read_all(task, 2, WORKSPACE, "flaky")
    await comparison.request("GET /workspacebuilds/{id}", id=expected_build_id(task, 1))
    await comparison.request(
        "PATCH /tasks/{user}/{task}/input", **of_task, body=filled("UpdateTaskInputRequest"), status=204
    )
    await comparison.request("POST /tasks/{user}/{task}/send", **of_task, body={"input": "x"}, status=409)
    await comparison.request("POST /tasks/{user}/{task}/resume", **of_task, status=202)
    await comparison.read_all(task, 3, WORKSPACE, "flaky")
    await comparison.request("DELETE /tasks/{user}/{task}", **of_task, status=202)


async def agent_reports(comparison: Comparison, task_id: uuid.UUID) -> None:
    """Report a status as an agent does."""
    token = comparison.harness.worker.requests_of(task_id, "workspace.start")[0]["agent_token"]
    body = {**filled("agentsdk.PatchAppStatus"), "app_slug": "claude"}
    headers = {"Coder-Session-Token": token}
    await comparison.request("PATCH /workspaceagents/me/app-status", body=body, headers=headers)


async def failures(comparison: Comparison) -> None:
    """Read a task whose start failed, and one whose build was superseded without a result."""
    worker = comparison.harness.worker
    failed, superseded = [(await comparison.harness.create(name=name))["id"] for name in ("failed", "superseded")]
    report = build_report(uuid.UUID(failed), 1, "start", "failed", error="No space left")
    await report_until(worker, report, "status", "error")
    await comparison.read_all(failed, 1, failed, "failed")
    report = build_report(uuid.UUID(superseded), 2, "stop", "running")
    await report_until(worker, report, "workspace_build_number", 2)
    await comparison.read_all(superseded, 2, superseded, "superseded")
    await comparison.request("GET /workspacebuilds/{id}", id=expected_build_id(superseded, 1))


async def report_until(worker: WorkerHarness, report: dict[str, Any], name: str, expected: Any) -> None:
    """Report, and wait until this field of the task's document is, or contains, what is expected."""
    await worker.report(report)

    def arrived() -> bool:
        found = worker.document(uuid.UUID(report["task_id"])).get(name)
        return bool(found == expected or (isinstance(found, dict) and expected.items() <= found.items()))

    await worker.until(arrived)


async def workspaces(comparison: Comparison) -> None:
    """Create workspaces and request builds, with all fields that a request may have."""
    body = filled("CreateWorkspaceRequest", skip=["template_version_id", "rich_parameter_values"])
    body |= {"template_id": str(TEMPLATE), "template_version_preset_id": str(PRESET)}
    body["rich_parameter_values"] = [{"name": "AI Prompt", "value": "Fix it"}]
    member = "POST /organizations/{organization}/members/{user}/workspaces"
    await comparison.request(member, organization=ORGANIZATION, user="me", body={**body, "name": "first"}, status=201)
    created = await comparison.request(
        "POST /users/{user}/workspaces", user="me", body={**body, "name": "second"}, status=201
    )
    refused = {**body, "name": "third", "rich_parameter_values": [{"name": "cpu", "value": "8"}]}
    await comparison.request("POST /users/{user}/workspaces", user="me", body=refused, status=400)
    builds = "POST /workspaces/{id}/builds"
    build = filled("CreateWorkspaceBuildRequest", skip=["dry_run", "on_success"])
    for more in ({"dry_run": True}, {"on_success": {"transition": "start"}}):
        await comparison.request(builds, id=created["id"], body={**build, "transition": "delete", **more}, status=400)
    await comparison.request(builds, id=created["id"], body={**build, "transition": "delete"}, status=201)


def filled(name: str, skip: list[str] | None = None) -> dict[str, Any]:
    """Return a request of this type with a value for each field."""
    return {field: value_of(fact["type"]) for field, fact in FACTS.fields(name).items() if field not in (skip or ())}


def value_of(kind: str) -> Any:
    """Return a value of a Go type, as Go sends it."""
    kind = kind.removeprefix("*")
    if kind in FACTS.enums:
        return FACTS.enums[kind][0]
    if kind.startswith("[]") and kind != "[]byte":
        return [filled(kind[2:])]
    return {"string": "Text", "[]byte": "e30=", "bool": True, "int64": 1, "uuid.UUID": str(uuid.UUID(int=0))}[kind]


def test_every_route_is_declared() -> None:
    """A route that is served has a declaration in ``tests/clients/codersdk_routes.py``, and no other route has one."""
    served = {f"{route.method} {route.path}" for route in SERVED} | {f"SOCKET {socket.path}" for socket in SOCKETS}
    assert ROUTES.keys() == served


def test_every_field_of_a_request_is_read_or_declared() -> None:
    """Each field of a request's Go type is in the route's model, or is declared to be ignored."""
    models = {f"{route.method} {route.path}": route.body for route in SERVED if route.body is not None}
    found = set()
    for name, compared in ROUTES.items():
        if compared.request:
            fields = set(models[name].model_fields)
            found |= {f"{compared.request}.{each}" for each in FACTS.fields(compared.request).keys() - fields}
    assert found == IGNORED.keys()
    assert all(each.rpartition(".")[2] in FACTS.fields(each.rpartition(".")[0]) for each in REFUSED)


def test_every_value_is_a_constant_of_the_go_type() -> None:
    """Whatever a status, a state or a lifecycle may be, Go has a constant for it."""
    ours: dict[str, Iterable[str]] = {
        "TaskStatus": Status,
        "TaskState": set(AgentState) - {AgentState.FAILURE},
        "WorkspaceAppStatusState": set(AgentState) - {AgentState.FAILED},
        "WorkspaceAgentLifecycle": Lifecycle,
        "WorkspaceTransition": Transition,
        "WorkspaceStatus": WORKSPACE_STATUS.values(),
        "ProvisionerJobStatus": {*JobStatus, "unknown"},
        "TaskLogType": LogSource,
    }
    for name, values in ours.items():
        assert {str(value) for value in values} <= set(FACTS.enums[name]), name


def test_the_document_shows_what_is_compared() -> None:
    """``docs/compatibility.md`` has the declared routes and differences."""
    text = codersdk_routes.DOCUMENT.read_text()
    assert codersdk_routes.section() in text
    assert codersdk_routes.updated(text) == text, "run `make docs`"


GO = """
package codersdk

// Color is a color.
type Color string

const (
	ColorRed  Color = "red"
	ColorBlue Color = "blue"
)

type (
	Weights map[Color]int64
)

type Base struct {
	ID uuid.UUID `json:"id" format:"uuid"` // ID has a comment.
	Hidden string `json:"-"`
}

type Thing struct {
	Base `table:"b"`
	// Colors are not null.
	Colors  []Color    `json:"colors"`
	Weights Weights    `json:"weights,omitempty"`
	At      *time.Time `json:"at"`
	Other   *Thing     `json:"other,omitempty"`
	Plain   string
}
"""


def test_go_types_are_read() -> None:
    """Embedded structs, tags, missing tags, named types, constants and comments."""
    facts = extract(read({"codersdk/thing.go": GO}), ["Thing"])
    assert facts["enums"] == {"Color": ["blue", "red"]}
    assert {name: (each["type"], each["optional"]) for name, each in facts["types"]["Thing"]["fields"].items()} == {
        "id": ("uuid.UUID", False),
        "colors": ("[]Color", False),
        "weights": ("map[Color]int64", True),
        "at": ("*time.Time", False),
        "other": ("*Thing", True),
        "Plain": ("string", False),
    }


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"id": None}, ["Thing.id: null"]),
        ({"id": 7}, ["Thing.id: 7 is no uuid.UUID"]),
        ({"colors": None}, ["Thing.colors: null"]),
        ({"colors": ["green"]}, ["Thing.colors: 'green' is no Color"]),
        ({"weights": {"red": "1"}}, ["Thing.weights: '1' is no int64"]),
        ({"weights": {"red": 2**63}}, ["Thing.weights: 9223372036854775808 is no int64"]),
        ({"at": None}, []),
        ({"at": "2026-01-02 03:04:05"}, ["Thing.at: '2026-01-02 03:04:05' is no time.Time"]),
        ({"Plain": True}, ["Thing.Plain: True is no string"]),
        (
            {"other": {"id": str(uuid.UUID(int=1))}},
            [f"Thing.other.{each}: missing" for each in ("colors", "at", "Plain")],
        ),
        ({"more": 1}, ["Thing.more: unknown"]),
    ],
)
def test_differences_are_found(change: dict[str, Any], found: list[str]) -> None:
    """Missing and unknown fields, other kinds, nulls and unknown constants, at any depth."""
    facts = Facts(**extract(read({"codersdk/thing.go": GO}), ["Thing"]))
    value = {"id": str(uuid.UUID(int=1)), "colors": ["red"], "at": "2026-01-02T03:04:05.5Z", "Plain": "", **change}
    assert [str(each) for each in differences(facts, "Thing", value)] == found


def test_a_difference_has_the_names_of_all_types_around_it() -> None:
    """So that a field may be left out of a type, or of a type only where another contains it."""
    facts = Facts(**extract(read({"codersdk/thing.go": GO}), ["Thing"]))
    inner: dict[str, Any] = {"id": str(uuid.UUID(int=1)), "colors": [], "at": None}
    found = list(differences(facts, "[]Thing", [{**inner, "Plain": "", "other": inner}]))
    assert found == [Difference(("Thing.Plain", "Thing.other.Plain"), "missing")]
