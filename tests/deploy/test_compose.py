"""`docker compose up`: the whole system, from nothing to a task that is told of."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deploy.docker import BUILD_WITHIN, ROOT, docker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_WITHIN)]
PROCESSES = ("worker",)
"""What is started beside the services that it depends on."""

TALK = """
import asyncio, json, os, pathlib, uuid
import aio_pika
ALICE = "0b9e4a52-3f7d-4e0c-8a44-7d1f2c3b5a11"
CLAUDE = "7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a31"
async def main():
    url = pathlib.Path(os.environ["TASKHERD_AMQP_URL_FILE"]).read_text().strip()
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        replies = await channel.declare_queue(exclusive=True)
        command, task = str(uuid.uuid4()), str(uuid.uuid4())
        create = {"type": "task.create", "command_id": command, "task_id": task, "actor_id": ALICE,
                  "owner_id": ALICE, "template_version_id": CLAUDE, "input": "Say hello"}
        message = aio_pika.Message(json.dumps(create).encode(), reply_to=replies.name, correlation_id="1")
        commands = await channel.get_exchange("taskherd.commands", ensure=False)
        await commands.publish(message, "task.create", timeout=10)
        async with replies.iterator(no_ack=True, timeout=20) as answers:
            async for answer in answers:
                print(answer.body.decode())
                return
asyncio.run(main())
"""


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
    """From nothing: services, migration, processes, all healthy; a create is answered; secrets are only in files."""
    await project("up", "-d", "--no-build", "--wait", "--wait-timeout", "240", *PROCESSES, within=300)
    states = await project("ps", "-a", "--format", "{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}")
    lines = dict(line.split(" ", 1) for line in states.splitlines())
    assert lines["migrate"].split() == ["exited", "0"]
    assert all(lines[service].startswith("running healthy") for service in ("rabbitmq", "postgres", *PROCESSES))

    directory = (ROOT / "deploy" / "example-directory.yaml").read_text()
    load = f"cat > /tmp/d.yaml <<'X'\n{directory}\nX\ntaskherd directory apply /tmp/d.yaml"
    await project("run", "--rm", "-T", "--no-deps", "-v", "/tmp", "--entrypoint", "sh", "worker", "-c", load)  # noqa: S108 - a volume of the container
    said = await project("exec", "-T", "worker", "python", "-c", TALK)
    assert '"ok":true' in said.replace(" ", "")

    told = await project("exec", "-T", "worker", "taskherd", "doctor")
    config = await project("exec", "-T", "worker", "sh", "-c", "taskherd config; cat /proc/1/environ")
    for name in ("postgres_password", "rabbitmq_password", "secret_key"):
        assert project.secret(name) not in told + config


async def test_the_file_is_valid_with_every_profile(project: Project) -> None:
    """Compose accepts the file with monitoring, and keeps broker and database off the machine's ports."""
    shown = json.loads(await project("--profile", "monitoring", "config", "--format", "json"))
    services = shown["services"]
    assert {"migrate", "worker", "api", "runner", "prometheus", "grafana"} <= services.keys()
    published = {name for name, service in services.items() if service.get("ports")}
    assert published <= {"api", "prometheus", "grafana"}
