"""`taskherd demo`: private services, a worker, an API, a runner and its agents, all real, watched and checked."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import yaml
from rich.console import Console
from rich.text import Text

from examples.demo import database, session, summary, templates
from examples.demo.checks import Expectation
from examples.demo.client import DemoClient
from examples.demo.processes import DemoProcesses
from examples.demo.scenarios import Scenario, scenarios
from taskherd.broker import diagnostics
from taskherd.broker.topology import TopologyNames
from taskherd.dev import dev, first_steps, ports, processes, services
from taskherd.errors import Misconfigured, TaskherdError, Unavailable
from taskherd.settings import load
from taskherd.store import directory

DATA: Final = dev.DATA / "demo"
INTERRUPTED: Final = 130
_WIDE: Final = 150
_SETTINGS: Final = {
    "TASKHERD_AGENT_LOST_AFTER": "6s",
    "TASKHERD_MASS_SILENCE_HOLD": "5s",
    "TASKHERD_SWEEP_EVERY": "500ms",
    "TASKHERD_RUNNER_HEARTBEAT_EVERY": "2s",
    "TASKHERD_RUNNER_POOL": templates.POOL,
    "TASKHERD_LOG_FORMAT": "json",
}
"""Short timers, so that a person need not wait; what silence means is the same as with the long ones."""


@dataclass(slots=True)
class DemoResult:
    """What the demo has to say in the end."""

    findings: list[Expectation]
    private: bool = True


def run(data: Path = DATA) -> int:
    """Run the demo to its end; 0 when all that was expected came, 1 when not, 130 when it was interrupted.

    Raises:
        Misconfigured: when this is no checkout, a service can't be had or the folder is in use.
        Unavailable: when something that was started does not come up, or dies.
    """
    console = _console()
    try:
        with _one_interrupt(console):
            told = _whole(data, console)
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped")
        return INTERRUPTED
    left = [
        process.pid for home in ("rabbitmq", "postgres") for process in processes.belonging_to(data.absolute() / home)
    ]
    ended = Expectation("no process is left behind", not left, f"left: {left}" if left else "all have ended")
    summary.show(console, [ended])
    _say_where_to_look(console, data, private=told.private)
    failed = [finding for finding in [*told.findings, ended] if not finding.met]
    verdict = (
        f"{len(failed)} of {len(told.findings) + 1} expectations failed" if failed else "everything is as expected"
    )
    console.print(Text(f"\n{verdict}", style="bold red" if failed else "bold green"))
    return 1 if failed else 0


def _whole(data: Path, console: Console) -> DemoResult:
    """Start everything, play, judge, and end everything."""

    def announce(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    cast = scenarios()
    with services.start(data, announce=announce) as running:
        (ops_port,) = ports.claim([None])
        environment = {**dev.write_env(data, running, ops_port), **_SETTINGS}
        if running.rabbit is None:
            asyncio.run(_reach(running.amqp_url))
        file = _directory(data, cast)
        if running.postgres is None:
            database.refuse_a_directory_of_others(running.database_url, directory.parse(file.read_bytes()))
        dev.prepare(running.database_url, {**os.environ, **environment}, file)
        token = first_steps.token({**os.environ, **environment})
        with DemoProcesses(data, environment) as house:
            meter, *_ = house.start("worker", "api", "runner", worker_port=ops_port)
            announce(f"a worker, the API at {house.url} and a runner are ready; their logs: {data}/*.log")
            names = TopologyNames(load("amqp_prefix").amqp_prefix)
            stage = session.SessionContext(running, names, cast, meter, house, DemoClient(house.url, token), console)
            findings = _run_session(stage)
            codes = house.end()
            left = house.left()
        told = ", ".join(f"{command} {code}" for command, code in codes.items())
        ended = Expectation("runner, api and worker end by themselves on SIGTERM", not any(codes.values()), told)
        gone = Expectation("nothing of them is left", not left, f"left: {left}" if left else "all have ended")
        summary.show(console, [ended, gone])
        return DemoResult([*findings, ended, gone], private=running.rabbit is not None and running.postgres is not None)


async def _reach(amqp_url: str) -> None:
    """See that a broker that was given to us is there; raises Misconfigured where it is not."""
    try:
        async with diagnostics.connected(amqp_url):
            return
    except Unavailable as error:
        raise Misconfigured(services.AMQP_URL, f"{error}: start it, or unset this to have a private one") from None


def _run_session(stage: session.SessionContext) -> list[Expectation]:
    """Play; of several things that went wrong at once the first of ours is raised, since it says what to do."""
    try:
        return asyncio.run(session.run_session(stage))
    except BaseExceptionGroup as group:
        known = group.subgroup(TaskherdError)
        first: BaseException | None = known
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if first is None:
            raise
        raise first from group


def _directory(data: Path, cast: Sequence[Scenario]) -> Path:
    """Write the directory file. In a checkout the example is there, and the source that the agents look at."""
    if not (dev.EXAMPLE_DIRECTORY.exists() and Path("src/taskherd").is_dir()):
        raise Misconfigured("taskherd demo", "its agents check this project's source: run it in a checkout of taskherd")
    path = data / "directory.yaml"
    example = yaml.safe_load(dev.EXAMPLE_DIRECTORY.read_bytes())
    path.write_text(templates.directory(example, cast, Path.cwd()))
    return path


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
