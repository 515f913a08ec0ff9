"""The machine and the versions of the measurement, without the machine's name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.harness.services import connected

if TYPE_CHECKING:
    from benchmarks.harness.services import BenchmarkServices

_LIBRARIES = (
    "aio-pika", "aiormq", "pamqp", "asyncpg", "SQLAlchemy", "pydantic", "orjson", "uvloop", "uvicorn", "starlette",
    "faststream", "fastapi",
)  # fmt: skip


async def describe(services: BenchmarkServices) -> list[str]:
    """Return lines about processor, memory, services and libraries."""
    async with connected(services.admin_url) as connection:
        settings = [
            f"{name} {await connection.fetchval(f'SHOW {name}')}"
            for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        ]
    memory, kernel = psutil.virtual_memory().total / 2**30, platform.release().split("-")[0]
    return [
        f"- {len(os.sched_getaffinity(0))} cores of {_processor()}, {memory:.0f} GiB of memory",
        f"- {platform.system()} {kernel}",
        f"- load average before the run: {os.getloadavg()[0]:.1f}",
        f"- Python {platform.python_version()}; {', '.join(f'{name} {version(name)}' for name in _LIBRARIES)}",
        f"- PostgreSQL {', '.join(settings).removeprefix('server_version ')}",
        f"- RabbitMQ {await _rabbitmq(services)}, quorum queues; broker, database and contenders all on this machine",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


async def _rabbitmq(services: BenchmarkServices) -> str:
    import aiormq  # noqa: PLC0415 - only for the one question

    connection = await aiormq.connect(services.amqp_url)
    try:
        return str(connection.server_properties.get("version"))
    finally:
        await connection.close()
