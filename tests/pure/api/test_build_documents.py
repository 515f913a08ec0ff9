"""How a build, its agent and its logs are shown, in every state that they can be in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

import orjson
import pytest

from taskherd.api.workspaces import builds, logs, queries, resources
from taskherd.messages.work import build_id

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

MADE = datetime(2026, 11, 27, 10, tzinfo=UTC)
ENDED, TASK_MADE, TASK_CHANGED = (MADE + timedelta(minutes=minutes) for minutes in (1, -5, 9))
TASK, BUILD, WORKSPACE, OWNER, VERSION, TEMPLATE, AGENT, APP, ACTIVE, PRESET, ORGANIZATION = (
    UUID(int=number) for number in range(1, 12)
)


def row(**fields: Any) -> Row:
    """Return the row of a build whose agent runs."""
    defaults = {
        "build_id": BUILD,
        "job_status": "succeeded",
        "created_at": MADE,
        "updated_at": ENDED,
        "error": "",
        "task_id": TASK,
        "number": 3,
        "transition": "start",
        "workspace_id": WORKSPACE,
        "workspace_name": "fix-it",
        "owner_id": OWNER,
        "username": "alice",
        "avatar_url": "/alice.png",
        "template_version_id": VERSION,
        "template_version_name": "v7",
        "preset_id": PRESET,
        "organization_id": ORGANIZATION,
        "organization_name": "acme",
        "template_id": TEMPLATE,
        "template_name": "claude",
        "template_display_name": "Claude",
        "template_icon": "/icon.svg",
        "active_version_id": ACTIVE,
        "agent_id": AGENT,
        "is_latest": True,
        "healthy": True,
        "health_reason": None,
        "lifecycle": "ready",
        "current_state": None,
        "app_id": APP,
        "app_slug": "ccw",
        "task_created_at": TASK_MADE,
        "task_updated_at": TASK_CHANGED,
    }
    return cast("Row", {**defaults, **fields})


@pytest.mark.parametrize(
    ("status", "shown", "started", "completed"),
    [
        ("pending", "pending", False, False),
        ("running", "starting", True, False),
        ("canceling", "canceling", True, False),
        ("succeeded", "running", True, True),
        ("failed", "failed", True, True),
        ("canceled", "canceled", True, True),
        ("unknown", "failed", True, True),
    ],
)
def test_a_build_shows_how_far_its_job_is(status: str, shown: str, *, started: bool, completed: bool) -> None:
    """It starts when it is made, for no more is known, and has completed once it is in a status without another."""
    build = builds.build_json(row(job_status=status))
    job = build["job"]
    assert (job["status"], build["status"]) == (status, shown)
    assert job["created_at"] == build["created_at"] == "2026-11-27T10:00:00.000000Z"
    assert job.get("started_at") == ("2026-11-27T10:00:00.000000Z" if started else None)
    assert job.get("completed_at") == ("2026-11-27T10:01:00.000000Z" if completed else None)
    assert "error" not in job
    failed = builds.build_json(row(job_status=status, error="no disk"))["job"]
    assert failed.get("error") == ("no disk" if status == "failed" else None)


@pytest.mark.parametrize(
    ("number", "transition", "reason"),
    [
        (1, "start", "initiator"),
        (2, "start", "task_resume"),
        (2, "stop", "task_manual_pause"),
        (9, "delete", "initiator"),
    ],
)
def test_a_build_says_why_it_was_made(number: int, transition: str, reason: str) -> None:
    """The first by the create, the others by what was done to the task."""
    assert builds.build_json(row(number=number, transition=transition))["reason"] == reason


def test_all_fields_of_a_build() -> None:
    """Names and ids of the task, its template and its owner are where Coder's clients look for them."""
    build = builds.build_json(row())
    assert {name: value for name, value in build.items() if name not in {"job", "resources"}} == {
        "id": str(BUILD),
        "build_number": 3,
        "transition": "start",
        "status": "running",
        "workspace_id": WORKSPACE,
        "workspace_name": "fix-it",
        "workspace_owner_id": OWNER,
        "workspace_owner_name": "alice",
        "workspace_owner_avatar_url": "/alice.png",
        "template_version_id": VERSION,
        "template_version_name": "v7",
        "template_version_preset_id": PRESET,
        "initiator_id": OWNER,
        "initiator_name": "alice",
        "reason": "task_resume",
        "daily_cost": 0,
        "has_ai_task": True,
        "has_external_agent": False,
        "created_at": "2026-11-27T10:00:00.000000Z",
        "updated_at": "2026-11-27T10:01:00.000000Z",
    }
    assert build["job"] == {
        "id": str(BUILD),
        "status": "succeeded",
        "created_at": "2026-11-27T10:00:00.000000Z",
        "started_at": "2026-11-27T10:00:00.000000Z",
        "completed_at": "2026-11-27T10:01:00.000000Z",
        "organization_id": ORGANIZATION,
        "initiator_id": OWNER,
        "type": "workspace_build",
        "tags": {},
        "queue_position": 0,
        "queue_size": 0,
        "logs_overflowed": False,
        "input": {"workspace_build_id": str(BUILD)},
        "metadata": {
            "template_version_name": "v7",
            "template_id": TEMPLATE,
            "template_name": "claude",
            "template_display_name": "Claude",
            "template_icon": "/icon.svg",
            "workspace_id": WORKSPACE,
            "workspace_name": "fix-it",
            "workspace_build_transition": "start",
        },
    }
    assert builds.build_json(row(workspace_id=None))["workspace_id"] == TASK


@pytest.mark.parametrize(("transition", "reason"), [("stop", "task_manual_pause"), ("start", "task_resume")])
def test_a_requested_build_is_pending_and_is_of_who_asked_for_it(transition: str, reason: str) -> None:
    """Its owner is the task's, its initiator the caller, and no resource of it is known yet."""
    task = {
        "id": str(TASK),
        "workspace_build_number": 4,
        "updated_at": "2026-11-27T11:00:00.000000Z",
        "workspace_id": None,
        "workspace_name": "fix-it",
        "owner_id": str(OWNER),
        "owner_name": "alice",
        "organization_id": str(ORGANIZATION),
        "template_version_id": str(VERSION),
        "template_id": str(TEMPLATE),
        "template_name": "claude",
        "template_display_name": "Claude",
        "template_icon": "",
    }
    requested = builds.requested_build_json(task, transition, UUID(int=99), "carol")
    build = requested["workspace_build"]
    assert requested["workspace_build_id"] == build["id"] == build["job"]["id"] == str(build_id(TASK, 4))
    assert (build["status"], build["job"]["status"], build["transition"]) == ("pending", "pending", transition)
    assert (build["build_number"], build["reason"], build["resources"]) == (4, reason, [])
    assert (build["workspace_owner_id"], build["workspace_owner_name"]) == (str(OWNER), "alice")
    assert (build["initiator_id"], build["initiator_name"]) == (str(UUID(int=99)), "carol")
    assert build["job"]["initiator_id"] == str(UUID(int=99))
    assert build["created_at"] == build["updated_at"] == build["job"]["created_at"] == task["updated_at"]
    assert (build["workspace_id"], build["template_version_id"]) == (str(TASK), str(VERSION))
    assert not {"started_at", "completed_at"} & build["job"].keys()


@pytest.mark.parametrize(
    ("fields", "status", "health", "lifecycle", "app"),
    [
        ({}, "connected", {"healthy": True}, "ready", "healthy"),
        ({"lifecycle": None}, "connected", {"healthy": True}, "created", "healthy"),
        ({"health_reason": "of before"}, "connected", {"healthy": True}, "ready", "healthy"),
        (
            {"healthy": None, "lifecycle": None, "health_reason": "agent has not yet connected"},
            "connecting",
            {"healthy": False, "reason": "agent has not yet connected"},
            "created",
            "initializing",
        ),
        (
            {"healthy": False, "health_reason": "agent has lost connection"},
            "disconnected",
            {"healthy": False, "reason": "agent has lost connection"},
            "ready",
            "unhealthy",
        ),
        (
            {"healthy": False, "health_reason": "agent is not running"},
            "disconnected",
            {"healthy": False, "reason": "agent is not running"},
            "ready",
            "unhealthy",
        ),
        (
            {"healthy": False, "health_reason": "a script failed"},
            "connected",
            {"healthy": False, "reason": "a script failed"},
            "ready",
            "unhealthy",
        ),
        ({"healthy": False}, "connected", {"healthy": False}, "ready", "unhealthy"),
        (
            {"is_latest": False},
            "disconnected",
            {"healthy": False, "reason": "agent is not running"},
            "off",
            "unhealthy",
        ),
    ],
)
def test_how_well_an_agent_is(
    fields: dict[str, Any], status: str, health: dict[str, Any], lifecycle: str, app: str
) -> None:
    """Of an earlier build it is off; of the latest one its health says why it is not well, if that is known."""
    (resource,) = resources.resources_json(row(**fields), None)
    (agent,) = resource["agents"]
    assert (agent["status"], agent["health"], agent["lifecycle_state"]) == (status, health, lifecycle)
    assert agent["apps"][0]["health"] == app


def test_a_build_without_an_agent_has_no_resources() -> None:
    """None was started yet, or none is."""
    assert resources.resources_json(row(agent_id=None), None) == []
    assert resources.latest_status(row(agent_id=None, current_state=state("idle"))) is None


def state(name: str) -> str:
    """Return the current state of an app as it is stored."""
    fields = {"timestamp": "2026-11-27T10:02:00.000000Z", "state": name, "message": "Done.", "uri": "https://pr/1"}
    return orjson.dumps(fields).decode()


@pytest.mark.parametrize(
    ("reported", "shown", "attention"),
    [("idle", "idle", True), ("working", "working", False), ("failed", "failure", False)],
)
def test_the_status_of_an_app(reported: str, shown: str, *, attention: bool) -> None:
    """In Coder's words; an idle one waits for a person."""
    current = row(current_state=state(reported))
    expected = {
        "id": str(uuid5(APP, "2026-11-27T10:02:00.000000Z")),
        "created_at": "2026-11-27T10:02:00.000000Z",
        "workspace_id": str(WORKSPACE),
        "agent_id": str(AGENT),
        "app_id": str(APP),
        "state": shown,
        "needs_user_attention": attention,
        "message": "Done.",
        "uri": "https://pr/1",
        "icon": "",
    }
    assert resources.latest_status(current) == expected
    (resource,) = resources.resources_json(current, None)
    (app,) = resource["agents"][0]["apps"]
    assert app["statuses"] == [expected]
    assert (app["id"], app["slug"], app["display_name"], app["icon"]) == (str(APP), "ccw", "Claude", "/icon.svg")
    assert resources.latest_status(row(current_state=state(reported), is_latest=False)) is None
    without = resources.latest_status(row(current_state=state(reported), workspace_id=None, app_id=None))
    assert without is not None
    assert (without["workspace_id"], without["app_id"]) == (str(TASK), str(uuid5(AGENT, "app")))


def test_all_that_an_app_has_reported_is_shown_if_it_was_read() -> None:
    """Also nothing; an app of an earlier build has an id of its own, and one without a name the usual one."""
    reported = cast("Row", {"occurred_at": MADE, "state": "working", "message": "Reading", "uri": ""})
    earlier = row(is_latest=False, app_slug="", template_display_name="", current_state=state("idle"))
    (resource,) = resources.resources_json(earlier, [reported])
    (app,) = resource["agents"][0]["apps"]
    own = str(uuid5(AGENT, "app"))
    assert (app["id"], app["slug"], app["display_name"], app["health"]) == (own, "agent", "claude", "unhealthy")
    (shown,) = app["statuses"]
    assert (shown["state"], shown["message"], shown["uri"]) == ("working", "Reading", "")
    assert (shown["created_at"], shown["app_id"]) == ("2026-11-27T10:00:00.000000Z", own)
    (resource,) = resources.resources_json(row(current_state=state("idle")), [])
    assert resource["agents"][0]["apps"][0]["statuses"] == []


def test_a_resource_is_of_its_build() -> None:
    """Its id is derived from that of the build, so it is the same each time."""
    (resource,) = resources.resources_json(row(), None)
    assert {name: value for name, value in resource.items() if name != "agents"} == {
        "id": str(uuid5(BUILD, "resource")),
        "created_at": "2026-11-27T10:00:00.000000Z",
        "job_id": str(BUILD),
        "workspace_transition": "start",
        "type": "taskherd_workspace",
        "name": "workspace",
        "hide": False,
        "icon": "",
        "metadata": [],
        "daily_cost": 0,
    }
    (agent,) = resource["agents"]
    (app,) = agent["apps"]
    assert {name: value for name, value in agent.items() if name != "apps"} == {
        "id": str(AGENT),
        "parent_id": None,
        "created_at": "2026-11-27T10:00:00.000000Z",
        "updated_at": "2026-11-27T10:01:00.000000Z",
        "status": "connected",
        "lifecycle_state": "ready",
        "name": "main",
        "resource_id": resource["id"],
        "architecture": "",
        "operating_system": "",
        "environment_variables": {},
        "logs_length": 0,
        "logs_overflowed": False,
        "version": "",
        "api_version": "",
        "connection_timeout_seconds": 0,
        "troubleshooting_url": "",
        "subsystems": [],
        "health": {"healthy": True},
        "display_apps": [],
        "log_sources": [],
        "scripts": [],
        "startup_script_behavior": "non-blocking",
    }
    assert app == {
        "id": str(APP),
        "url": "",
        "external": False,
        "slug": "ccw",
        "display_name": "Claude",
        "icon": "/icon.svg",
        "subdomain": False,
        "sharing_level": "owner",
        "healthcheck": {"url": "", "interval": 0, "threshold": 0},
        "health": "healthy",
        "hidden": False,
        "open_in": "slim-window",
        "statuses": [],
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"healthy": True, "failing_agents": []}),
        ({"healthy": False}, {"healthy": False, "failing_agents": [AGENT]}),
        ({"healthy": None}, {"healthy": False, "failing_agents": [AGENT]}),
        ({"agent_id": None, "healthy": None}, {"healthy": True, "failing_agents": []}),
    ],
)
def test_a_workspace_is_as_well_as_its_agent(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """One without an agent is well."""
    assert queries.workspace_json(row(**fields))["health"] == expected


def test_a_workspace_is_of_its_task() -> None:
    """Until a runner has named it, it has the id of the task, also in its build; it knows whether it is outdated."""
    shown = queries.workspace_json(row(workspace_id=None))
    assert shown["id"] == shown["latest_build"]["workspace_id"] == shown["task_id"] == TASK
    assert (shown["created_at"], shown["updated_at"]) == ("2026-11-27T09:55:00.000000Z", "2026-11-27T10:09:00.000000Z")
    assert shown["last_used_at"] == shown["updated_at"]
    assert (shown["outdated"], queries.workspace_json(row(active_version_id=VERSION))["outdated"]) == (True, False)
    assert queries.workspace_json(row())["id"] == WORKSPACE
    assert shown["latest_app_status"] is None
    statuses = [cast("Row", {"occurred_at": MADE, "state": "working", "message": "m", "uri": ""})] * 2
    (resource,) = queries.workspace_json(row(), statuses)["latest_build"]["resources"]
    assert len(resource["agents"][0]["apps"][0]["statuses"]) == 2


@pytest.mark.parametrize(
    ("status", "error", "level", "stage", "output"),
    [
        ("pending", "", "info", "Waiting for a runner", "The build was requested."),
        ("running", "no disk", "info", "Starting workspace", "The workspace is running."),
        ("deleted", "", "info", "Deleting workspace", "The workspace is deleted."),
        ("failed", "no disk", "error", "Failed", "no disk"),
        ("failed", "", "error", "Failed", "The build failed."),
        ("odd", "", "info", "odd", "odd"),
    ],
)
def test_a_step_of_a_build(status: str, error: str, level: str, stage: str, output: str) -> None:
    """In words; one of another release in its own."""
    step = cast("Row", {"workspace_status": status, "version": 7, "occurred_at": MADE})
    assert logs.BUILD.entry(row(error=error), step) == {
        "id": 7,
        "created_at": "2026-11-27T10:00:00.000000Z",
        "log_source": "provisioner",
        "log_level": level,
        "stage": stage,
        "output": output,
    }


@pytest.mark.parametrize(
    ("lifecycle", "healthy", "reason", "level", "output"),
    [
        (None, None, None, "info", "Agent is not started yet."),
        ("created", False, "agent has not yet connected", "info", "Agent is created (agent has not yet connected)."),
        ("start_error", True, "", "info", "Agent is start error."),
        ("ready", False, "agent has lost connection", "error", "Agent is ready (agent has lost connection)."),
        ("ready", None, None, "info", "Agent is ready."),
    ],
)
def test_a_step_of_an_agent(
    lifecycle: str | None, reason: str | None, level: str, output: str, *, healthy: bool | None
) -> None:
    """It is an error while the agent is not well, unless it has only just been made."""
    fields = {"lifecycle": lifecycle, "healthy": healthy, "reason": reason, "version": 8, "occurred_at": MADE}
    assert logs.AGENT.entry(row(), cast("Row", fields)) == {
        "id": 8,
        "created_at": "2026-11-27T10:00:00.000000Z",
        "output": output,
        "level": level,
        "source_id": str(AGENT),
    }


@pytest.mark.parametrize(
    ("fields", "build", "agent"),
    [
        ({"job_status": "pending"}, False, False),
        ({"job_status": "running"}, False, False),
        ({"job_status": "canceling"}, False, False),
        ({"job_status": "succeeded"}, True, False),
        ({"job_status": "succeeded", "is_latest": False}, True, True),
        ({"job_status": "running", "is_latest": False}, False, True),
        ({"job_status": "failed"}, True, True),
        ({"job_status": "canceled"}, True, True),
        ({"job_status": "unknown"}, True, False),
    ],
)
def test_when_a_log_is_complete(fields: dict[str, Any], *, build: bool, agent: bool) -> None:
    """That of a build with its job, that of an agent with a later build or if it was not started."""
    assert (logs.BUILD.complete(row(**fields)), logs.AGENT.complete(row(**fields))) == (build, agent)
