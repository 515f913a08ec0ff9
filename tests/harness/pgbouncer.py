"""A private PgBouncer in front of a database, in any pool mode, which tests can reload and stop."""

from __future__ import annotations

import configparser
import os
import pwd
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg

from taskherd.dev import ports, processes
from tests.harness.programs import find_program

IGNORED = "ignore_startup_parameters"
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "cluster" / "pgbouncer.ini"
_OF_THE_MACHINE = frozenset({"listen_addr", "listen_port", "unix_socket_dir", "auth_type", "auth_file", "admin_users"})
_START_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """A running PgBouncer; ``address`` is the URL of the database behind it, without options."""

    address: str

    def url(self, **options: str) -> str:
        """Return the database's URL with these options in its query."""
        return urlunsplit(urlsplit(self.address)._replace(query=urlencode(options)))

    async def console(self, command: str) -> None:
        """Execute a command of PgBouncer's admin console, such as ``RECONNECT``."""
        connection = await asyncpg.connect(
            urlunsplit(urlsplit(self.address)._replace(path="/pgbouncer")), timeout=10, command_timeout=10
        )
        try:
            await connection.execute(command)
        finally:
            connection.terminate()


def recommended_settings() -> dict[str, str]:
    """Return the settings in ``deploy/cluster/pgbouncer.ini``, without those of its machine."""
    configuration = configparser.ConfigParser()
    configuration.read(CONFIGURATION)
    return {name: value for name, value in configuration["pgbouncer"].items() if name not in _OF_THE_MACHINE}


StartPgBouncer: TypeAlias = Callable[..., AbstractAsyncContextManager[PgBouncer]]
"""A function that runs a PgBouncer with the settings given as keyword arguments."""


@asynccontextmanager
async def running_pgbouncer(
    database_url: str, folder: Path, announce: Callable[[str], None], **settings: str
) -> AsyncIterator[PgBouncer]:
    """Run PgBouncer with these settings until the end of the block; it connects as the user in ``database_url``."""
    program = find_program("pgbouncer", "pgbouncer", announce)
    server = urlsplit(database_url)
    (port,) = ports.find_free([None])
    folder.mkdir(parents=True, exist_ok=True)
    users, configuration, log = folder / "users.txt", folder / "pgbouncer.ini", folder / "pgbouncer.log"
    users.write_text(f'"{server.username}" "{server.password}"\n')
    options = {
        "listen_addr": ports.HOST,
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(users),
        "admin_users": str(server.username),
        **settings,
    }
    lines = ["[databases]", f"* = host={server.hostname} port={server.port}", "[pgbouncer]"]
    configuration.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in options.items()), ""]))
    command: list[str | Path] = [program, configuration]
    if os.geteuid() == 0:  # PgBouncer refuses to run as root
        command = ["setpriv", "--reuid=nobody", f"--regid={pwd.getpwnam('nobody').pw_gid}", "--clear-groups"]
        command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--", program, configuration]
    process = processes.spawn(command, home=folder, env=dict(os.environ), log=log)
    try:
        processes.await_ready(
            process, lambda: processes.listens(process.pid, port), what="PgBouncer", log=log, within=_START_TIMEOUT
        )
        netloc = f"{server.username}:{server.password}@{ports.HOST}:{port}"
        yield PgBouncer(urlunsplit(server._replace(netloc=netloc, query="")))
    finally:
        processes.kill(process)
