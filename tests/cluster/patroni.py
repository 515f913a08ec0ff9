"""A PostgreSQL cluster as people run it: Patroni on three machines, etcd on three others, and HAProxy to the leader."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from taskherd.dev import apt, ports, postgres, processes
from taskherd.dev.postgres import PostgresBinaries, PostgresNode
from tests.cluster.etcd import EtcdMember, start_all, until_leads
from tests.cluster.haproxy import LEADER, Server, running_haproxy
from tests.harness.programs import find_program
from tests.harness.replication import find_binaries

MEMBERS: Final = 3
STARTS_WITHIN: Final = 120.0
ETCD_CLIENT: Final = Path("/usr/lib/python3/dist-packages/etcd")
"""Where the Debian package python3-etcd is, which Patroni imports."""
HEALTHY_WITHIN: Final = 180.0
CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "cluster" / "patroni.yml"
"""The settings that deploy/ recommends; the members of the tests differ in addresses, folders and sizes."""


class PatroniMember:
    """One machine: a Patroni, and the PostgreSQL that it runs."""

    def __init__(self, name: str, home: Path, binaries: PostgresBinaries, password: str) -> None:
        self.name = name
        self.home = home.absolute()
        self.binaries = binaries
        self.rest_port, self.port = ports.find_free([None] * 2)
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, program: str, etcd: Sequence[EtcdMember]) -> None:
        """Start Patroni and PostgreSQL with their data, if they have any; ``etcd`` are all members of that."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = self.home / "patroni.json"  # JSON is YAML
        configuration.write_text(json.dumps(self._configuration(etcd)))
        if (user := postgres._other_user()) is not None:
            shutil.chown(self.home, user.pw_uid, user.pw_gid)
        prefix = PostgresNode(self.binaries, self.home)._as_user()
        env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.home)}
        command: list[str | Path] = [*prefix, program, configuration]
        self._process = processes.spawn(command, home=self.home, env=env, log=self.home / "patroni.log")

    def kill(self) -> None:
        """Kill everything on the machine with SIGKILL, as its crash would."""
        if self._process is not None:
            processes.kill(self._process)
        processes.end(processes.belonging_to(self.home), gently=signal.SIGKILL, within=10)

    def kill_postgres(self) -> None:
        """Kill PostgreSQL alone with SIGKILL."""
        pid = int((self.home / "data/postmaster.pid").read_text().split()[0])
        processes.send(processes.tree(pid), signal.SIGKILL)

    def freeze(self) -> None:
        """Freeze everything on the machine with SIGSTOP, as a paused virtual machine."""
        processes.send(processes.belonging_to(self.home), signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Resume everything."""
        processes.send(processes.belonging_to(self.home), signal.SIGCONT)

    def log_tail(self) -> str:
        """Return the end of Patroni's log."""
        return "\n".join((self.home / "patroni.log").read_text(errors="replace").splitlines()[-20:])

    def _configuration(self, etcd: Sequence[EtcdMember]) -> dict[str, Any]:
        address, rest = f"{ports.HOST}:{self.port}", f"{ports.HOST}:{self.rest_port}"
        login = {"password": self._password}
        recommended = yaml.safe_load(CONFIGURATION.read_text())
        return {
            "scope": recommended["scope"],
            "name": self.name,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": {"hosts": [f"{ports.HOST}:{each.port}" for each in etcd]},
            "bootstrap": {
                "dcs": recommended["bootstrap"]["dcs"],
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": str(self.home / "data"),
                "bin_dir": str(self.binaries.folder),
                "pgpass": str(self.home / "pgpass"),
                "parameters": {"unix_socket_directories": "", "shared_buffers": "64MB", "fsync": "off"},
                "pg_hba": [
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication all 127.0.0.1/32 scram-sha-256",
                ],
                "authentication": {
                    "superuser": {"username": "taskherd", **login},
                    "replication": {"username": "replicator", **login},
                },
            },
        }


class PatroniCluster:
    """The members; ``url`` leads to their leader, through HAProxy at ``proxy``, which ``patroni_cluster`` starts."""

    def __init__(self, folder: Path, announce: Callable[[str], None]) -> None:
        self._program = find_program("patroni", "patroni", announce)
        if not ETCD_CLIENT.exists():
            assert apt.install("python3-etcd", announce) is None, "Patroni needs python3-etcd"
        self._etcd_program = find_program("etcd", "etcd-server", announce)
        self._password = secrets.token_hex(16)
        binaries = find_binaries()
        self.etcd = [EtcdMember(f"etcd{number}", folder / f"etcd{number}") for number in range(MEMBERS)]
        self.members = [
            PatroniMember(f"pg{number}", folder / f"pg{number}", binaries, self._password) for number in range(MEMBERS)
        ]
        self.proxy = ""
        self._http = httpx.AsyncClient(timeout=1.0, trust_env=False)

    @property
    def url(self) -> str:
        """The URL of the leader's database ``postgres``, through the proxy."""
        return f"postgresql://taskherd:{self._password}@{self.proxy}/postgres"

    def url_of_hosts(self, first: PatroniMember, database: str) -> str:
        """Return the URL of a database with all members as hosts, for clients that find the leader themselves."""
        members = [first, *(member for member in self.members if member is not first)]
        hosts = ",".join(f"{ports.HOST}:{member.port}" for member in members)
        return f"postgresql://taskherd:{self._password}@{hosts}/{database}"

    def url_of_member(self, member: PatroniMember, database: str) -> str:
        """Return the URL of a database on one member, whichever is its role."""
        return f"postgresql://taskherd:{self._password}@{ports.HOST}:{member.port}/{database}"

    async def start(self) -> None:
        """Start etcd, then all members, and wait until a leader has its standbys."""
        start_all(self._etcd_program, self.etcd)
        for member in self.members:
            member.start(self._program, self.etcd)
        await self.until_healthy(STARTS_WITHIN)

    def revive(self, member: PatroniMember) -> None:
        """Start a member that was killed."""
        member.start(self._program, self.etcd)

    def revive_etcd(self, etcd: EtcdMember) -> None:
        """Start a member of etcd that was killed."""
        etcd.start(self._etcd_program, self.etcd)

    async def stop(self) -> None:
        """Kill everything."""
        await self._http.aclose()
        for member in self.members:
            member.unfreeze()
            member.kill()
        for etcd in self.etcd:
            etcd.unfreeze()
            etcd.kill()

    async def leader(self) -> PatroniMember | None:
        """Return the member that says that it is the leader, None without one."""
        answers = await asyncio.gather(*(self._get(member, "/primary") for member in self.members))
        leaders = [member for member, answer in zip(self.members, answers, strict=True) if answer is not None]
        return leaders[0] if len(leaders) == 1 else None

    async def etcd_leader(self) -> EtcdMember:
        """Return the leader of etcd."""
        return await until_leads(self.etcd, self._http)

    async def end_leases(self) -> None:
        """End all leases of etcd, and with them the leader's lock."""
        await self.etcd[0].end_leases(self._http)

    async def until_etcd_leader_other_than(self, before: EtcdMember) -> EtcdMember:
        """Wait until the other members of etcd agree on one of them as the leader, and return it."""
        return await until_leads([etcd for etcd in self.etcd if etcd is not before], self._http)

    async def standbys(self) -> tuple[PatroniMember, PatroniMember]:
        """Return the standbys of the healthy cluster: the synchronous one, which leads next, and the other one."""
        (synchronous,) = [member for member in self.members if await self._get(member, "/synchronous") is not None]
        (other,) = [member for member in self.members if member not in {synchronous, await self.leader()}]
        return synchronous, other

    async def until_leader_other_than(self, before: PatroniMember | None, within: float = 120.0) -> PatroniMember:
        """Wait until another member is the leader, and return it."""
        async with asyncio.timeout(within):
            while True:
                leader = await self.leader()
                if leader is not None and leader is not before:
                    return leader
                await asyncio.sleep(0.1)

    async def until_healthy(self, within: float = HEALTHY_WITHIN) -> PatroniMember:
        """Wait until there are a leader and two streaming standbys, one of them synchronous, and return the leader."""
        members: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(within):
                while True:
                    for member in self.members:
                        answer = await self._get(member, "/cluster")
                        members = members if answer is None else answer["members"]
                    roles = sorted((each["role"], each["state"]) for each in members)
                    leader = await self.leader()
                    if leader is not None and roles == [
                        ("leader", "running"), ("replica", "streaming"), ("sync_standby", "streaming")
                    ]:  # fmt: skip
                        return leader
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"not healthy within {within:g} s: {members}\n{self._log_tails()}") from None

    async def until_healthy_under(self, leader: PatroniMember) -> None:
        """Wait until the cluster is healthy, and check that no other member has become the leader meanwhile."""
        now = await self.until_healthy()
        assert now is leader, f"a second failover, from {leader.name} to {now.name}\n{self._log_tails()}"

    async def switch_over(self, leader: PatroniMember) -> None:
        """Ask Patroni for a planned change of the leader, to the synchronous standby."""
        url = f"http://{ports.HOST}:{leader.rest_port}/switchover"
        response = await self._http.post(url, json={"leader": leader.name}, timeout=60)
        assert response.status_code in {200, 202}, response.text

    async def pause(self, *, paused: bool) -> None:
        """Let all Patronis leave PostgreSQL alone as in maintenance, or look after it again."""
        url = f"http://{ports.HOST}:{self.members[0].rest_port}/config"
        (await self._http.patch(url, json={"pause": paused or None}, timeout=60)).raise_for_status()

    def _log_tails(self) -> str:
        return "\n".join(f"{member.name}:\n{member.log_tail()}" for member in self.members)

    async def _get(self, member: PatroniMember, path: str) -> dict[str, Any] | None:
        with suppress(httpx.HTTPError):
            response = await self._http.get(f"http://{ports.HOST}:{member.rest_port}{path}")
            if response.status_code == 200:
                answer: dict[str, Any] = response.json()
                return answer
        return None


@asynccontextmanager
async def patroni_cluster(folder: Path, announce: Callable[[str], None]) -> AsyncIterator[PatroniCluster]:
    """Run a cluster until the end of the block."""
    cluster = PatroniCluster(folder, announce)
    servers = [Server(f"{ports.HOST}:{member.port}", member.rest_port) for member in cluster.members]
    with running_haproxy(folder / "haproxy", LEADER, servers, announce) as cluster.proxy:
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()
