"""``taskherd directory apply`` and ``taskherd token create`` as people run them, on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from taskherd.dev import dev
from tests.cli.conftest import Run
from tests.harness.templates import EXAMPLE, TEMPLATES

pytestmark = pytest.mark.timeout(300)  # a busy machine needs ten seconds for each command


def applied(run: Run, content: bytes, *options: str) -> tuple[int, str, str]:
    """Apply a file from stdin; return exit code, stdout and stderr."""
    ended = run("directory", "apply", *options, "-", content=content)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


def test_the_example_is_applied_from_stdin_and_again_changes_nothing(run: Run) -> None:
    """``-`` is stdin; applying twice changes nothing; a dry run says what would change, and changes nothing."""
    example = EXAMPLE.read_bytes()
    code, shown, _ = applied(run, example, "--dry-run")
    assert code == 0
    assert shown.splitlines()[:3] == ["added organization acme", "added user alice", "added user bob"]
    assert "added preset acme/claude/v1/Default" in shown
    assert shown.splitlines()[-1] == "11 added, 0 changed, 0 reactivated, 0 deactivated; this was a dry run."
    summary = "11 added, 0 changed, 0 reactivated, 0 deactivated; the directory is at revision 1.\n"
    assert applied(run, example) == (0, summary, "")
    assert applied(run, example) == (0, "No changes; the directory is at revision 1.\n", "")
    assert run("directory", "apply", str(EXAMPLE)).stdout == b"No changes; the directory is at revision 1.\n"
    assert applied(run, example, "--dry-run") == (0, "No changes; this was a dry run.\n", "")


def test_the_shipped_templates_are_applied(run: Run) -> None:
    """Each template of ``deploy/templates`` can be put below those of the example, all of them together."""
    paths = sorted(TEMPLATES.iterdir())
    entries = [path.read_bytes().split(b"templates:\n", 1)[1] for path in paths]
    code, shown, errors = applied(run, EXAMPLE.read_bytes() + b"".join(entries))
    assert (code, errors) == (0, "")
    assert shown.startswith(f"{11 + 2 * len(paths)} added")


def test_an_invalid_file_changes_nothing(run: Run) -> None:
    """It exits with 1, whatever is allowed; control characters do not reach the terminal."""
    example = EXAMPLE.read_bytes()
    applied(run, example)
    for options, content, message in (
        ((), b"", "stdin is invalid; nothing was changed\n  the file is empty"),
        (("--allow-deactivate",), b"users: []\n", "line 1: organizations: expected at least one organization"),
        (("--dry-run",), b"a: \xff", "line 1: not UTF-8"),
        ((), example.replace(b"agent: stdio", b"agent: stdoi"), ".run.agent: Input should be 'stdio'"),
        ((), example + b'"\\e[31m": 1\n', "\\x1b[31m: Extra inputs"),
    ):
        code, shown, errors = applied(run, content, *options)
        assert (code, shown) == (1, "")
        assert message in errors
        assert "\x1b" not in errors
    assert applied(run, example)[1] == "No changes; the directory is at revision 1.\n"


def test_what_contradicts_the_directory_is_shown_with_its_line(run: Run) -> None:
    """A new id for a name that is taken, and a template that moves, in the order of the file."""
    example = EXAMPLE.read_text()
    applied(run, example.encode())
    other, new, counts = (f"7a2d9c11-58e4-4b6f-9f3a-2c8e6d4b1a{digits}" for digits in ("91", "92", "22"))
    bob = re.search(r"id: (\S+)\n +username: bob\n", example)
    assert bob is not None
    content = example.replace("\nusers:\n", f"\n  - {{id: {other}, name: other}}\nusers:\n").replace(bob[1], new)
    content = content.replace("organization: acme\n    name: counts", "organization: other\n    name: counts")
    line = {each.removeprefix("  - id: "): number for number, each in enumerate(content.splitlines(), 1)}
    code, _, errors = applied(run, content.encode(), "--dry-run")
    assert code == 1
    assert [each.split(": ")[:2] for each in errors.splitlines()[1:]] == [
        [f"  line {line[new]}", f"users {new}"],
        [f"  line {line[counts]}", f"templates {counts}"],
    ]


def test_deactivating_much_must_be_allowed(run: Run) -> None:
    """A shorter file is refused without ``--allow-deactivate``; a dry run shows what it would do."""
    example = EXAMPLE.read_bytes()
    applied(run, example)
    shorter = example[: example.index(b"templates:")]
    code, shown, errors = applied(run, shorter)
    assert (code, shown) == (1, "")
    assert "stdin would deactivate too much; nothing was changed" in errors
    assert "2 of 2 active template entries, more than a tenth" in errors
    assert "--allow-deactivate" in errors
    code, shown, _ = applied(run, shorter, "--dry-run")
    assert code == 0
    assert shown.startswith("deactivated template acme/claude\ndeactivated template acme/counts\n")
    assert "To apply this, add --allow-deactivate: it deactivates 2 of 2 active template entries" in shown
    assert "0 added, 0 changed, 0 reactivated, 6 deactivated;" in applied(run, shorter, "--allow-deactivate")[1]
    assert "0 added, 0 changed, 6 reactivated, 0 deactivated;" in applied(run, example)[1]


async def test_a_dry_run_shows_old_and_new_values(run: Run, database_url: str) -> None:
    """On one line for each entry, cut and without control characters, and never those of `run` or of URLs."""
    example = EXAMPLE.read_bytes()
    applied(run, example)
    connection = await asyncpg.connect(database_url, timeout=30, command_timeout=30)
    try:
        await connection.execute(
            "UPDATE users SET name = $1, avatar_url = 'https://x/?token=s3cr3t' WHERE username = 'alice'",
            "\u202eecila\x1b[31m\n" + "x" * 300,
        )
        await connection.execute(
            "UPDATE template_versions SET run = jsonb_set(run, '{env}', $1)", '{"set": {"A": "s3cr3t"}}'
        )
    finally:
        await connection.close(timeout=30)
    code, shown, _ = applied(run, example, "--dry-run")
    assert code == 0
    assert "s3cr3t" not in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith('changed user alice: name "\\u202eecila\\u001b[31m\\nxxx')
    assert lines[0].endswith('x…" → "Alice", avatar_url changed')
    assert len(lines[0]) < 250
    assert "changed version acme/claude/v1: run.env changed" in lines
    (change, *_) = json.loads(applied(run, example, "--dry-run", "-o", "json")[1])["changes"]
    assert change["fields"] == ["name", "avatar_url"]
    assert change["values"]["name"][1] == "Alice"


async def test_tokens_expire_unless_asked_otherwise(run: Run, database_url: str) -> None:
    """A token is valid for 90 days by default, and without end only with ``--expires never``."""
    applied(run, EXAMPLE.read_bytes())
    lifetimes: list[timedelta | None] = []
    connection = await asyncpg.connect(database_url, timeout=30, command_timeout=30)
    try:
        for options in ((), ("--expires", "12h"), ("--expires", "never")):
            ended = run("token", "create", "--user", "alice", *options)
            assert ended.returncode == 0, ended.stderr
            token_id = ended.stdout.decode().partition("-")[0]
            lifetimes.append(
                await connection.fetchval("SELECT expires_at - created_at FROM api_tokens WHERE id = $1", token_id)
            )
    finally:
        await connection.close(timeout=30)
    assert lifetimes == [timedelta(days=90), timedelta(hours=12), None]
    for wrong in ("soon", "-1d", "999999w"):
        refused = run("token", "create", "--user", "alice", "--expires", wrong)
        assert (refused.returncode, refused.stdout) == (2, b"")
        assert b"30d or 4w, or never" in refused.stderr


def test_dev_keeps_a_directory_that_people_loaded(database_url: str, tmp_path: Path) -> None:
    """The example is not applied where it would deactivate another directory, unless that is allowed."""
    environ = {**os.environ, "TASKHERD_DATABASE_URL": database_url}
    own = tmp_path / "own.yaml"
    own.write_text("organizations: [{id: 00000000-0000-0000-0000-000000000001, name: own}]\n")
    assert not dev.apply_directory(environ, tmp_path / "missing.yaml")
    assert dev.apply_directory(environ, own)
    assert not dev.apply_directory(environ, EXAMPLE)
    assert dev.apply_directory(environ, EXAMPLE, dev.ALLOW_DEACTIVATE)
