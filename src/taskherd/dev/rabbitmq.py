"""A private RabbitMQ node: the machine's own binaries, but our own node name, ports, cookie, log and data.

The start script is run directly, since the wrapper that distributions put in the path insists on its own user and
folders. epmd runs in the foreground on a port of its own, so that it can be ended with the node.
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
from taskherd.dev.sources import Missing
from taskherd.errors import Unavailable

OLDEST: Final = (4, 0)
PACKAGE: Final = "rabbitmq-server"
_PLACES: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
_LOOPBACK: Final = "-kernel inet_dist_use_interface {127,0,0,1}"
_AMQP_GREETING: Final = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME: Final = b"\x01"
SETTLE: Final = "mnesia:sync_log()."


@dataclass(frozen=True, slots=True)
class RabbitBinaries:
    """RabbitMQ's scripts on this machine: the folder that holds them and the version."""

    folder: Path
    version: str


@dataclass(slots=True)
class RabbitIdentity:
    """What a node keeps over restarts; its data are found by its name."""

    name: str
    password: str
    amqp_port: int | None = None
    dist_port: int | None = None
    epmd_port: int | None = None


def find() -> RabbitBinaries | Missing:
    """Look for RabbitMQ >= 4.0 where distributions put its scripts, then in the path."""
    found = shutil.which("rabbitmq-server")
    places = [Path(place) for place in _PLACES] + ([Path(found).resolve().parent] if found else [])
    too_old = ""
    for place in places:
        version = _version(place)
        if version is None:
            continue
        if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST:
            return RabbitBinaries(place, version)
        too_old = f"RabbitMQ {version} in {place} is older than 4.0"
    return Missing(too_old or "no rabbitmq-server on this machine")


def speaks_amqp(port: int | None) -> bool:
    """Tell whether a RabbitMQ answers on this port of the loopback address."""
    try:
        with socket.create_connection((ports.HOST, port or 0), timeout=2) as probe:
            probe.sendall(_AMQP_GREETING)
            return probe.recv(1) == _METHOD_FRAME
    except OSError:
        return False


class RabbitNode:
    """One private node in the folder `home`; a second one on the same folder finds the first one's data."""

    def __init__(self, binaries: RabbitBinaries, home: Path) -> None:
        self.binaries = binaries
        self.home = home.absolute()
        self._identity = _identity(self.home)
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The AMQP URL of the node, known once it was started."""
        who = self._identity
        return f"amqp://taskherd:{who.password}@{ports.HOST}:{who.amqp_port}/"

    @property
    def described(self) -> str:
        """One line that says what runs where."""
        where = f"{self.home} on {ports.HOST}:{self._identity.amqp_port}"
        return f"RabbitMQ {self.binaries.version} from {self.binaries.folder}, a private node in {where}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._server.pid if self._server and self._server.poll() is None else None

    def start(self, *, within: float = 90) -> None:
        """Start the node and wait until it speaks AMQP; what a crash left of it is ended first.

        Raises:
            Unavailable: when it does not come up within `within` seconds.
        """
        if self.pid is not None:
            return
        self.stop()
        who = self._identity
        who.amqp_port, who.dist_port, who.epmd_port = ports.claim([who.amqp_port, who.dist_port, who.epmd_port])
        self._write()
        epmd = [_epmd(), "-port", str(who.epmd_port), "-address", ports.HOST]
        self._epmd = processes.spawn(epmd, home=self.home, env=self._env(), log=self.home / "epmd.out")
        port = who.epmd_port
        processes.await_ready(
            self._epmd, lambda: ports.is_open(port), what="epmd", log=self.home / "epmd.out", within=10
        )
        log = self.home / "server.out"
        server = self.binaries.folder / "rabbitmq-server"
        self._server = processes.spawn([server], home=self.home, env=self._env(), log=log)
        try:
            processes.await_ready(
                self._server, lambda: speaks_amqp(who.amqp_port), what="RabbitMQ", log=log, within=within
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the node in order, and its epmd; kill what has not ended after 30 s."""
        for process in (self._server, self._epmd):
            if process is not None:
                processes.stop(process, gently=signal.SIGTERM, within=30)
        self._server = self._epmd = None
        self._end_leftovers()

    def kill(self) -> None:
        """Kill -9 the server, as a crash would."""
        if self._server is not None:
            processes.kill(self._server)

    def restart(self) -> None:
        """Start the node again with its data, on the same ports where they are free; a live one is stopped first."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP the server: connections stay open and nothing answers."""
        if self._server is not None:
            self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT the server."""
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)

    def ctl(self, *words: str, within: float = 30) -> str:
        """What `rabbitmqctl` prints for these words.

        Raises:
            Unavailable: when it fails or takes longer than `within` seconds.
        """
        command = [str(self.binaries.folder / "rabbitmqctl"), "--quiet", "--node", self._identity.name, *words]
        try:
            done = subprocess.run(
                command, env=self._env(), cwd=self.home, capture_output=True, text=True, timeout=within, check=True
            )
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"rabbitmqctl {words[0]} failed: {error.stderr.strip() or error.stdout}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"rabbitmqctl {words[0]} took longer than {within:.0f} s") from error
        return done.stdout

    def settle(self) -> None:
        """Have the definitions of queues and exchanges on disk.

        Mnesia writes them some time after it has answered, so that a kill -9 within the first second or so loses a new
        queue with all that was confirmed in it. See https://www.erlang.org/doc/apps/mnesia/mnesia.html#sync_log/0.
        """
        self.ctl("eval", SETTLE)

    def define(self, definitions: bytes) -> None:
        """Import users, rights and the like, in the JSON of RabbitMQ's definitions."""
        file = self.home / "definitions.json"
        file.write_bytes(definitions)
        self.ctl("import_definitions", str(file))

    def _end_leftovers(self) -> None:
        processes.end(processes.belonging_to(self.home), gently=signal.SIGTERM, within=20)

    def _write(self) -> None:
        who = self._identity
        (self.home / "node.json").write_text(json.dumps(asdict(who)))
        (self.home / "node.json").chmod(0o600)
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        (self.home / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
        (self.home / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = {ports.HOST}:{who.amqp_port}\n"
            f"default_user = taskherd\n"
            f"default_pass = {who.password}\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        (self.home / "rabbitmq.conf").chmod(0o600)

    def _env(self) -> dict[str, str]:
        who = self._identity
        ours = {
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "ERL_EPMD_ADDRESS": ports.HOST,
            "ERL_EPMD_PORT": str(who.epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": who.name,
            "RABBITMQ_NODE_IP_ADDRESS": ports.HOST,
            "RABBITMQ_NODE_PORT": str(who.amqp_port),
            "RABBITMQ_DIST_PORT": str(who.dist_port),
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
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server instead of waiting for it
        }
        return {**ours, **({"LANG": os.environ["LANG"]} if "LANG" in os.environ else {})}


def _identity(home: Path) -> RabbitIdentity:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = home / "node.json"
    if kept.exists():
        return RabbitIdentity(**json.loads(kept.read_text()))
    return RabbitIdentity(name=f"taskherd-{secrets.token_hex(4)}@localhost", password=secrets.token_hex(16))


def _version(folder: Path) -> str | None:
    """The version that the folder's own `rabbitmqctl` names, or None."""
    scripts = (folder / "rabbitmq-server", folder / "rabbitmqctl")
    if not all(script.is_file() for script in scripts) or folder == Path("/usr/sbin"):
        return None
    for release in folder.parent.glob("lib/rabbitmq_server-*"):
        if found := re.search(r"-(\d+\.\d+[.\d]*)$", release.name):
            return found[1]
    try:
        done = subprocess.run([scripts[1], "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"^(\d+\.\d+[.\d]*)", done.stdout, re.MULTILINE)
    return found[1] if found else None


def _epmd() -> str:
    """Erlang's port mapper; some distributions keep it beside the runtime only."""
    found = shutil.which("epmd") or next((str(p) for p in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    if found is None:
        raise Unavailable("RabbitMQ is here, but Erlang's epmd is neither in the path nor in /usr/lib/erlang")
    return found
