"""`docker compose up`: the whole system, from nothing to a task that an agent works on."""

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
"""What is started beside the services that it depends on."""

AGENT = """
        run:
          command: [sh, -c, 'echo "I was told: $TASKHERD_PROMPT"; exec sleep 600']
          idle_after: 1s
"""
"""What the example's template runs here: an agent that every image has."""


class Project:
    """One compose project, in a copy of deploy/ with secrets of its own."""

    def __init__(self, folder: Path) -> None:
        self._name = f"taskherd-test-{uuid.uuid4().hex[:8]}"
        self._deploy = folder / "deploy"
        shutil.copytree(ROOT / "deploy", self._deploy, ignore=shutil.ignore_patterns("secrets"))
        shutil.copy(ROOT / "tests" / "deploy" / "compose.yaml", self._deploy / "compose.test.yaml")

    async def __call__(self, *words: str, within: float = 120.0) -> str:
        """Run a docker compose command."""
        files = ("-f", str(self._deploy / "compose.yaml"), "-f", str(self._deploy / "compose.test.yaml"))
        return await docker("compose", "-p", self._name, *files, *words, within=within, cwd=self._deploy)

    def secret(self, name: str) -> str:
        """What a secret's file holds."""
        return (self._deploy / "compose" / "secrets" / name).read_text().strip()


@pytest.fixture
async def project(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Project]:
    """A project with secrets; its containers, networks and volumes do not outlive the test."""
    own = Project(tmp_path)
    script = tmp_path / "deploy" / "compose" / "secrets.sh"
    for _ in range(2):
        assert os.system(f"sh {script}") == 0  # noqa: S605 - the command that people are told to run
    monkeypatch.setenv("TASKHERD_IMAGE", image)
    monkeypatch.setenv("TEST_POSTGRES_PASSWORD", own.secret("postgres_password"))
    yield own
    await own("down", "--volumes", "--timeout", "30", within=180)


async def test_the_whole_system_comes_up_and_takes_a_task(project: Project) -> None:
    """From nothing to agents' words over HTTP: all are healthy, tasks run and answer; secrets are only in files."""
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
        made = (await client.post("/tasks/me", json={"template_version_id": CLAUDE, "input": "Say hello"})).json()
        one = f"/tasks/me/{made['id']}"
        task = await until(lambda: _json(client, one), lambda task: task["status"] == "active", 60)
        assert [each["id"] for each in (await _json(client, "/tasks"))["tasks"]] == [task["id"]]
        await until(lambda: client.get(f"{one}/logs"), lambda logs: "I was told: Say hello" in logs.text, 60)
        assert (await client.delete(one)).status_code == 202
        await until(lambda: client.get(one), lambda answer: answer.status_code == 404, 60)

        made = (await client.post("/tasks/me", json={"template_version_id": ANSWERS, "input": "How large?"})).json()
        one = f"/tasks/me/{made['id']}"
        await until(lambda: _json(client, one), lambda task: (task["current_state"] or {}).get("state") == "idle", 60)
        assert (await client.post(f"{one}/send", json={"input": "domain"})).status_code == 204
        await until(lambda: client.get(f"{one}/logs"), lambda logs: '"domain: ' in logs.text, 60)

    told = await project("exec", "-T", "worker", "taskherd", "doctor")
    config = await project("exec", "-T", "worker", "sh", "-c", "taskherd config; cat /proc/1/environ")
    for name in ("postgres_password", "rabbitmq_password", "secret_key"):
        assert project.secret(name) not in told + config


async def _json(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(path)).raise_for_status().json()
    return answer


async def test_the_file_is_valid_with_every_profile(project: Project) -> None:
    """Compose accepts the file with monitoring, and keeps broker and database off the machine's ports."""
    shown = json.loads(await project("--profile", "monitoring", "config", "--format", "json"))
    services = shown["services"]
    assert {"migrate", "worker", "api", "runner", "prometheus", "grafana"} <= services.keys()
    published = {name for name, service in services.items() if service.get("ports")}
    assert published <= {"api", "prometheus", "grafana"}
    given = {secret["source"] for secret in services["runner"]["secrets"]}
    assert given == {"amqp_url"}, "agents run as the runner's user and can read what it is given"
