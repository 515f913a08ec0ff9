"""Machines of their own on this one: network namespaces with two networks, and ways to cut a machine off.

Each machine has an address in the network of the clients, in which this machine is too, and one in the network of the
cluster, in which only its members are. Packets into a network that a machine is cut off from vanish: connections stay
open, and nothing is refused.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil

from tests.harness.programs import find_program

CLIENTS: Final = "clients"
CLUSTER: Final = "cluster"
NETWORKS: Final = (CLIENTS, CLUSTER)
_BENCHMARKS: Final = tuple(f"198.{second}.{third}" for second in (18, 19) for third in range(256))
"""The networks of 256 addresses that RFC 2544 reserves for tests."""
_PREFIX: Final = "taskherd"
_HOST: Final = 1
_FIRST_MACHINE: Final = 11


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: its number, and its address in each network."""

    number: int
    namespace: str
    addresses: dict[str, str]

    def command(self, *words: str) -> list[str]:
        """Return a command that runs on this machine."""
        return ["ip", "netns", "exec", self.namespace, *words]


class Network:
    """The machines and the switch between them."""

    def __init__(self, machines: int) -> None:
        self._pid = os.getpid()
        self._switch = f"{_PREFIX}-{self._pid}-switch"
        self._interface = f"th{self._pid % 10**6}"
        self._subnets = dict(zip(NETWORKS, random.sample(_BENCHMARKS, len(NETWORKS)), strict=True))
        self.machines = [
            Machine(
                number,
                f"{_PREFIX}-{self._pid}-{number}",
                {name: f"{subnet}.{_FIRST_MACHINE + number}" for name, subnet in self._subnets.items()},
            )
            for number in range(machines)
        ]

    def create(self) -> None:
        """Create everything; namespaces that a crashed run left behind are deleted first."""
        self._delete_leftovers()
        for namespace in (self._switch, *(machine.namespace for machine in self.machines)):
            _ip("netns", "add", namespace)
        for network in NETWORKS:
            _ip("-n", self._switch, "link", "add", network, "type", "bridge")
            _ip("-n", self._switch, "link", "set", network, "up")
        for machine in self.machines:
            _ip("-n", machine.namespace, "link", "set", "lo", "up")
            for network in NETWORKS:
                here, port = ["-n", machine.namespace], _port(network, machine)
                _ip(*here, "link", "add", network, "type", "veth", "peer", "name", port, "netns", self._switch)
                _ip(*here, "addr", "add", f"{machine.addresses[network]}/24", "dev", network)
                _ip(*here, "link", "set", network, "up")
                _ip("-n", self._switch, "link", "set", port, "master", network, "up")
        _ip("link", "add", self._interface, "type", "veth", "peer", "name", "host", "netns", self._switch)
        _ip("-n", self._switch, "link", "set", "host", "master", CLIENTS, "up")
        _ip("addr", "add", f"{self._subnets[CLIENTS]}.{_HOST}/24", "dev", self._interface)
        _ip("link", "set", self._interface, "up")

    def delete(self) -> None:
        """Delete everything; the interface of this machine goes with the switch."""
        for namespace in (*(machine.namespace for machine in self.machines), self._switch):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, timeout=30, check=False)

    def cut(self, machine: Machine, network: str) -> None:
        """Cut a machine off from a network: what it sends there and what is sent to it vanishes in the switch."""
        _ip("-n", self._switch, "link", "set", _port(network, machine), "nomaster")

    def join(self, machine: Machine, network: str) -> None:
        """Connect a machine to a network again."""
        _ip("-n", self._switch, "link", "set", _port(network, machine), "master", network)

    def _delete_leftovers(self) -> None:
        for line in _ip("netns", "list").splitlines():
            name = line.split()[0]
            prefix, _, rest = name.partition("-")
            pid = rest.partition("-")[0]
            if prefix == _PREFIX and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                _ip("netns", "del", name)


def _port(network: str, machine: Machine) -> str:
    return f"{network}{machine.number}"


def _ip(*arguments: str) -> str:
    process = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert process.returncode == 0, f"ip {' '.join(arguments)} failed: {process.stderr.strip()}"
    return process.stdout


@contextmanager
def network_of(machines: int, announce: Callable[[str], None]) -> Iterator[Network]:
    """Create a network of so many machines until the end of the block. Needs root, for the network namespaces."""
    assert os.geteuid() == 0, "network namespaces need root: run `sudo make cluster`, or select other rows with ROW="
    find_program("ip", "iproute2", announce)
    network = Network(machines)
    try:
        network.create()
        yield network
    finally:
        network.delete()
