"""Say what is wrong with the RabbitMQ of a test run, once a test has failed: without it, all later tests fail alike."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psutil

from taskherd.broker import diagnostics
from taskherd.dev.rabbitmq import RabbitNode
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from taskherd.dev.services import Services

_LINES: Final = 6
"""How many lines of the node's log are shown."""
_EVERYDAY: Final = ("[info]", "[debug]", "unexpectedly closed")
_OUTPUT: Final = "server.out"


def problem(services: Services) -> str | None:
    """Return in one line why no client can connect to the RabbitMQ, with what is known of its node; None if one can.

    The caller may run an event loop.
    """
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(asyncio.run, _refusal(services.amqp_url)).result()
    if reason is None:
        return None
    port = urlsplit(services.amqp_url).port
    facts = [f"the RabbitMQ of this run takes no client: {reason}", f"port {port} is that of {_listener(port)}"]
    if isinstance(services.rabbit, RabbitNode):
        facts += [f"its own process is {services.rabbit.pid}", *_last_lines(services.rabbit.home)]
    return " | ".join(facts)


async def _refusal(url: str) -> str | None:
    try:
        async with diagnostics.connect(url):
            return None
    except Unavailable as error:
        return str(error)


def _listener(port: int | None) -> str:
    """Return which process listens on a port, with the folder of its node."""
    listeners = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    for pid in (each.pid for each in listeners if each.pid and each.laddr and each.laddr.port == port):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            return f"process {pid} ({process.name()} in {process.cwd()})"
    return "no process"


def _last_lines(home: Path) -> list[str]:
    """Return the last lines of the node's log that are not about its everyday work, then those of its output."""
    lines = [line for file in sorted((home / "log").glob("*.log")) for line in _lines(file)]
    return [line for line in lines if not any(word in line for word in _EVERYDAY)][-_LINES:] + _lines(home / _OUTPUT)[
        -2:
    ]


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(errors="replace").splitlines() if line.strip()] if file.exists() else []
