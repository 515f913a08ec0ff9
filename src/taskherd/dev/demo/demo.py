"""`taskherd demo`: private services, a worker and a dozen agents, all real processes, watched and checked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.text import Text

from taskherd.broker import inspection
from taskherd.broker.topology import Names
from taskherd.dev import dev, ports, processes, services
from taskherd.dev.demo import show, stored, summary
from taskherd.dev.demo.crew import Crew
from taskherd.dev.demo.meter import Meter
from taskherd.dev.demo.verdict import Finding
from taskherd.errors import Misconfigured, TaskherdError, Unavailable
from taskherd.settings import load
from taskherd.store import directory

DATA: Final = dev.DATA / "demo"
INTERRUPTED: Final = 130
_WIDE: Final = 150
_READY_WITHIN: Final = 40.0
_WORKER_GRACE: Final = 30.0
_SHORT_TIMERS: Final = {
    "TASKHERD_AGENT_LOST_AFTER": "6s",
    "TASKHERD_MASS_SILENCE_HOLD": "5s",
    "TASKHERD_SWEEP_EVERY": "500ms",
    "TASKHERD_LOG_FORMAT": "json",
}
"""So that a person need not wait; what silence means is the same as with the long ones."""


@dataclass(slots=True)
class Told:
    """What the demo has to say in the end."""

    findings: list[Finding]
    private: bool = True


def run(data: Path = DATA) -> int:
    """Run the demo to its end; 0 when all that was expected came, 1 when not, 130 when it was interrupted.

    Raises:
        Misconfigured: when this is no checkout, a service can't be had or the folder is in use.
        Unavailable: when something that was started does not come up, or dies.
    """
    console = _console()
    who = _directory()
    try:
        with _one_interrupt(console):
            told = _whole(data, who, console)
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped")
        return INTERRUPTED
    left = [process.pid for home in _homes(data) for process in processes.belonging_to(home)]
    ended = Finding("no process is left behind", not left, f"left: {left}" if left else "all have ended")
    summary.show(console, [ended])
    _say_where_to_look(console, data, private=told.private)
    failed = [finding for finding in [*told.findings, ended] if not finding.met]
    verdict = (
        f"{len(failed)} of {len(told.findings) + 1} expectations failed" if failed else "everything is as expected"
    )
    console.print(Text(f"\n{verdict}", style="bold red" if failed else "bold green"))
    return 1 if failed else 0


def _whole(data: Path, who: directory.Directory, console: Console) -> Told:
    """Start everything, play, judge, and end everything."""

    def announce(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    for home in _homes(data)[:1]:  # a worker that outlived a demo that was killed
        processes.end(processes.belonging_to(home), gently=signal.SIGTERM, within=_WORKER_GRACE)
    with services.start(data, announce=announce) as running:
        (ops_port,) = ports.claim([None])
        environment = {**dev.write_env(data, running, ops_port), **_SHORT_TIMERS}
        if running.rabbit is None:
            asyncio.run(_reach(running.amqp_url))
        if running.postgres is None:
            stored.refuse_a_directory_of_others(running.database_url, who)
        dev.prepare(running.database_url, {**os.environ, **environment})
        names = Names(load("amqp_prefix").amqp_prefix)
        meter = Meter(ops_port)
        with _worker(data, environment, ops_port) as process, Crew(data / "agents", environment) as crew:
            processes.await_ready(
                process, meter.is_ready, what="the worker", log=data / "worker.log", within=_READY_WITHIN
            )
            announce(
                f"worker {process.pid} is ready, its metrics on {ports.HOST}:{ops_port}; its log: {data}/worker.log"
            )
            stage = show.Stage(running, names, who, meter, crew, process, console)
            findings = _sorted_out(stage)
        left = Finding("the worker ends by itself on SIGTERM", process.returncode == 0, f"code {process.returncode}")
        summary.show(console, [left])
        return Told([*findings, left], private=running.rabbit is not None and running.postgres is not None)


async def _reach(amqp_url: str) -> None:
    """See that a broker that was given to us is there; raises Misconfigured where it is not."""
    try:
        async with inspection.connected(amqp_url):
            return
    except Unavailable as error:
        raise Misconfigured(services.AMQP_URL, f"{error}: start it, or unset this to have a private one") from None


def _sorted_out(stage: show.Stage) -> list[Finding]:
    """Play; of several things that went wrong at once the first of ours is raised, since it says what to do."""
    try:
        return asyncio.run(show.play(stage))
    except BaseExceptionGroup as group:
        known = group.subgroup(TaskherdError)
        first: BaseException | None = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if first is None:
            raise
        raise first from group


@contextmanager
def _worker(data: Path, environment: Mapping[str, str], ops_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process with its log in the folder; stopped at the end, with its grace time."""
    home = _homes(data)[0]
    with (data / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskherd", "worker"],
            env=processes.marked({**os.environ, **environment, "TASKHERD_OPS_PORT": str(ops_port)}, home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        processes.stop(process, gently=signal.SIGTERM, within=_WORKER_GRACE)


def _homes(data: Path) -> list[Path]:
    """What the demo's processes are marked with: the worker's, the agents' and the services'."""
    return [data.absolute() / name for name in ("worker", "agents", "rabbitmq", "postgres")]


def _directory() -> directory.Directory:
    """The example directory; it is there in a checkout, whose source the agents check."""
    if not (dev.EXAMPLE_DIRECTORY.exists() and Path("src/taskherd").is_dir()):
        raise Misconfigured("taskherd demo", "its agents check this project's source: run it in a checkout of taskherd")
    return directory.parse(dev.EXAMPLE_DIRECTORY.read_bytes())


def _console() -> Console:
    on_terminal = Console().is_terminal
    return Console(highlight=False, width=None if on_terminal else _WIDE)


def _say_where_to_look(console: Console, data: Path, *, private: bool) -> None:
    console.print(Text("\nTo look further:", style="bold"))
    for line in summary.further(data, private=private):
        console.print(Text(f"  {line}"), soft_wrap=True)


@contextmanager
def _one_interrupt(console: Console) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt and ignore further ones, so that teardown finishes."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        console.print("stopping")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
