"""The demo: start private services, a worker, the API and a runner, run the scenarios, check the results."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console
from rich.text import Text

from examples.demo import database, session, summary, templates
from examples.demo.checks import Expectation
from examples.demo.client import DemoClient
from examples.demo.processes import RUNNER, DemoProcesses
from examples.demo.scenario_runner import EFFECT_TIMEOUT
from examples.demo.scenarios import ADMIN, MEMBER, Scenario, scenarios, staying_scenarios
from taskherd.broker import diagnostics
from taskherd.broker.topology import TopologyNames
from taskherd.dev import dev, first_steps, ports, processes, runner_environment, services
from taskherd.directory_file.example import EXAMPLE
from taskherd.directory_file.parse import parse
from taskherd.errors import Misconfigured, TaskherdError, Unavailable
from taskherd.settings import load
from taskherd.store import migrate

DATA: Final = dev.DATA / "demo"
INTERRUPTED: Final = 130
STAY: Final = "STAY"
"""Environment variable with which everything stays up after the scenarios."""
_WIDTH: Final = 150
"""Columns of the output if stdout is not a terminal."""
_SETTINGS: Final = {
    "TASKHERD_AGENT_LOST_AFTER": "6s",
    "TASKHERD_MASS_SILENCE_HOLD": "5s",
    "TASKHERD_SWEEP_EVERY": "500ms",
    "TASKHERD_RUNNER_HEARTBEAT_EVERY": "2s",
    "TASKHERD_RUNNER_POOL": templates.POOL,
    "TASKHERD_LOG_FORMAT": "json",
}
"""Settings of the demo's processes; the timers are short, so that the demo takes a minute."""


@dataclass(slots=True)
class DemoResult:
    """The checked expectations, and whether both services were private."""

    expectations: list[Expectation]
    private: bool = True


def run(data: Path = DATA) -> int:
    """Run the demo and return its exit code: 0 if all expectations were met, 1 if not, 130 if interrupted.

    Raises:
        Misconfigured: if this is not a checkout, a service is not available, or another process uses the folder.
        Unavailable: if a service or process does not start, or dies.
    """
    console = _console()
    try:
        with dev.interruptible(console.print):
            result = _run(data, console)
    except KeyboardInterrupt:
        console.print("interrupted: everything was stopped")
        return INTERRUPTED
    leftovers = [
        process.pid for home in ("rabbitmq", "postgres") for process in processes.belonging_to(data.absolute() / home)
    ]
    stopped = Expectation(
        "no service process is left", not leftovers, f"still running: {leftovers}" if leftovers else "none"
    )
    summary.show(console, [stopped])
    _print_next_steps(console, data, private=result.private)
    expectations = [*result.expectations, stopped]
    failed = [each for each in expectations if not each.met]
    verdict = (
        f"{len(failed)} of {len(expectations)} expectations were not met"
        if failed
        else f"everything is as expected: {len(expectations)} of {len(expectations)} expectations were met"
    )
    console.print(Text(f"\n{verdict}", style="bold red" if failed else "bold green"))
    return 1 if failed else 0


def _run(data: Path, console: Console) -> DemoResult:
    """Start everything, run the scenarios, check the results, and stop everything but the services."""

    def announce(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    demo_scenarios = scenarios()
    announce(
        "starting RabbitMQ, PostgreSQL, a worker, the API and a runner, "
        f"then {len(demo_scenarios)} tasks with their agents; this takes about a minute"
    )
    with services.start(data, announce=announce) as running:
        (ops_port,) = ports.find_free([None])
        environment = {**dev.write_env(data, running, ops_port), **_SETTINGS}
        if running.rabbit is None:
            asyncio.run(_check_broker(running.amqp_url))
        file = _write_directory(data, demo_scenarios)
        if running.postgres is None:
            database.refuse_foreign_directory(running.database_url, parse(file.read_bytes()))
        migrate.upgrade(running.database_url)
        if not dev.apply_directory({**os.environ, **environment}, file, dev.ALLOW_DEACTIVATE):
            raise Unavailable(f"could not apply {file}")
        tokens = {person: first_steps.token({**os.environ, **environment}, person) for person in (ADMIN, MEMBER)}
        users = dev.create_users(running, RUNNER, templates.POOL)
        inherited = runner_environment.inherited_variables(running.database_url)
        with DemoProcesses(data, environment, users, inherited) as demo_processes:
            meter, *_ = demo_processes.start("worker", "api", "runner", worker_port=ops_port)
            announce(f"worker, API ({demo_processes.url}) and runner are ready; their logs are in {data}/*.log")
            announce(f"watch it in a browser at {demo_processes.url}; sign in with the token {tokens[ADMIN]}")
            names = TopologyNames(load("amqp_prefix").amqp_prefix)
            client = DemoClient(demo_processes.url, tokens)
            context = session.SessionContext(running, names, demo_scenarios, meter, demo_processes, client, console)
            expectations = _run_session(context)
            if os.environ.get(STAY):
                _stay(client, announce, f"{demo_processes.url} until Ctrl-C; token: {tokens[ADMIN]}")
            codes = demo_processes.stop()
            leftovers = demo_processes.leftovers()
        exit_codes = ", ".join(f"{command} {code}" for command, code in codes.items())
        ended = Expectation("runner, API and worker exit with 0 on SIGTERM", not any(codes.values()), exit_codes)
        gone = Expectation(
            "none of their processes is left", not leftovers, f"still running: {leftovers}" if leftovers else "none"
        )
        summary.show(console, [ended, gone])
        private = running.rabbit is not None and running.postgres is not None
        return DemoResult([*expectations, ended, gone], private=private)


def _stay(client: DemoClient, announce: Callable[[str], None], where: str) -> None:
    """Leave requests, failures and agents at work for the person who looks at the board, and wait for Ctrl-C."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_start_staying(client, announce))
        announce(f"the board stays at {where}")
        threading.Event().wait()
    asyncio.run(client.pause_all(EFFECT_TIMEOUT))  # agents outlive their runner, also those that people started


async def _start_staying(client: DemoClient, announce: Callable[[str], None]) -> None:
    """Start the tasks that stay, and say which of them wait for an answer."""
    staying = staying_scenarios()
    for scenario in staying:
        await client.create(scenario)
    await asyncio.gather(*(client.await_state(each, state, EFFECT_TIMEOUT) for each, state in staying.items()))
    for scenario in staying:
        if await client.requests(scenario):
            announce(f"{scenario.name} waits for your answer on the board")


async def _check_broker(amqp_url: str) -> None:
    """Check that an external broker can be reached; raise ``Misconfigured`` if not."""
    try:
        async with diagnostics.connect(amqp_url):
            return
    except Unavailable as error:
        raise Misconfigured(
            services.AMQP_URL, f"{error}: start it, or unset this variable to use a private one"
        ) from None


def _run_session(context: session.SessionContext) -> list[Expectation]:
    """Run the session; of several simultaneous errors raise the first of taskherd's, which says what to do."""
    try:
        return asyncio.run(session.run_session(context))
    except BaseExceptionGroup as group:
        first: BaseException | None = group.subgroup(TaskherdError)
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if first is None:
            raise
        raise first from group


def _write_directory(data: Path, demo_scenarios: Sequence[Scenario]) -> Path:
    """Write the directory file: the example's content and the demo's templates. Requires a checkout of taskherd."""
    if not Path("src/taskherd").is_dir():
        raise Misconfigured("the demo", "its agents check the source of taskherd; run it in a checkout of taskherd")
    path = data / "directory.yaml"
    example = yaml.safe_load(EXAMPLE.read_bytes())
    path.write_text(templates.directory(example, demo_scenarios, Path.cwd()))
    return path


def _console() -> Console:
    on_terminal = Console().is_terminal
    return Console(highlight=False, width=None if on_terminal else _WIDTH)


def _print_next_steps(console: Console, data: Path, *, private: bool) -> None:
    console.print(Text("\nTo explore the results:", style="bold"))
    for line in summary.next_steps(data, private=private):
        console.print(Text(f"  {line}"), soft_wrap=True)
