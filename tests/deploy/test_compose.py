"""``docker compose up``: the whole system, from an empty machine to a task with a running agent."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.docker import BUILD_WITHIN, ROOT, docker
from tests.harness.chaos import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_WITHIN)]
CLAUDE = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a31"
ANSWERS = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a32"
PROCESSES = ("worker", "api", "runner")
"""The processes to start; compose also starts the services they depend on."""

AGENT = {"command": ["sh", "-c", 'echo "The prompt is: $TASKHERD_PROMPT"; exec sleep 600'], "idle_after": "1s"}
"""The ``run`` of the example template in this test: an agent that needs only a shell."""
AGENTS = 10
WORKING_AGENT = {
    "command": [
        "sh",
        "-c",
        'echo >> runs; echo "::taskherd state=working message=run $(wc -l < runs)"; exec sleep 600',
    ]
}
"""An agent that is at work for the whole test, and counts how often it was started."""


class Project:
    """A compose project in a copy of deploy/, with its own secrets."""

    def __init__(self, folder: Path) -> None:
        self._name = f"taskherd-test-{uuid.uuid4().hex[:8]}"
        self._deploy = folder / "deploy"
        shutil.copytree(ROOT / "deploy", self._deploy, ignore=shutil.ignore_patterns("secrets"))
        shutil.copy(ROOT / "tests" / "deploy" / "compose.yaml", self._deploy / "compose.test.yaml")

    async def __call__(self, *arguments: str, within: float = 120.0, stdin: bytes | None = None) -> str:
        """Run a docker compose command."""
        files = ("-f", str(self._deploy / "compose.yaml"), "-f", str(self._deploy / "compose.test.yaml"))
        command = ("compose", "-p", self._name, *files, *arguments)
        return await docker(*command, within=within, cwd=self._deploy, stdin=stdin)

    def secret(self, name: str) -> str:
        """Return the content of a secret's file."""
        return (self._deploy / "compose" / "secrets" / name).read_text().strip()


@pytest.fixture
async def project(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Project]:
    """Yield a project with secrets, whose containers, networks and volumes are removed after the test."""
    project = Project(tmp_path)
    script = tmp_path / "deploy" / "compose" / "secrets.sh"
    for _ in range(2):
        assert os.system(f"sh {script}") == 0  # noqa: S605 - the command in docs/operations.md
    monkeypatch.setenv("TASKHERD_IMAGE", image)
    monkeypatch.setenv("TEST_POSTGRES_PASSWORD", project.secret("postgres_password"))
    yield project
    await project("down", "--volumes", "--timeout", "30", within=180)


async def test_the_whole_system_starts_and_runs_a_task(project: Project) -> None:
    """All services become healthy, agents run and answer through the API, and secrets are in files only."""
    await project("up", "-d", "--no-build", "--wait", "--wait-timeout", "240", *PROCESSES, within=300)
    states = await project("ps", "-a", "--format", "{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}")
    lines = dict(line.split(" ", 1) for line in states.splitlines())
    assert lines["migrate"].split() == ["exited", "0"]
    assert all(lines[service].startswith("running healthy") for service in ("rabbitmq", "postgres", *PROCESSES))

    await load_directory(project, AGENT)
    async with connect(project) as client:
        created = (await client.post("/tasks/me", json={"template_version_id": CLAUDE, "input": "Say hello"})).json()
        path = f"/tasks/me/{created['id']}"
        task = await until(lambda: _json(client, path), lambda task: task["status"] == "active", 60)
        assert [each["id"] for each in (await _json(client, "/tasks"))["tasks"]] == [task["id"]]
        await until(lambda: client.get(f"{path}/logs"), lambda logs: "The prompt is: Say hello" in logs.text, 60)
        assert (await client.delete(path)).status_code == 202
        await until(lambda: client.get(path), lambda response: response.status_code == 404, 60)

        created = (await client.post("/tasks/me", json={"template_version_id": ANSWERS, "input": "How large?"})).json()
        path = f"/tasks/me/{created['id']}"
        await until(lambda: _json(client, path), lambda task: (task["current_state"] or {}).get("state") == "idle", 60)
        assert (await client.post(f"{path}/send", json={"input": "domain"})).status_code == 204
        await until(lambda: client.get(f"{path}/logs"), lambda logs: '"domain: ' in logs.text, 60)

    findings = await project("exec", "-T", "worker", "taskherd", "doctor")
    config = await project("exec", "-T", "worker", "sh", "-c", "taskherd config; cat /proc/1/environ")
    for name in ("postgres_password", "rabbitmq_password", "rabbitmq_worker_password", "secret_key"):
        assert project.secret(name) not in findings + config


async def load_directory(project: Project, run: dict[str, Any]) -> None:
    """Load the example directory with this ``run`` of its first template, as docs/operations.md says."""
    example = yaml.safe_load((ROOT / "deploy" / "example-directory.yaml").read_text())
    example["templates"][0]["versions"][0]["run"] = run
    command = ("exec", "-T", "worker", "taskherd", "directory", "apply", "-")
    await project(*command, stdin=yaml.safe_dump(example).encode())


@asynccontextmanager
async def connect(project: Project) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client of the project's API for alice."""
    token = (await project("exec", "-T", "worker", "taskherd", "token", "create", "--user", "alice")).splitlines()[-1]
    address = await project("port", "api", "7080")
    async with httpx.AsyncClient(
        base_url=f"http://{address}/api/v2", headers={"Coder-Session-Token": token}, timeout=30
    ) as client:
        yield client


async def test_agents_at_work_go_on_after_an_upgrade(
    project: Project, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new image of the runner, applied as documented, stops and restarts ten working agents; none ends in error."""
    await project("up", "-d", "--no-build", "--wait", "--wait-timeout", "240", *PROCESSES, within=300)
    await load_directory(project, WORKING_AGENT)
    async with connect(project) as client:
        for number in range(AGENTS):
            body = {"template_version_id": CLAUDE, "input": f"Count from {number}"}
            (await client.post("/tasks/me", json=body)).raise_for_status()
        await until(lambda: _states(client), lambda states: states == {("active", 1, "run 1"): AGENTS}, 120)
        before = await project("ps", "-q", "runner")

        upgraded = f"{image}-upgraded"
        await docker("build", "-q", "--label", "upgraded=yes", "-t", upgraded, ".", within=BUILD_WITHIN)
        monkeypatch.setenv("TASKHERD_RUNNER_IMAGE", upgraded)
        await project("up", "-d", "--no-build", "--no-deps", "--wait", "--wait-timeout", "120", "runner", within=180)
        assert await project("ps", "-q", "runner") != before
        await until(lambda: _states(client), lambda states: states == {("active", 3, "run 2"): AGENTS}, 120)

    query = "SELECT DISTINCT document ->> 'status' FROM task_events"
    password = f"PGPASSWORD={project.secret('postgres_password')}"
    psql = ("psql", "-h", "127.0.0.1", "-U", "taskherd", "-d", "taskherd", "-Atc", query)
    shown = await project("exec", "-T", "-e", password, "postgres", *psql)
    assert "active" in shown.split(), shown
    assert "error" not in shown.split(), shown


async def _states(client: httpx.AsyncClient) -> Counter[tuple[str, int, str]]:
    """Return how many tasks have each status, build number and message."""
    tasks = (await _json(client, "/tasks"))["tasks"]
    return Counter(
        (task["status"], task["workspace_build_number"], (task["current_state"] or {}).get("message", ""))
        for task in tasks
    )


async def _json(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get(path)).raise_for_status().json()
    return document


async def test_the_compose_file_is_valid_with_every_profile(project: Project) -> None:
    """Compose accepts the file with monitoring, and publishes no port of broker and database."""
    config = json.loads(await project("--profile", "monitoring", "config", "--format", "json"))
    services = config["services"]
    assert {"migrate", "worker", "api", "runner", "prometheus", "grafana"} <= services.keys()
    published = {name for name, service in services.items() if service.get("ports")}
    assert published <= {"api", "prometheus", "grafana"}
    sources = {secret["source"] for secret in services["runner"]["secrets"]}
    assert sources == {"runner_amqp_url"}
