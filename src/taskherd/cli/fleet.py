"""``taskherd fleet``: pools and runners, what waits for them, workers and queues."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from taskherd.cli.output import OutputFormat, OutputOption, age, document, print_failure, print_note, printable
from taskherd.cli.tables import Column, fields, table
from taskherd.client import http
from taskherd.client.errors import ClientError

_RATES: Final = ("created", "completed", "failed")
_STATES: Final = {"not connected": "red", "behind": "yellow"}
_POOLS: Final = (
    Column("POOL"),
    Column("AGENTS"),
    Column("WAITING"),
    Column("FOR", optional=1),
    Column("QUEUED", optional=2),
    Column("TEMPLATES", optional=3, shortest=16),
)
_RUNNERS: Final = (
    Column("RUNNER"),
    Column("POOL", optional=2),
    Column("STATE", colors=_STATES),
    Column("AGENTS"),
    Column("LOST", optional=3),
    Column("QUEUED", optional=4),
    Column("OLDEST", optional=5),
    Column("HEARD", optional=1),
)
_WAITING: Final = (
    Column("TASK"),
    Column("REQUEST", optional=1),
    Column("TARGET", shortest=12),
    Column("AGE"),
    Column("ATTEMPT", optional=2),
)
_WORKERS: Final = (
    Column("WORKER"),
    Column("STATE", colors=_STATES),
    Column("SEEN", optional=1),
    Column("STARTED", optional=2),
)
_QUEUES: Final = (Column("QUEUE"), Column("MESSAGES"), Column("OLDEST", optional=1), Column("CONSUMERS", optional=2))
_REASONS: Final = (Column("REASON"), Column("LAST DAY"), Column("MEANING", optional=1, shortest=16))


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("fleet")(fleet)


def fleet(output: OutputOption = OutputFormat.TABLE) -> None:
    """Show pools and runners, what waits for them, workers and queues.

    Of the pools of your templates, through the API at TASKHERD_URL with the token in TASKHERD_TOKEN. Who is an admin of
    every organization sees all, with workers, queues and dead letters. OLDEST is for how long messages wait at most.
    """
    try:
        found = http.from_environment().request("GET", "fleet").body
    except ClientError as error:
        print_failure(error)
        raise typer.Exit(error.code) from None
    if output is OutputFormat.JSON:
        document(found)
    else:
        print_fleet(found)


def print_fleet(found: Mapping[str, Any]) -> None:
    """Print the answer of ``GET /fleet``, as tables of what there is, and notes of what is not known."""
    _summary(found)
    letters = found["dead_letters"] or {"reasons": ()}
    _section(_POOLS, [_pool(pool) for pool in found["pools"]])
    _section(_RUNNERS, [_runner(pool["name"], runner) for pool in found["pools"] for runner in pool["runners"]])
    _section(_WAITING, [_waiting(task) for task in found["waiting"]])
    _section(_WORKERS, [_worker(worker) for worker in found["workers"] or ()])
    _section(_QUEUES, [_queue(queue) for queue in found["queues"] or ()])
    _section(_REASONS, [(each["reason"], each["last_day"], each["meaning"] or "") for each in letters["reasons"]])
    _notes(found)


def _summary(found: Mapping[str, Any]) -> None:
    pools, rates = found["pools"], found["rates"]
    since = min((pool["waiting_since"] for pool in pools if pool["waiting_since"]), default=None)
    letters = found["dead_letters"] or {"messages": None, "oldest_at": None}
    fields(
        ("agents", _count(sum(pool["agents"] for pool in pools))),
        ("waiting", f"{_count(sum(pool['waiting'] for pool in pools))}, the oldest for {age(since)}" if since else ""),
        ("last day", ", ".join(f"{_count(sum(hour[name] for hour in rates))} {name}" for name in _RATES)),
        ("dead letters", _letters(letters["messages"], letters["oldest_at"]) if letters["messages"] else ""),
    )


def _letters(messages: int, oldest_at: str | None) -> str:
    return f"{_count(messages)}, the oldest for {age(oldest_at)}" if oldest_at else _count(messages)


def _section(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        typer.echo()
        table(columns, rows)


def _pool(pool: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        pool["name"],
        _count(pool["agents"]),
        _count(pool["waiting"]),
        _age(pool["waiting_since"]),
        _queued(pool["queue"]),
        ", ".join(pool["templates"]),
    )


def _runner(pool: str, runner: Mapping[str, Any]) -> tuple[str, ...]:
    queue = runner["queue"]
    return (
        runner["name"],
        pool,
        "no queue seen" if queue is None else "connected" if queue["consumers"] else "not connected",
        _count(runner["agents"]),
        _count(runner["lost"]),
        _queued(queue),
        _age(runner["waiting_since"]),
        f"{age(runner['last_heard_at'])} ago" if runner["last_heard_at"] else "never",
    )


def _waiting(task: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{task['owner_name']}/{task['name']}{' (deleted)' if task['deleted'] else ''}",
        task["type"],
        f"runner {task['runner']}" if task["runner"] else f"pool {task['pool']}",
        age(task["since"]),
        _count(task["attempt"]),
    )


def _worker(worker: Mapping[str, Any]) -> tuple[str, ...]:
    state = "up to date" if worker["drained_since"] else "behind"
    return worker["id"], state, f"{age(worker['seen_at'])} ago", f"{age(worker['started_at'])} ago"


def _queue(queue: Mapping[str, Any]) -> tuple[str, ...]:
    return queue["name"], _queued(queue), _age(queue["waiting_since"]), _count(queue["consumers"])


def _queued(queue: Mapping[str, Any] | None) -> str:
    """Return the depth of a queue, or "" if it is unknown or hidden from the caller."""
    return "" if queue is None or queue["messages"] is None else _count(queue["messages"])


def _count(number: int) -> str:
    return f"{number:,}"


def _age(since: str | None) -> str:
    return age(since) if since else ""


def _notes(found: Mapping[str, Any]) -> None:
    pools, waiting = found["pools"], sum(pool["waiting"] for pool in found["pools"])
    listed = sum(not task["deleted"] for task in found["waiting"])
    if not found["broker"]:
        print_note("RabbitMQ does not answer the API at the moment, so the depths of queues are not known.")
    if not pools:
        print_note("No pools.", "  apply a template whose run.pool names one, with: taskherd directory apply FILE.yaml")
    for name in (printable(pool["name"]) for pool in pools if not pool["runners"]):
        start = f"  start one with: TASKHERD_RUNNER_POOL={shlex.quote(name)} taskherd runner"
        print_note(f"No runner has said hello for pool {name}.", start)
    if found["workers"] == []:
        print_note("No worker has been seen in the last minutes.", "  start one with: taskherd worker")
    if waiting > listed:
        print_note(f"Only the {listed} tasks that wait longest are listed, of {_count(waiting)}.")
    if not found["sees_all"]:
        print_note("Workers, queues and dead letters are shown to admins of all organizations.")
