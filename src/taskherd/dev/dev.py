"""`taskherd dev`: private services and a worker on this machine, up until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from taskherd.dev import ports, processes, services
from taskherd.errors import Unavailable
from taskherd.store import migrate

DATA: Final = Path(".taskherd")
EXAMPLE_DIRECTORY: Final = Path("deploy/example-directory.yaml")
_OPS_PORT: Final = 9590
_WORKER_GRACE: Final = 30.0


def run(*, services_only: bool, data: Path = DATA) -> int:
    """Start everything, stay until Ctrl-C or SIGTERM, tear everything down; the exit code.

    Raises:
        Misconfigured: when a service can't be had or the folder is in use.
        Unavailable: when a service was found but does not start.
    """
    with suppress(KeyboardInterrupt), _one_interrupt():
        processes.end(_workers_left(data), gently=signal.SIGTERM, within=_WORKER_GRACE)
        with services.start(data, announce=_say) as running:
            (ops_port,) = ports.claim([_OPS_PORT])
            environment = write_env(data, running, ops_port)
            _say(f"for other terminals: . {data}/env")
            if services_only:
                _say("up; Ctrl-C stops both")
                threading.Event().wait()
            prepare(running.database_url, {**os.environ, **environment})
            return _work(data, environment, ops_port)
    return 0


def write_env(data: Path, running: services.Services, ops_port: int) -> dict[str, str]:
    """Write `env` into the folder, for a shell to source, and return what it sets."""
    environment = {
        services.DATABASE_URL: running.database_url,
        services.AMQP_URL: running.amqp_url,
        "TASKHERD_SECRET_KEY": os.environ.get("TASKHERD_SECRET_KEY") or _kept_secret(data / "secret_key"),
        "TASKHERD_METRICS_URL": f"http://{ports.HOST}:{ops_port}/metrics",
    }
    _write_private(data / "env", "".join(f"export {name}={shlex.quote(it)}\n" for name, it in environment.items()))
    return environment


def prepare(database_url: str, environ: Mapping[str, str]) -> None:
    """Migrate the database and, in a checkout, load the example directory; raises Unavailable if that fails."""
    migrate.upgrade(database_url)
    if EXAMPLE_DIRECTORY.exists():
        command = [sys.executable, "-m", "taskherd", "directory", "apply", str(EXAMPLE_DIRECTORY)]
        if subprocess.run(command, env=environ, timeout=60, check=False).returncode != 0:
            raise Unavailable(f"could not apply {EXAMPLE_DIRECTORY}")


@contextmanager
def worker(data: Path, environment: Mapping[str, str], ops_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process with these settings, its log on our terminal; stopped at the end, with its grace time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "taskherd", "worker"],
        env=processes.marked({**os.environ, **environment, "TASKHERD_OPS_PORT": str(ops_port)}, _worker_home(data)),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.stop(process, gently=signal.SIGTERM, within=_WORKER_GRACE)


def _work(data: Path, environment: Mapping[str, str], ops_port: int) -> int:
    with worker(data, environment, ops_port) as process:
        _say(f"worker {process.pid} started; Ctrl-C stops everything")
        code = process.wait()
        _say(f"the worker ended by itself with code {code}")
        return code or 1


def _workers_left(data: Path) -> list[processes.Process]:
    """Workers of this folder that outlived a `taskherd dev` that was killed."""
    return processes.belonging_to(_worker_home(data))


def _worker_home(data: Path) -> Path:
    return data.absolute() / "worker"


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt and ignore further ones, so that teardown finishes."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        _say("stopping")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept_secret(path: Path) -> str:
    if not path.exists():
        _write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)


def _say(line: str) -> None:
    print(f"taskherd dev: {line}", flush=True)
