"""``taskherd token list`` and ``revoke`` as people run them, on a real PostgreSQL."""

from __future__ import annotations

import re

import asyncpg
import pytest

from tests.cli.conftest import Run
from tests.harness.templates import EXAMPLE

pytestmark = pytest.mark.timeout(300)  # a busy machine needs ten seconds for each command


@pytest.fixture
def users(run: Run) -> None:
    """Load the users of the example directory, alice and bob."""
    assert run("directory", "apply", str(EXAMPLE)).returncode == 0


def create(run: Run, user: str) -> str:
    """Create a token of a user and return it."""
    ended = run("token", "create", "--user", user)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode().strip()


def listed(run: Run, *options: str) -> dict[str, tuple[str, str]]:
    """Return user and state of each token in the list, by its id."""
    ended = run("token", "list", *options)
    assert (ended.returncode, ended.stderr) == (0, b"")
    rows = re.findall(
        r"([a-z0-9]{10})\W+(alice|bob)\W+(active|revoked|expired|deactivated)\b", ended.stdout.decode(), re.IGNORECASE
    )
    return {token_id: (user, state) for token_id, user, state in rows}


@pytest.mark.usefixtures("users")
async def test_a_list_has_every_token_with_its_user_and_state(run: Run, database_url: str) -> None:
    """Of all users or of one; a token itself is never shown, only its id."""
    alices, bobs = create(run, "alice"), create(run, "bob")
    first, second = alices.partition("-")[0], bobs.partition("-")[0]
    assert listed(run) == {first: ("alice", "active"), second: ("bob", "active")}
    assert listed(run, "--user", "BOB") == {second: ("bob", "active")}
    none = run("token", "list", "--user", "nobody")
    assert (none.returncode, none.stdout) == (0, b"")
    assert none.stderr.decode().startswith("No tokens of user 'nobody'.\n")
    connection = await asyncpg.connect(database_url, timeout=30)
    await connection.execute("UPDATE api_tokens SET expires_at = now() WHERE id = $1", second)
    await connection.close(timeout=30)
    assert listed(run)[second] == ("bob", "expired")
    shown = run("token", "list").stdout.decode()
    for token in (alices, bobs):
        assert token.partition("-")[2] not in shown


@pytest.mark.usefixtures("users")
def test_a_token_is_revoked_once(run: Run) -> None:
    """By its id or by the token itself, and no other one is; a second revoke, and one of an unknown id, is refused."""
    first, second, kept = create(run, "alice"), create(run, "alice"), create(run, "bob")
    for given, token_id in ((first, first.partition("-")[0]), (second.partition("-")[0], second.partition("-")[0])):
        revoked = run("token", "revoke", given)
        assert (revoked.returncode, revoked.stdout.decode()) == (0, f"Revoked token {token_id}.\n")
        again = run("token", "revoke", given)
        assert (again.returncode, again.stdout) == (1, b"")
        assert again.stderr.decode() == (
            f"taskherd: there is no valid token '{token_id}'\n  `taskherd token list` shows all tokens\n"
        )
    assert run("token", "revoke", "nosuchtoken").returncode == 1
    assert {state for user, state in listed(run, "--user", "alice").values() if user == "alice"} == {"revoked"}
    assert listed(run, "--user", "bob") == {kept.partition("-")[0]: ("bob", "active")}


def test_tokens_of_who_leaves_and_returns(run: Run) -> None:
    """They are shown as deactivated until their user returns; what was revoked meanwhile stays so. An apply tells."""
    content = EXAMPLE.read_text()
    alone = re.sub(r"  - id: \S+\n    username: bob\n(?:    .*\n)+", "", content)
    assert run("directory", "apply", str(EXAMPLE)).returncode == 0
    kept, ended = (create(run, "bob").partition("-")[0] for _ in range(2))
    left = run("directory", "apply", "--allow-deactivate", "-", content=alone.encode())
    assert (left.returncode, left.stderr) == (0, b"")
    assert listed(run) == {kept: ("bob", "deactivated"), ended: ("bob", "deactivated")}
    assert run("token", "revoke", ended).returncode == 0
    assert listed(run) == {kept: ("bob", "deactivated"), ended: ("bob", "revoked")}
    for options in (("--dry-run",), ("-o", "json")):
        returned = run("directory", "apply", *options, str(EXAMPLE))
        assert returned.returncode == 0
        assert returned.stderr.decode().startswith("Reactivated users sign in again with 1 old token.\n")
    assert listed(run) == {kept: ("bob", "active"), ended: ("bob", "revoked")}
    assert run("directory", "apply", str(EXAMPLE)).stderr == b""
