"""The container image, run as intended: without root, capabilities or a writable file system."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from taskherd.dev import ports
from tests.deploy.docker import BUILD_WITHIN, docker, inspect
from tests.harness.chaos import until
from tests.harness.worker import SECRET, WorkerHarness, worker_harness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_WITHIN)]
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host")


@pytest.fixture
def environment(database_url: str, amqp_url: str, amqp_prefix: str) -> list[str]:
    """Return Docker options that pass the settings to a container."""
    settings = {
        "DATABASE_URL": database_url,
        "AMQP_URL": amqp_url,
        "AMQP_PREFIX": amqp_prefix,
        "SECRET_KEY": SECRET,
        "OPS_PORT": str(ports.find_free([None])[0]),
    }
    return [word for name, value in settings.items() for word in ("-e", f"TASKHERD_{name}={value}")]


@pytest.fixture
async def container() -> AsyncIterator[str]:
    """Yield the name for a container, which is removed after the test."""
    name = f"taskherd-test-{uuid.uuid4().hex[:8]}"
    yield name
    with suppress(AssertionError):
        await docker("rm", "-f", "-v", name)


@pytest.fixture
async def worker(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Yield a worker on the same database and queues, which declares the queues of runners."""
    async with worker_harness(database_url, amqp_url, amqp_prefix) as harness:
        yield harness


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("process", ["worker", "api", "runner"])
async def test_a_process_becomes_healthy_and_exits_cleanly(
    image: str, environment: list[str], container: str, process: str
) -> None:
    """Read-only and unprivileged, it becomes healthy and ready, writes nothing, and exits with 0 on stop."""
    await docker("run", "--rm", *HARDENED, *environment, image, "topology", "apply")
    if process == "runner":  # it writes to the folder of its tasks only
        environment = [*environment, "-v", "/var/lib/taskherd", "--tmpfs", "/tmp", "-e", "TASKHERD_RUNNER_NAME=r1"]  # noqa: S108
    await docker("run", "-d", "--name", container, *HARDENED, "--health-interval", "1s", *environment, image, process)

    def is_healthy(details: dict[str, Any]) -> bool:
        assert details["State"]["Running"], details["State"]
        return bool(details["State"]["Health"]["Status"] == "healthy")

    details = await until(lambda: inspect(container), is_healthy, 60)
    assert details["Config"]["User"] == "10001:10001"
    query = ("exec", container, "python", "-m", "taskherd.observability.health", "--ready")
    await until(lambda: _output(*query), lambda output: '"ready": true' in output, 30)
    assert (await docker("exec", container, "cat", "/proc/1/cmdline")).split("\0")[1:3] == [
        "/opt/taskherd/bin/taskherd",
        process,
    ]
    assert await docker("diff", container) == ""
    await docker("stop", "-t", "30", container)
    assert (await inspect(container))["State"]["ExitCode"] == 0
    assert f"{process} stopped" in await docker("logs", container)


async def test_the_health_check_fails_if_no_process_answers(image: str, container: str) -> None:
    """If nothing listens on the port, the health check fails and says so."""
    output = await docker(
        "run", "--name", container, *HARDENED, "-e", f"TASKHERD_OPS_PORT={ports.find_free([None])[0]}",
        "--entrypoint", "python", image, "-m", "taskherd.observability.health",
        fails=True,
    )  # fmt: skip
    assert "no answer on port" in output


@pytest.mark.parametrize("command", [["db", "upgrade"], ["db", "check"], ["topology", "apply"]], ids=" ".join)
async def test_the_image_runs_the_setup_commands(
    image: str, environment: list[str], container: str, command: list[str]
) -> None:
    """The image also migrates and checks the schema and declares the topology."""
    await docker("run", "--name", container, *HARDENED, *environment, image, *command)


async def test_the_image_contains_no_build_tools(image: str, container: str) -> None:
    """The image has no compiler, git, make, pip or build backend."""
    script = "for tool in gcc cc make git; do command -v $tool; done; ls /opt/taskherd/bin /opt/taskherd/lib/*/*"
    found = (await docker("run", "--name", container, *HARDENED, "--entrypoint", "sh", image, "-c", script)).split()
    assert "taskherd" in found
    assert not {"/usr/bin/gcc", "/usr/bin/cc", "/usr/bin/make", "/usr/bin/git", "pip", "hatchling", "setuptools"} & set(
        found
    )


async def _output(*arguments: str) -> str:
    try:
        return await docker(*arguments)
    except AssertionError as error:
        return str(error)
