"""HAProxy in front of one of the clusters, with the settings of deploy/."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from taskherd.dev import ports, processes
from tests.harness.programs import find_program

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "cluster" / "haproxy.cfg"
LEADER: Final = "leader"
"""The section that leads to the leader of PostgreSQL."""
RABBITMQ: Final = "rabbitmq"


class Server(NamedTuple):
    """The address of a server, and the port that is asked for its health if that is another one."""

    address: str
    check_port: int | None = None


def configuration(section: str, port: int, servers: Sequence[Server]) -> str:
    """Return the recommended settings of a section, with this port of the loopback address and these servers."""
    recommended = CONFIGURATION.read_text()
    defaults = recommended.partition("\nresolvers docker\n")[0].removesuffix(" resolvers docker") + "\n"
    assert defaults.endswith(" init-addr none\n"), defaults
    text = recommended.partition(f"\nlisten {section}\n")[2].partition("\nlisten ")[0]
    text, binds = re.subn(r"bind :\d+", f"bind {ports.HOST}:{port}", text)
    names = re.findall(r"server (\S+) \S+ check", text)
    assert binds == 1
    for name, server in zip(names, servers, strict=True):
        text = re.sub(rf"server {name} \S+ check", f"server {name} {server.address} check", text)
        if server.check_port is not None:
            text, replaced = re.subn(rf"(server {name} \S+ check port) \d+", rf"\g<1> {server.check_port}", text)
            assert replaced == 1, name
    return f"{defaults}listen {section}\n{text}\n"


@contextmanager
def running_haproxy(
    folder: Path, section: str, servers: Sequence[Server], announce: Callable[[str], None]
) -> Iterator[str]:
    """Run HAProxy in front of these servers until the end of the block, and yield its address."""
    program = find_program("haproxy", "haproxy", announce)
    folder.mkdir(parents=True)
    (port,) = ports.find_free([None])
    (folder / "haproxy.cfg").write_text(configuration(section, port, servers))
    log = folder / "haproxy.log"
    process = processes.spawn([program, "-db", "-f", "haproxy.cfg"], home=folder, env=dict(os.environ), log=log)
    try:
        processes.await_ready(process, lambda: processes.listens(process.pid, port), what="HAProxy", log=log, within=30)
        yield f"{ports.HOST}:{port}"
    finally:
        processes.kill(process)
