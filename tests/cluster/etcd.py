"""Members of etcd, in which the members of a PostgreSQL cluster find out who leads."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from taskherd.dev import ports, processes

COMPOSE: Final = Path(__file__).parents[2] / "deploy" / "compose.cluster.yaml"
"""Where the command line of etcd is."""


def compaction() -> list[str]:
    """Return the options with which the etcd of deploy/ forgets what its keys were."""
    return re.findall(r"--auto-compaction-\S+", COMPOSE.read_text())


class EtcdMember:
    """One member of etcd, with its data in ``home``."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home.absolute()
        self.port, self.peer_port, self.metrics_port = ports.find_free([None] * 3)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, program: str, members: Sequence[EtcdMember]) -> None:
        """Start it with its data, if it has any; ``members`` are all, which it has to know."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        command: list[str | Path] = [program, "--data-dir", self.home / "data", "--unsafe-no-fsync"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--name", self.name]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", ",".join(f"{each.name}={each.peer_url}" for each in members)]
        command += [*compaction(), "--listen-metrics-urls", f"http://{ports.HOST}:{self.metrics_port}"]
        self._process = processes.spawn(command, home=self.home, env=dict(os.environ), log=self._log)

    def until_serves(self) -> None:
        """Wait until it has joined the others."""
        assert self._process is not None
        listens = partial(processes.listens, self._process.pid, self.port)
        processes.await_ready(self._process, listens, what="etcd", log=self._log, within=60)

    async def status(self, client: httpx.AsyncClient) -> tuple[str, str]:
        """Return the id of this member, and that of the leader as far as it knows. Raise ``httpx.HTTPError``."""
        answer = (await client.post(f"{self.url}/v3/maintenance/status", json={})).raise_for_status().json()
        return answer["header"]["member_id"], answer.get("leader", "")

    async def end_leases(self, client: httpx.AsyncClient) -> None:
        """End all leases, as a former leader does that takes them for expired. Raise ``httpx.HTTPError``."""
        answer = (await client.post(f"{self.url}/v3/lease/leases", json={})).raise_for_status().json()
        for lease in answer["leases"]:
            (await client.post(f"{self.url}/v3/lease/revoke", json=lease)).raise_for_status()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            processes.kill(self._process)

    def freeze(self) -> None:
        """Freeze it with SIGSTOP, as a paused virtual machine."""
        processes.send(processes.belonging_to(self.home), signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Resume it."""
        processes.send(processes.belonging_to(self.home), signal.SIGCONT)

    @property
    def url(self) -> str:
        """Where its clients reach it."""
        return f"http://{ports.HOST}:{self.port}"

    @property
    def peer_url(self) -> str:
        """Where the other members reach it."""
        return f"http://{ports.HOST}:{self.peer_port}"

    @property
    def _log(self) -> Path:
        return self.home / "etcd.log"


def start_all(program: str, members: Sequence[EtcdMember]) -> None:
    """Start all members, and wait until they serve."""
    for member in members:
        member.start(program, members)
    for member in members:
        member.until_serves()


async def until_leads(members: Sequence[EtcdMember], client: httpx.AsyncClient, within: float = 30.0) -> EtcdMember:
    """Wait until these members agree on one of them as the leader, and return it."""
    async with asyncio.timeout(within):
        while True:
            with suppress(httpx.HTTPError):
                statuses = [await member.status(client) for member in members]
                for member, (own, _) in zip(members, statuses, strict=True):
                    if {leader for _, leader in statuses} == {own}:
                        return member
            await asyncio.sleep(0.1)
