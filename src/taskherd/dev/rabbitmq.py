"""A private RabbitMQ node: the binaries of this machine with a separate node name, ports, cookie, log and data.

The start script is run directly, because the wrapper that distributions put on the PATH requires its own user and
folders. epmd runs in the foreground on a separate port, so that it can be ended with the node.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from taskherd.dev import ports, processes
from taskherd.dev.sources import CTL_TIMEOUT, Missing
from taskherd.errors import Unavailable

OLDEST: Final = (4, 0)
PACKAGE: Final = "rabbitmq-server"
_FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"
_AMQP_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME: Final = b"\x01"
_START_TIMEOUT: Final = 90.0
"""Seconds within which a started node must be ready."""
FLUSH_DEFINITIONS: Final = "mnesia:sync_log()."
"""The Erlang expression that writes the definitions of queues and exchanges to disk."""


@dataclass(frozen=True, slots=True)
class RabbitBinaries:
    """RabbitMQ on this machine: the folder of its scripts, and its version."""

    folder: Path
    version: str


@dataclass(slots=True)
class RabbitIdentity:
    """Name, password and ports of a node, kept over restarts; the name is part of the path of its data."""

    name: str
    password: str
    amqp_port: int | None = None
    dist_port: int | None = None
    epmd_port: int | None = None


def find() -> RabbitBinaries | Missing:
    """Look for RabbitMQ >= 4.0 in the folders that distributions use, then on the PATH."""
    on_path = shutil.which("rabbitmq-server")
    folders = [Path(folder) for folder in _FOLDERS] + ([Path(on_path).resolve().parent] if on_path else [])
    too_old = ""
    for folder in folders:
        version = _version(folder)
        if version is None:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST:
            return RabbitBinaries(folder, version)
        too_old = f"RabbitMQ {version} in {folder} is older than 4.0"
    return Missing(too_old or "no rabbitmq-server on this machine")


def speaks_amqp(port: int | None) -> bool:
    """Return whether a RabbitMQ answers on this port of the loopback address."""
    try:
        with socket.create_connection((ports.HOST, port or 0), timeout=2) as client:
            client.sendall(_AMQP_GREETING)
            return client.recv(1) == _METHOD_FRAME
    except OSError:
        return False


class RabbitNode:
    """A private node with its data in the folder ``home``, which the next node on the same folder reuses."""

    def __init__(self, binaries: RabbitBinaries, home: Path, seed: RabbitNode | None = None) -> None:
        """Create a node, not started. It joins the cluster of ``seed``, which must be running, if there is one."""
        self.binaries = binaries
        self._seed = seed
        self.home = home.absolute()
        self._identity = _identity(self.home)
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The name of the node in its cluster."""
        return self._identity.name

    @property
    def url(self) -> str:
        """The AMQP URL of the node; valid after the first start."""
        identity = self._identity
        return f"amqp://taskherd:{identity.password}@{ports.HOST}:{identity.amqp_port}/"

    @property
    def description(self) -> str:
        """One line that says what runs where."""
        where = f"{self.home} on {ports.HOST}:{self._identity.amqp_port}"
        return f"RabbitMQ {self.binaries.version} from {self.binaries.folder}, a private node in {where}"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None if it is not running."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self) -> None:
        """Start the node and wait until it accepts AMQP connections; end leftovers of a crash first.

        Raises:
            Unavailable: if it is not ready within ``_START_TIMEOUT`` seconds.
        """
        if self.pid is None:
            ports.start_on_free(self._start, self._ports)

    def _ports(self) -> list[int | None]:
        identity = self._identity
        own = [identity.amqp_port, identity.dist_port]
        return own if self._seed is not None else [*own, identity.epmd_port]

    def _start(self) -> None:
        self.stop()
        identity = self._identity
        identity.amqp_port, identity.dist_port, identity.epmd_port = ports.find_free(
            [identity.amqp_port, identity.dist_port, identity.epmd_port]
        )
        if self._seed is not None:
            identity.epmd_port = self._seed._identity.epmd_port  # noqa: SLF001 - of the same class
        self._write_configuration()
        if self._seed is None:
            self._start_epmd()
        log = self.home / "server.out"
        server = self.binaries.folder / "rabbitmq-server"
        self._server = processes.spawn([server], home=self.home, env=self._env(), log=log)
        try:
            processes.await_ready(self._server, self._is_ready, what="RabbitMQ", log=log, within=_START_TIMEOUT)
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        """Return whether this node accepts AMQP connections, and not another one that has taken its port."""
        pid, port = self.pid, self._identity.amqp_port
        return pid is not None and port is not None and processes.listens(pid, port) and speaks_amqp(port)

    def _start_epmd(self) -> None:
        port = self._identity.epmd_port or 0
        command = [_epmd(), "-port", str(port), "-address", ports.HOST]
        log = self.home / "epmd.out"
        self._epmd = epmd = processes.spawn(command, home=self.home, env=self._env(), log=log)
        processes.await_ready(epmd, lambda: processes.listens(epmd.pid, port), what="epmd", log=log, within=10)

    def stop(self) -> None:
        """Stop the node and its epmd with SIGTERM; kill what is still running after 30 seconds."""
        for process in (self._server, self._epmd):
            if process is not None:
                processes.stop(process, gently=signal.SIGTERM, within=30)
        self._server = self._epmd = None
        self._end_leftovers()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        if self._server is not None:
            processes.kill(self._server)

    def restart(self) -> None:
        """Stop the node if it is running, and start it again with its data, on the same ports if they are free."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Freeze the server with SIGSTOP: connections stay open and nothing answers."""
        if self._server is not None:
            self._server.send_signal(signal.SIGSTOP)

    def unfreeze(self) -> None:
        """Resume the server with SIGCONT."""
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str, within: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl`` and return its output.

        Raises:
            Unavailable: if it fails or takes longer than ``within`` seconds.
        """
        command = [*self._ctl_command(), *arguments]
        try:
            process = subprocess.run(
                command, env=self._env(), cwd=self.home, capture_output=True, text=True, timeout=within, check=True
            )
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"rabbitmqctl {arguments[0]} failed: {error.stderr.strip() or error.stdout}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"rabbitmqctl {arguments[0]} took longer than {within:.0f} s") from error
        return process.stdout

    def _ctl_command(self) -> list[str]:
        return [str(self.binaries.folder / "rabbitmqctl"), "--quiet", "--node", self._identity.name]

    def flush_definitions(self) -> None:
        """Write the definitions of queues and exchanges to disk.

        Mnesia writes them some time after the declaration was confirmed, so a SIGKILL within about a second loses a new
        queue with all its messages. See https://www.erlang.org/doc/apps/mnesia/mnesia.html#sync_log/0.
        """
        self.ctl("eval", FLUSH_DEFINITIONS)

    def import_definitions(self, definitions: bytes) -> None:
        """Import users, permissions and the like, in RabbitMQ's JSON format for definitions."""
        file = self.home / "definitions.json"
        file.write_bytes(definitions)
        self.ctl("import_definitions", str(file))

    def _end_leftovers(self) -> None:
        processes.end(processes.belonging_to(self.home), gently=signal.SIGTERM, within=20)

    def _write_configuration(self) -> None:
        identity, seed = self._identity, self._seed
        join = "" if seed is None else f"cluster_formation.classic_config.nodes.1 = {seed.name}\n"
        (self.home / "node.json").write_text(json.dumps(asdict(identity)))
        (self.home / "node.json").chmod(0o600)
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16) if seed is None else (seed.home / cookie.name).read_text())
            cookie.chmod(0o400)
        (self.home / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
        (self.home / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = {ports.HOST}:{identity.amqp_port}\n"
            f"default_user = taskherd\n"
            f"default_pass = {identity.password}\n"
            "disk_free_limit.absolute = 50MB\n" + join
        )
        (self.home / "rabbitmq.conf").chmod(0o600)

    def _env(self) -> dict[str, str]:
        identity = self._identity
        variables = {
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "ERL_EPMD_ADDRESS": ports.HOST,
            "ERL_EPMD_PORT": str(identity.epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": identity.name,
            "RABBITMQ_NODE_IP_ADDRESS": ports.HOST,
            "RABBITMQ_NODE_PORT": str(identity.amqp_port),
            "RABBITMQ_DIST_PORT": str(identity.dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_PID_FILE": str(self.home / "server.pid"),
            "RABBITMQ_CONF_ENV_FILE": str(self.home / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.home / "no-advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK,
            "RUNNING_UNDER_SYSTEMD": "true",  # makes the script exec the server instead of waiting for it
        }
        return {**variables, **({"LANG": os.environ["LANG"]} if "LANG" in os.environ else {})}


def _identity(home: Path) -> RabbitIdentity:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = home / "node.json"
    if file.exists():
        return RabbitIdentity(**json.loads(file.read_text()))
    return RabbitIdentity(name=f"taskherd-{secrets.token_hex(4)}@localhost", password=secrets.token_hex(16))


def _version(folder: Path) -> str | None:
    """Return the version of the RabbitMQ in a folder, or None if there is none."""
    scripts = (folder / "rabbitmq-server", folder / "rabbitmqctl")
    if not all(script.is_file() for script in scripts) or folder == Path("/usr/sbin"):
        return None
    for release in folder.parent.glob("lib/rabbitmq_server-*"):
        if match := re.search(r"-(\d+\.\d+[.\d]*)$", release.name):
            return match[1]
    try:
        process = subprocess.run([scripts[1], "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^(\d+\.\d+[.\d]*)", process.stdout, re.MULTILINE)
    return match[1] if match else None


def _epmd() -> str:
    """Return the path of Erlang's port mapper, which some distributions install in the runtime's folder only."""
    path = shutil.which("epmd") or next((str(p) for p in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    if path is None:
        raise Unavailable("RabbitMQ is installed, but Erlang's epmd is neither on the PATH nor in /usr/lib/erlang")
    return path
