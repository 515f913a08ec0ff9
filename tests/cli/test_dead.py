"""``taskherd dead replay`` and ``purge``: what is not found, and what is left, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TypeAlias

import pytest
from typer.testing import CliRunner, Result

from taskherd.cli.main import app
from tests.cli.test_output_formats import publish_dead_letter

Dead: TypeAlias = Callable[..., Result]


@pytest.fixture
def dead(amqp_url: str, amqp_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Dead:
    """Return a function that runs a command of ``taskherd dead``, with three dead letters in the queue."""
    monkeypatch.setenv("TASKHERD_AMQP_URL", amqp_url)
    monkeypatch.setenv("TASKHERD_AMQP_PREFIX", amqp_prefix)
    monkeypatch.delenv("TASKHERD_DATABASE_URL", raising=False)  # no schema is there if tests are given a database
    assert CliRunner().invoke(app, ["topology", "apply"]).exit_code == 0
    for number in range(3):
        asyncio.run(publish_dead_letter(amqp_url, amqp_prefix, b"letter %d" % number))
    return lambda *words: CliRunner().invoke(app, ["dead", *words])


def ids(dead: Dead) -> list[str]:
    """Return the ids of the dead letters."""
    return [each["id"] for each in json.loads(dead("list", "-o", "json").stdout)]


@pytest.mark.parametrize(("command", "done"), [("replay", "replayed"), ("purge", "purged")])
def test_ids_that_are_not_found_are_named(dead: Dead, command: str, done: str) -> None:
    """Each on stderr, with exit code 1, and the others are done: also those beyond the limit are not found."""
    first, second, third = ids(dead)
    result = dead(command, "unknown", first)
    assert (result.exit_code, result.stdout) == (1, f"1 {done}\n")
    assert "no dead letter unknown among the oldest 1000" in result.stderr
    assert first not in result.stderr
    result = dead(command, third, "--limit", "1", "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)[done]) == (1, 0)
    assert f"no dead letter {third} among the oldest 1" in result.stderr
    assert "read more with --limit" in result.stderr
    result = dead(command, second, "--reason", "fault")
    assert (result.exit_code, f"no dead letter {second} with this reason" in result.stderr) == (1, True)
    result = dead(command, second, "--reason", "not_json")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"1 {done}\n", "")
    assert ids(dead) == [third]


@pytest.mark.parametrize(("command", "done"), [("replay", "replayed"), ("purge", "purged")])
def test_what_is_beyond_the_limit_is_said(dead: Dead, command: str, done: str) -> None:
    """A selection by reason looks at the oldest only, and says so if there are more."""
    result = dead(command, "--reason", "not_json", "--limit", "2")
    assert (result.exit_code, result.stdout) == (0, f"2 {done}\n")
    assert "Only the oldest 2 were read; read more with --limit." in result.stderr
    result = dead(command, "--reason", "not_json", "--limit", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"1 {done}\n", "")


def test_all_are_replayed_up_to_the_limit(dead: Dead) -> None:
    """``--all`` says what is left, too; a purge of all has no limit."""
    result = dead("replay", "--all", "--limit", "1")
    assert (result.exit_code, result.stdout) == (0, "1 replayed\n")
    assert "Only the oldest 1 were read" in result.stderr
    result = dead("purge", "--all", "--limit", "1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "2 purged\n", "")
