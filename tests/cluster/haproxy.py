"""HAProxy in front of RabbitMQ, with the settings of deploy/."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from taskherd.dev import ports, processes
from tests.harness.programs import find_program

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "cluster" / "haproxy.cfg"
_SECTION: Final = "listen rabbitmq"


def configuration(port: int, addresses: list[str]) -> str:
    """Return the recommended settings for RabbitMQ, with this port of the loopback address and these servers."""
    recommended = CONFIGURATION.read_text()
    defaults = recommended.partition("\nresolvers docker\n")[0].removesuffix(" resolvers docker") + "\n"
    assert defaults.endswith(" init-addr none\n"), defaults
    section = recommended.partition(_SECTION)[2]
    assert "check" in section, f"{CONFIGURATION} has no section for RabbitMQ"
    section = section.replace("bind :5672", f"bind {ports.HOST}:{port}")
    for name, address in zip(("rabbitmq", "rabbitmq2", "rabbitmq3"), addresses, strict=True):
        section, replaced = re.subn(rf"server {name} \S+", f"server {name} {address}", section)
        assert replaced == 1, name
    return f"{defaults}{_SECTION}{section}"


@contextmanager
def running_haproxy(folder: Path, addresses: list[str], announce: Callable[[str], None]) -> Iterator[str]:
    """Run HAProxy in front of these servers until the end of the block, and yield its address."""
    program = find_program("haproxy", "haproxy", announce)
    folder.mkdir(parents=True)
    (port,) = ports.find_free([None])
    (folder / "haproxy.cfg").write_text(configuration(port, addresses))
    log = folder / "haproxy.log"
    process = processes.spawn([program, "-db", "-f", "haproxy.cfg"], home=folder, env=dict(os.environ), log=log)
    try:
        processes.await_ready(process, lambda: ports.is_open(port), what="HAProxy", log=log, within=30)
        yield f"{ports.HOST}:{port}"
    finally:
        processes.kill(process)
