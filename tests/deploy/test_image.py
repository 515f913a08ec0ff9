"""The container image, run as it is meant to be: without root, capabilities, or a disk to write to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from taskherd.dev import ports
from tests.deploy.docker import BUILD_WITHIN, docker, inspect
from tests.harness.chaos import until
from tests.harness.worker import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_WITHIN)]
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host")


@pytest.fixture
def given(database_url: str, amqp_url: str, amqp_prefix: str) -> list[str]:
    """The options that give a container its settings."""
    settings = {
        "DATABASE_URL": database_url,
        "AMQP_URL": amqp_url,
        "AMQP_PREFIX": amqp_prefix,
        "SECRET_KEY": SECRET,
        "OPS_PORT": str(ports.claim([None])[0]),
    }
    return [word for name, value in settings.items() for word in ("-e", f"TASKHERD_{name}={value}")]


@pytest.fixture
async def container() -> AsyncIterator[str]:
    """The name of a container that does not outlive the test."""
    name = f"taskherd-test-{uuid.uuid4().hex[:8]}"
    yield name
    with suppress(AssertionError):
        await docker("rm", "-f", "-v", name)


@pytest.mark.parametrize("process", ["worker", "api", "runner"])
async def test_a_process_in_a_container_gets_healthy_and_leaves_cleanly(
    image: str, given: list[str], container: str, process: str
) -> None:
    """Read-only, without capabilities and root it gets healthy and ready, writes nothing, and ends with 0 on stop."""
    await docker("run", "--rm", *HARDENED, *given, image, "topology", "apply")
    if process == "runner":  # the folder of its tasks is the one place that it writes to
        given = [*given, "-v", "/var/lib/taskherd", "--tmpfs", "/tmp", "-e", "TASKHERD_RUNNER_NAME=r1"]  # noqa: S108
    await docker("run", "-d", "--name", container, *HARDENED, "--health-interval", "1s", *given, image, process)

    def healthy(seen: dict[str, Any]) -> bool:
        assert seen["State"]["Running"], seen["State"]
        return bool(seen["State"]["Health"]["Status"] == "healthy")

    seen = await until(lambda: inspect(container), healthy, 60)
    assert seen["Config"]["User"] == "10001:10001"
    ask = ("exec", container, "python", "-m", "taskherd.observability.health", "--ready")
    await until(lambda: _answer(*ask), lambda said: '"ready": true' in said, 30)
    assert (await docker("exec", container, "cat", "/proc/1/cmdline")).split("\0")[1:3] == [
        "/opt/taskherd/bin/taskherd",
        process,
    ]
    assert await docker("diff", container) == ""
    await docker("stop", "-t", "30", container)
    assert (await inspect(container))["State"]["ExitCode"] == 0
    assert f"{process} ended" in await docker("logs", container)


async def test_the_health_check_tells_a_process_that_does_not_answer(image: str, container: str) -> None:
    """Where nothing listens the check fails and says so."""
    said = await docker(
        "run", "--name", container, *HARDENED, "-e", f"TASKHERD_OPS_PORT={ports.claim([None])[0]}",
        "--entrypoint", "python", image, "-m", "taskherd.observability.health",
        fails=True,
    )  # fmt: skip
    assert "no answer on port" in said


@pytest.mark.parametrize("words", [["db", "upgrade"], ["db", "check"], ["topology", "apply"]], ids=" ".join)
async def test_the_image_is_the_migration_job_too(
    image: str, given: list[str], container: str, words: list[str]
) -> None:
    """The same image migrates, checks and declares."""
    await docker("run", "--name", container, *HARDENED, *given, image, *words)


async def test_nothing_to_build_with_is_in_the_image(image: str, container: str) -> None:
    """No compiler, git or make, and neither pip nor a build backend beside the dependencies."""
    look = "for tool in gcc cc make git; do command -v $tool; done; ls /opt/taskherd/bin /opt/taskherd/lib/*/*"
    found = (await docker("run", "--name", container, *HARDENED, "--entrypoint", "sh", image, "-c", look)).split()
    assert "taskherd" in found
    assert not {"/usr/bin/gcc", "/usr/bin/cc", "/usr/bin/make", "/usr/bin/git", "pip", "hatchling", "setuptools"} & set(
        found
    )


async def _answer(*words: str) -> str:
    try:
        return await docker(*words)
    except AssertionError as error:
        return str(error)
