"""A RabbitMQ cluster as people run it: three nodes with the settings of deploy/, each on a machine of its own."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx

from taskherd.dev import processes, rabbitmq
from taskherd.dev.rabbitmq import RabbitBinaries, RabbitNode
from taskherd.dev.sources import Missing
from taskherd.errors import Unavailable
from tests.cluster.network import CLIENTS, CLUSTER, Machine, Network, network_of

NODES: Final = 3
AMQP_PORT: Final = 5672
EPMD_PORT: Final = 4369
DIST_PORT: Final = 25672
MANAGEMENT_PORT: Final = 15672
MAX_STARTS: Final = 3
STARTS_WITHIN: Final = 120.0
HEALTHY_WITHIN: Final = 180.0
CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "cluster" / "rabbitmq.conf"
"""The settings that deploy/ recommends; the nodes of the tests differ in names and in their use of memory."""
BOUNDS: Final = "vm_memory_high_watermark.absolute = 400MB\nraft.wal_max_size_bytes = 32000000\n"


class MachineNode(RabbitNode):
    """A node on a machine of its own, with the usual ports and its own epmd."""

    def __init__(self, binaries: RabbitBinaries, home: Path, machine: Machine, cluster: RabbitCluster) -> None:
        super().__init__(binaries, home)
        self.machine = machine
        self._cluster = cluster
        identity = self._identity
        identity.name = f"rabbit@{_host(machine)}"
        identity.password = cluster.password
        identity.amqp_port, identity.dist_port, identity.epmd_port = AMQP_PORT, DIST_PORT, EPMD_PORT

    @property
    def address(self) -> str:
        """The address and port for clients."""
        return f"{self.machine.addresses[CLIENTS]}:{AMQP_PORT}"

    @property
    def url(self) -> str:
        """The AMQP URL of the node."""
        return self._cluster.url_of(self.address)

    def start(self) -> None:
        """Start the node with its data, if it has any, and wait until it accepts AMQP connections.

        A node that ends while it starts is started again, as systemd and Docker do: 4.0.5 with Khepri sometimes looks
        for exchange types before it has registered them.
        """
        for _ in range(MAX_STARTS - 1):
            self.launch()
            with suppress(Unavailable):
                return self.until_started()
        self.launch()
        return self.until_started()

    def launch(self) -> None:
        """Start the processes, without waiting."""
        self.stop()
        self._write_files()
        epmd = self.machine.command(rabbitmq._epmd(), "-port", str(EPMD_PORT))
        self._epmd = processes.spawn(epmd, home=self.home, env=self._env(), log=self.home / "epmd.out")
        server = self.machine.command(str(self.binaries.folder / "rabbitmq-server"))
        self._server = processes.spawn(server, home=self.home, env=self._env(), log=self._log)

    def until_started(self) -> None:
        """Wait until the node accepts AMQP connections."""
        assert self._server is not None
        processes.await_ready(self._server, self.speaks_amqp, what="RabbitMQ", log=self._log, within=STARTS_WITHIN)

    def speaks_amqp(self) -> bool:
        """Return whether a client gets an answer from the node."""
        try:
            with socket.create_connection((self.machine.addresses[CLIENTS], AMQP_PORT), timeout=2) as client:
                client.sendall(rabbitmq._AMQP_GREETING)
                return client.recv(1) == rabbitmq._METHOD_FRAME
        except OSError:
            return False

    def kill(self) -> None:
        """Kill everything on the machine with SIGKILL, as a crash would."""
        for process in (self._server, self._epmd):
            if process is not None:
                processes.kill(process)

    def freeze(self) -> None:
        """Freeze everything on the machine with SIGSTOP, as a paused virtual machine."""
        processes.send(processes.belonging_to(self.home), signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Resume everything."""
        processes.send(processes.belonging_to(self.home), signal.SIGCONT)

    @property
    def _log(self) -> Path:
        return self.home / "server.out"

    def _ctl_command(self) -> list[str]:
        return self.machine.command(*super()._ctl_command())

    def _write_files(self) -> None:
        self._write_configuration()
        (self.home / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange,rabbitmq_management].\n")
        names = ".\n".join(f'{{host, {_tuple(each.addresses[CLUSTER])}, ["{_host(each)}"]}}' for each in self._peers)
        (self.home / "inetrc").write_text(f"{names}.\n{{lookup, [file, native]}}.\n")
        recommended = CONFIGURATION.read_text()
        for number, machine in enumerate(self._peers, start=1):
            name = f"rabbit@rabbitmq{'' if number == 1 else number}\n"
            assert name in recommended
            recommended = recommended.replace(name, f"rabbit@{_host(machine)}\n")
        file = self.home / "rabbitmq.conf"
        own = file.read_text().replace("listeners.tcp.local = 127.0.0.1:", "listeners.tcp.default = 0.0.0.0:")
        file.write_text(own + recommended + BOUNDS)

    @property
    def _peers(self) -> list[Machine]:
        return self._cluster.network.machines

    def _env(self) -> dict[str, str]:
        cluster = _tuple(self.machine.addresses[CLUSTER])
        return super()._env() | {
            "ERL_INETRC": str(self.home / "inetrc"),
            "ERL_EPMD_ADDRESS": self.machine.addresses[CLUSTER],
            "RABBITMQ_NODE_IP_ADDRESS": "0.0.0.0",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-kernel inet_dist_use_interface {cluster}",
            "RABBITMQ_CTL_ERL_ARGS": "",
        }


class RabbitCluster:
    """The nodes, all in one cluster."""

    def __init__(self, folder: Path, network: Network) -> None:
        binaries = rabbitmq.find()
        assert not isinstance(binaries, Missing), binaries.reason
        self.network = network
        self.password = secrets.token_hex(16)
        self.nodes = [
            MachineNode(binaries, folder / f"mq{machine.number}", machine, self) for machine in network.machines
        ]
        self._http = httpx.AsyncClient(auth=("taskherd", self.password), timeout=10.0, trust_env=False)
        cookie = secrets.token_hex(16)
        for node in self.nodes:
            (node.home / ".erlang.cookie").write_text(cookie)
            (node.home / ".erlang.cookie").chmod(0o400)

    def url_of(self, *addresses: str) -> str:
        """Return the URL of these addresses, each with a port."""
        return f"amqp://taskherd:{self.password}@{','.join(addresses)}/"

    def url_from(self, first: MachineNode) -> str:
        """Return the URL of all nodes, in order, from one on."""
        index = self.nodes.index(first)
        return self.url_of(*(node.address for node in (*self.nodes[index:], *self.nodes[:index])))

    async def start(self) -> None:
        """Start all nodes at once, wait until they have found each other, and use Khepri as new clusters of 4.2 do.

        With Mnesia, which Debian's 4.0 begins with, a node that was frozen until it was declared down stays partitioned
        from the others when it goes on, until somebody restarts it.
        """
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            await asyncio.to_thread(node.until_started)
        await self.until_healthy(STARTS_WITHIN)
        await asyncio.to_thread(self.nodes[0].ctl, "enable_feature_flag", "--opt-in", "khepri_db", within=STARTS_WITHIN)
        await self.until_healthy(STARTS_WITHIN)

    async def stop(self) -> None:
        """Kill everything."""
        await self._http.aclose()
        for node in self.nodes:
            node.unfreeze()
            node.kill()

    async def until_healthy(self, within: float = HEALTHY_WITHIN) -> None:
        """Wait until each node sees all of them running, and each quorum queue is on all of them."""
        started_at, seen = time.monotonic(), ""
        wanted = sorted(node.name for node in self.nodes)
        while time.monotonic() < started_at + within:
            try:
                running, queues = await self._running(), await self._queues()
            except httpx.HTTPError as error:
                seen = repr(error)
            else:
                if all(each == wanted for each in (*running, *(sorted(queue["online"]) for queue in queues))):
                    return
                seen = f"{running}, {queues}"
            await asyncio.sleep(0.5)
        raise AssertionError(f"not healthy within {within:g} s: {seen}")

    async def leader_of(self, queue: str) -> MachineNode:
        """Return the node that leads a queue of the healthy cluster."""
        async with asyncio.timeout(HEALTHY_WITHIN):
            while True:
                leaders = {each["name"]: each["leader"] for each in await self._queues()}
                if queue in leaders:
                    return next(node for node in self.nodes if node.name == leaders[queue])
                await asyncio.sleep(0.5)

    async def _running(self) -> list[list[str]]:
        """Return the nodes that each node holds for running."""
        answers = [await self._get(node, "/nodes") for node in self.nodes]
        return [sorted(each["name"] for each in nodes if each["running"]) for nodes in answers]

    async def _queues(self) -> list[dict[str, Any]]:
        """Return the quorum queues, without those about which nothing is known yet."""
        queues = await self._get(self.nodes[0], "/queues")
        return [queue for queue in queues if queue.get("type") == "quorum" and "online" in queue and "leader" in queue]

    async def _get(self, node: MachineNode, path: str) -> list[dict[str, Any]]:
        """Ask the management plugin of a node, which costs less than starting rabbitmqctl."""
        url = f"http://{node.machine.addresses[CLIENTS]}:{MANAGEMENT_PORT}/api{path}"
        answer: list[dict[str, Any]] = (await self._http.get(url)).raise_for_status().json()
        return answer


def _host(machine: Machine) -> str:
    return f"mq{machine.number}"


def _tuple(address: str) -> str:
    return f"{{{address.replace('.', ',')}}}"


@asynccontextmanager
async def rabbit_cluster(folder: Path, announce: Callable[[str], None]) -> AsyncIterator[RabbitCluster]:
    """Run a cluster until the end of the block."""
    with network_of(NODES, announce) as network:
        cluster = RabbitCluster(folder, network)
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()
