"""``-o json`` of every command that prints a result, on a real RabbitMQ and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import aio_pika
import pytest
import typer
from typer.testing import CliRunner

from taskherd.cli.main import GROUPS, SINGLE, Commands, app
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import Origin, encode
from tests.harness.templates import EXAMPLE

Invoke: TypeAlias = Callable[..., Any]

APPLY = ("directory", "apply", str(EXAMPLE))
CHECK = f"template check claude --file {EXAMPLE}"
LETTER = {
    *("id", "reason", "detail", "time", "queue", "exchange", "routing_key", "sender", "index", "length", "truncated")
}
COMMANDS = {
    "db upgrade": {"found", "needed", "status"},
    "db current": {"found", "needed", "status"},
    "db check": {"found", "needed", "status"},
    f"directory apply {EXAMPLE}": {"dry_run", "changes", "added", "changed", "reactivated", "deactivated", "revision"},
    f"directory apply --dry-run {EXAMPLE}": {
        *("dry_run", "changes", "added", "changed", "reactivated", "deactivated", "not_allowed")
    },
    "topology apply": {"exchanges", "queues"},
    "dead list": LETTER,
    "dead show LETTER": {*LETTER, "body"},
    "dead replay LETTER": {"replayed", "stayed"},
    "dead purge LETTER": {"purged"},
    CHECK: {"check", "result", "found", "advice"},
    "db role-settings": {"statements", "applied"},
    "token create --user alice": {"id", "token"},
    "token list": {"id", "user", "state", "created_at", "expires_at", "last_used_at"},
    "token revoke TOKEN": {"revoked"},
    "doctor": {"check", "result", "found", "advice"},
    "config": {"variable", "value", "source", "default", "expected", "description"},
}
"""Commands, and the fields of the object that each prints, or of each object in its list."""
LISTS = ("dead list", "token list", "doctor", "config", CHECK)
FAILING = {"doctor": 1, CHECK: 1}
"""Exit codes other than 0. Here no worker runs and no agent is installed, and the findings say so in JSON."""
WITHOUT_RESULT = {"worker", "api", "runner", "mcp", "dev", "directory example", "fleet", "usage", "requests"}
"""Commands that run until they are stopped, one that prints a file, and those that are tested beside their API."""


@pytest.fixture
def invoke(database_url: str, amqp_url: str, amqp_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Return a function that runs a command with ``-o json`` and returns what it prints."""
    monkeypatch.setenv("TASKHERD_DATABASE_URL", database_url)
    monkeypatch.setenv("TASKHERD_AMQP_URL", amqp_url)
    monkeypatch.setenv("TASKHERD_AMQP_PREFIX", amqp_prefix)

    def run(*words: str, exit_code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*words, "-o", "json"])
        assert result.exit_code == exit_code, result.output
        assert len(result.stdout.splitlines()) == 1
        return json.loads(result.stdout)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_json(invoke: Invoke, amqp_url: str, amqp_prefix: str, command: str) -> None:
    """One line of JSON on stdout and nothing else, with the same fields each time."""
    replaced: dict[str, str] = {}
    if command.startswith("token"):
        invoke(*APPLY)
        replaced["TOKEN"] = invoke("token", "create", "--user", "bob")["id"]
    if command.startswith("dead"):
        invoke("topology", "apply")
        asyncio.run(publish_dead_letter(amqp_url, amqp_prefix, b"\x1b[2J \xff \n two lines"))
        replaced["LETTER"] = invoke("dead", "list")[0]["id"]
    printed = invoke(*(replaced.get(word, word) for word in command.split()), exit_code=FAILING.get(command, 0))
    assert isinstance(printed, list) == (command in LISTS)
    for each in printed if isinstance(printed, list) else [printed]:
        assert set(each) == COMMANDS[command]
    assert printed


def test_every_command_that_prints_a_result_prints_json() -> None:
    """``taskherd task`` has a test of its own, beside the API that it needs."""
    tested = {name for name in _names() if any(each.startswith(name) for each in COMMANDS)}
    assert set(_names()) - tested == WITHOUT_RESULT


def _names() -> Iterator[str]:
    root = typer.main.get_command(app)
    assert isinstance(root, Commands)
    yield from SINGLE
    for group in set(GROUPS) - {"task"}:
        for name in root.get_command(None, group).commands:
            yield f"{group} {name}"


async def publish_dead_letter(amqp_url: str, prefix: str, content: bytes) -> None:
    """Publish a dead letter that can be replayed."""
    origin = Origin(f"{prefix}.reports", f"{prefix}.reports", "key")
    body, headers = encode(content, DeadLetterReason.NOT_JSON, "not JSON", origin)
    connection = await aio_pika.connect(amqp_url, timeout=30)
    channel = await connection.channel()
    await channel.default_exchange.publish(aio_pika.Message(body, headers=headers), f"{prefix}.dead", timeout=30)
    await connection.close()
