"""``taskherd dev``: run private services, a worker, the API and a runner on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from taskherd.dev import agent_users, broker_users, first_steps, ports, processes, runner_environment, services
from taskherd.directory_file.example import EXAMPLE
from taskherd.errors import Unavailable
from taskherd.observability import health
from taskherd.runner.workspaces.processes import MARKER_VARIABLE
from taskherd.settings import load
from taskherd.store import migrate

DATA: Final = Path(".taskherd")
ALLOW_DEACTIVATE: Final = "--allow-deactivate"
_RUNNER_NAME: Final = "dev"
_MAX_PORT: Final = 65_535
_GRACE: Final = 30.0
"""Seconds from SIGTERM to SIGKILL of a process."""
_START_TIMEOUT: Final = 60.0
"""Seconds within which the worker must be ready, and the API accept connections."""
_POLL_INTERVAL: Final = 0.2
"""Seconds between two checks of a process or a port."""


def run(*, services_only: bool, data: Path = DATA) -> int:
    """Start everything, wait for Ctrl-C, SIGTERM or SIGHUP, stop everything, and return the exit code.

    A pipe on stdout that is closed ends it, too, with the next line.

    Raises:
        Misconfigured: if a service is not available, or another process uses the folder.
        Unavailable: if a service was found but does not start.
    """
    with (
        suppress(KeyboardInterrupt),
        interruptible(_say),
        services.start(data, announce=_say, before=lambda: _end_leftovers(data)) as running,
    ):
        chosen = choose_ports()
        environment = write_env(data, running, chosen.ops)
        if services_only:
            _say_env(data)
            _say("RabbitMQ and PostgreSQL are running; Ctrl-C stops both")
            threading.Event().wait()
        migrate.upgrade(running.database_url)
        if not apply_directory({**os.environ, **environment}, EXAMPLE):
            _say("the directory stays as it is")
        inherited = runner_environment.inherited_variables(running.database_url)
        return _serve(data, environment, create_users(running, _RUNNER_NAME), chosen, inherited)
    return 0


class Ports(NamedTuple):
    """The TCP ports of the API, and of each process's metrics and health; ``ops`` is the worker's."""

    api: int
    ops: int
    api_ops: int
    runner_ops: int


def choose_ports() -> Ports:
    """Return free ports: ``TASKHERD_API_PORT``, and ``TASKHERD_OPS_PORT`` with the two that follow it.

    In place of one that is taken, and of 0, is any other.

    Raises:
        Misconfigured: a setting is wrong.
        Unavailable: if no port is free.
    """
    settings = load("amqp_prefix")
    ops = min(settings.ops_port, _MAX_PORT - 2)
    return Ports(*ports.find_free([settings.api_port, *([ops, ops + 1, ops + 2] if ops else [0, 0, 0])]))


def write_env(data: Path, running: services.Services, ops_port: int) -> dict[str, str]:
    """Write the file ``env`` into the folder, for a shell to source, and return the variables it sets."""
    return _write_env_file(
        data,
        {
            services.DATABASE_URL: running.database_url,
            services.AMQP_URL: running.amqp_url,
            "TASKHERD_SECRET_KEY": os.environ.get("TASKHERD_SECRET_KEY") or _secret_key(data / "secret_key"),
            "TASKHERD_METRICS_URL": f"http://{ports.HOST}:{ops_port}/metrics",
        },
    )


def _write_env_file(data: Path, environment: dict[str, str]) -> dict[str, str]:
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    _write_private(data / "env", "".join(lines))
    return environment


def create_users(running: services.Services, runner: str, pool: str | None = None) -> dict[str, dict[str, str]]:
    """Create a RabbitMQ user for each process, and return the variables that each command gets in addition.

    The file ``env`` keeps the URL of the developer's user. Settings of the environment that name senders stay. At an
    external broker no user is created; a line says what that means.
    """
    if running.rabbit is None:
        shared = f"worker, API and runner share the RabbitMQ user of {broker_users.AMQP_URL}"
        _say(f"{shared}: who reads it can send commands, and {broker_users.COMMAND_SENDERS} cannot tell them apart")
    settings = load("amqp_prefix")
    variables = broker_users.create(running, settings.amqp_prefix, (pool or settings.runner_pool, runner))
    if variables and os.environ.get(broker_users.COMMAND_SENDERS):
        del variables["worker"][broker_users.COMMAND_SENDERS]
    return variables


def apply_directory(environ: Mapping[str, str], file: Path, *options: str) -> bool:
    """Apply a directory file. Return False, with the reason on stderr, if that was refused.

    Without ``ALLOW_DEACTIVATE`` it is refused where people have loaded more than the file has.
    """
    command = [sys.executable, "-m", "taskherd", "directory", "apply", *options, str(file)]
    return subprocess.run(command, env=environ, timeout=60, check=False).returncode == 0


@contextmanager
def worker(data: Path, environment: Mapping[str, str], ops_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process during the block, with its log on this terminal; SIGTERM stops it at the end."""
    with _process(data, "worker", {**environment, "TASKHERD_OPS_PORT": str(ops_port)}) as process:
        yield process


def process_environment(command: str, environ: Mapping[str, str], inherited: Collection[str]) -> dict[str, str]:
    """Return the environment for ``taskherd COMMAND``: a runner gets what it needs, and what its templates inherit."""
    return runner_environment.select(environ, inherited) if command == "runner" else dict(environ)


@contextmanager
def _process(
    data: Path, command: str, environment: Mapping[str, str], inherited: Collection[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "taskherd", command],
        env=processes.marked(process_environment(command, {**os.environ, **environment}, inherited), _home(data)),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.stop(process, gently=signal.SIGTERM, within=_GRACE)


def _serve(
    data: Path,
    environment: dict[str, str],
    users: Mapping[str, Mapping[str, str]],
    chosen: Ports,
    inherited: Collection[str],
) -> int:
    """Run a worker, and once it is ready the API and a runner, until one exits unexpectedly. Return its code, or 1.

    Before, what the API and the runner need of the broker may be missing, of which they would warn.

    ``users`` are the variables that each of them gets in addition, ``inherited`` the names that templates inherit.
    """
    own = {command: {**environment, **users.get(command, {})} for command in ("worker", "api", "runner")}
    url = f"http://{ports.HOST}:{chosen.api}"
    api_environment = {**own["api"], "TASKHERD_API_PORT": str(chosen.api), "TASKHERD_OPS_PORT": str(chosen.api_ops)}
    runner_settings = {**own["runner"], **_runner_settings(data, url), "TASKHERD_OPS_PORT": str(chosen.runner_ops)}
    isolation, notice = isolate_agents(data, runner_settings["PATH"])
    runner_settings |= isolation
    with worker(data, own["worker"], chosen.ops) as worker_process:
        token = _first_token({**os.environ, **environment})
        _write_env_file(data, {**environment, "TASKHERD_URL": url, **({"TASKHERD_TOKEN": token} if token else {})})
        _await(worker_process, lambda: health.request(chosen.ops, "/readyz")[0], "the worker is not ready")
        with (
            _process(data, "api", api_environment) as api,
            _ending_agents(data),
            _process(data, "runner", runner_settings, inherited) as runner,
        ):
            what = f"the API does not accept connections on port {chosen.api}"
            _await(api, lambda: processes.listens(api.pid, chosen.api), what)
            for line in first_steps.lines(url, token):
                _say(line)
            _say_env(data)
            if notice:
                _say(notice)
            pids = f"{worker_process.pid}, {api.pid} and {runner.pid}"
            _say(f"worker, API and runner are running as processes {pids}; Ctrl-C stops everything")
            return _wait_for_exit({"worker": worker_process, "api": api, "runner": runner})


def _first_token(environ: Mapping[str, str]) -> str:
    """Return a token of the example user, or "" if the directory is another one, without that user."""
    try:
        return first_steps.token(environ)
    except Unavailable as error:
        _say(str(error))
        return ""


def _runner_settings(data: Path, url: str) -> dict[str, str]:
    """Return the runner's settings; its PATH includes the folder of this Python, so that example agents find it."""
    return {
        "TASKHERD_RUNNER_NAME": _RUNNER_NAME,
        "TASKHERD_RUNNER_ROOT": str(_agents(data)),
        "TASKHERD_AGENT_API_URL": url,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


@contextmanager
def _ending_agents(data: Path) -> Iterator[None]:
    """End all agents after the block; they outlive their runner, here as in production."""
    try:
        yield
    finally:
        _end_agents(data)


def _wait_for_exit(running: Mapping[str, subprocess.Popen[bytes]]) -> int:
    """Wait until one of the processes exits, and return its exit code, or 1 if that is 0."""
    while True:
        for name, process in running.items():
            code = process.poll()
            if code is not None:
                _say(f"the {name} exited unexpectedly with code {code}; its log above says why")
                return code or 1
        time.sleep(_POLL_INTERVAL)


def _await(process: subprocess.Popen[bytes], is_up: Callable[[], bool], problem: str) -> None:
    """Wait until a process is up. Raise ``Unavailable`` with the problem if it has exited, or takes too long."""
    deadline = time.monotonic() + _START_TIMEOUT
    while not is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"{problem}; its log above says why")
        time.sleep(_POLL_INTERVAL)


def _end_leftovers(data: Path) -> None:
    """End processes of this folder that a killed ``taskherd dev`` left behind; the caller has locked the folder."""
    processes.end(processes.belonging_to(_home(data)), gently=signal.SIGTERM, within=_GRACE)
    _end_agents(data)


def _end_agents(data: Path) -> None:
    processes.end(processes.with_variable(MARKER_VARIABLE, f"{_agents(data)}/"), gently=signal.SIGKILL, within=_GRACE)


def _home(data: Path) -> Path:
    return data.absolute() / "worker"


def _agents(data: Path) -> Path:
    return data.absolute() / "runner"


@contextmanager
def interruptible(announce: Callable[[str], None]) -> Iterator[None]:
    """Raise KeyboardInterrupt on the first SIGINT, SIGTERM or SIGHUP and ignore others, so that the cleanup completes.

    SIGHUP, which says that the terminal was closed, stays ignored where it was, as with nohup.

    ``announce`` is called with a line when that happens. It may fail: the terminal is gone, or the signal came while
    the same stream was written to, which refuses a second line in the middle of the first.

    In an event loop the exception is raised between two callbacks: raised within one it could end any task, also one
    inside a library that another task then waits for.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        with suppress(RuntimeError, OSError):
            announce("stopping")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise KeyboardInterrupt from None
        loop.call_soon_threadsafe(_raise_interrupt)

    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


def _secret_key(path: Path) -> str:
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


def _say_env(data: Path) -> None:
    _say(f"to use the taskherd command in another terminal, run there: . {data}/env")


def isolate_agents(data: Path, path: str) -> tuple[dict[str, str], str]:
    """Return the setting that gives agents users of their own, if root can, and a line about what they can do.

    If the environment sets it, neither is returned. ``path`` is the PATH of the agents.
    """
    name = agent_users.VARIABLE
    if os.environ.get(name):
        return {}, ""
    obstacle = "it is empty" if name in os.environ else agent_users.obstacle(_agents(data), path)
    if not obstacle:
        return {name: agent_users.RANGE}, f"agents run as users of their own ({name}={agent_users.RANGE})"
    is_root = os.geteuid() == 0
    users = f", or set {name}={agent_users.RANGE}, which was not done because {obstacle}" if is_root else ""
    reach = f"agents run as {'root' if is_root else 'your user'}: they can read your files, also {data}/env"
    return {}, f"{reach}, and so act as anyone; give their templates `run.sandbox: bwrap`{users}"


def _say(line: str) -> None:
    """Print a line, from any thread. If stdout is a closed pipe, stop everything as SIGTERM does."""
    try:
        print(f"taskherd dev: {line}", flush=True)
    except BrokenPipeError:
        _discard_stdout()
        os.kill(os.getpid(), signal.SIGTERM)
    except OSError:
        pass  # the terminal is gone, of which SIGHUP tells unless it was to be ignored


def _discard_stdout() -> None:
    """Write stdout to nowhere: what is left in its buffer would fail again at the exit, with a message.

    See https://docs.python.org/3/library/signal.html#note-on-sigpipe.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
