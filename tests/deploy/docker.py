"""Run Docker commands, and find out what this machine supports."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from taskherd.dev import containers, docker_engine

ROOT = Path(__file__).parents[2]
BASE = "python:3.13-slim"
BUILD_WITHIN = 900.0
"""Maximum duration of a build of the image, in seconds."""
PULL_WITHIN = 300.0
"""Maximum duration of a pull, in seconds."""


@cache
def missing() -> str:
    """Return why no image can be built on this machine, or "" if it can."""
    no_docker = docker_engine.missing()
    if no_docker is not None:
        return no_docker.reason
    if shutil.which("docker") is None:
        return "a Docker engine, but no docker command"
    if not _has_image(BASE) and not _pull(BASE):
        return f"the image {BASE} is missing and cannot be pulled"
    return ""


@cache
def has_services() -> bool:
    """Return whether the images of RabbitMQ and PostgreSQL exist, so that compose can start them."""
    return not missing() and all(_has_image(image) for image in (containers.RABBITMQ_IMAGE, containers.POSTGRES_IMAGE))


def _pull(image: str) -> bool:
    return (
        subprocess.run(
            ["docker", "pull", "-q", image], capture_output=True, timeout=PULL_WITHIN, check=False
        ).returncode
        == 0
    )


def _has_image(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


async def docker(
    *arguments: str, within: float = 60.0, cwd: Path = ROOT, fails: bool = False, stdin: bytes | None = None
) -> str:
    """Run a docker command and return its output; it must succeed, or fail if ``fails`` is set."""
    process = await asyncio.create_subprocess_exec(
        "docker",
        *arguments,
        cwd=cwd,
        stdin=None if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(within):
        output, _ = await process.communicate(stdin)
    assert bool(process.returncode) == fails, f"docker {' '.join(arguments)}: {output.decode(errors='replace')[-4000:]}"
    return output.decode(errors="replace").strip()


async def inspect(container: str) -> dict[str, Any]:
    """Return the output of ``docker inspect`` for a container."""
    details: dict[str, Any] = json.loads(await docker("inspect", container))[0]
    return details
