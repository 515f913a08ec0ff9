"""``docker compose up``: the whole system, from an empty machine to a task with a running agent."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.docker import BUILD_WITHIN, ROOT, docker
from tests.harness.chaos import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_WITHIN)]
CLAUDE = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a31"
ANSWERS = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a32"
PROCESSES = ("worker", "api", "runner")
"""The processes to start; compose also starts the services they depend on."""

AGENT = """
        run:
          command: [sh, -c, 'echo "The prompt is: $TASKHERD_PROMPT"; exec sleep 600']
          idle_after: 1s
"""
"""The ``run`` of the example template in this test: an agent that needs only a shell."""


class Project:
    """A compose project in a copy of deploy/, with its own secrets."""

    def __init__(self, folder: Path) -> None:
        self._name = f"taskherd-test-{uuid.uuid4().hex[:8]}"
        self._deploy = folder / "deploy"
        shutil.copytree(ROOT / "deploy", self._deploy, ignore=shutil.ignore_patterns("secrets"))
        shutil.copy(ROOT / "tests" / "deploy" / "compose.yaml", self._deploy / "compose.test.yaml")

    async def __call__(self, *arguments: str, within: float = 120.0) -> str:
        """Run a docker compose command."""
        files = ("-f", str(self._deploy / "compose.yaml"), "-f", str(self._deploy / "compose.test.yaml"))
        return await docker("compose", "-p", self._name, *files, *arguments, within=within, cwd=self._deploy)

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

    directory = (
        (ROOT / "deploy" / "example-directory.yaml").read_text().replace("        run: {}\n", AGENT.lstrip("\n"))
    )
    load = f"cat > /tmp/d.yaml <<'X'\n{directory}\nX\ntaskherd directory apply /tmp/d.yaml"
    await project("run", "--rm", "-T", "--no-deps", "-v", "/tmp", "--entrypoint", "sh", "worker", "-c", load)  # noqa: S108 - a volume of the container
    token = (await project("exec", "-T", "worker", "taskherd", "token", "create", "--user", "alice")).splitlines()[-1]
    address = await project("port", "api", "7080")
    async with httpx.AsyncClient(
        base_url=f"http://{address}/api/v2", headers={"Coder-Session-Token": token}, timeout=30
    ) as client:
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
    for name in ("postgres_password", "rabbitmq_password", "secret_key"):
        assert project.secret(name) not in findings + config


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
    assert sources == {"amqp_url"}, "agents run as the runner's user and can read its secrets"
