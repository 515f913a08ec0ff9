"""Docker's command line, and what of it this machine can do."""

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
PULL_WITHIN = 300.0


@cache
def missing() -> str:
    """Why no image can be built here; empty where one can."""
    away = docker_engine.missing()
    if away is not None:
        return away.reason
    if shutil.which("docker") is None:
        return "an engine, but no docker command"
    if not _has(BASE) and not _pulled(BASE):
        return f"an engine, but {BASE} is not there and can't be pulled"
    return ""


@cache
def has_services() -> bool:
    """Whether the images of RabbitMQ and PostgreSQL are there, so that compose can start them."""
    return not missing() and all(_has(image) for image in (containers.RABBITMQ_IMAGE, containers.POSTGRES_IMAGE))


def _pulled(image: str) -> bool:
    return (
        subprocess.run(
            ["docker", "pull", "-q", image], capture_output=True, timeout=PULL_WITHIN, check=False
        ).returncode
        == 0
    )


def _has(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


async def docker(*words: str, within: float = 60.0, cwd: Path = ROOT, fails: bool = False) -> str:
    """Run a docker command and return what it printed; it must succeed, or fail if it `fails`."""
    process = await asyncio.create_subprocess_exec(
        "docker", *words, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(within):
        output, _ = await process.communicate()
    assert bool(process.returncode) == fails, f"docker {' '.join(words)}: {output.decode(errors='replace')[-4000:]}"
    return output.decode(errors="replace").strip()


async def inspect(container: str) -> dict[str, Any]:
    """Everything that the engine knows of a container."""
    found: dict[str, Any] = json.loads(await docker("inspect", container))[0]
    return found
