"""``deploy/rabbitmq/users.py`` without what it needs; ``tests/deploy/test_roles.py`` uses its output."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "deploy" / "rabbitmq" / "users.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_it_fails_without_passwords(tmp_path: Path) -> None:
    """Without the folder, a password file or a password it prints no definitions, which would create no users."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "worker").write_text("\n")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "worker").write_text("s3cr3t\n")
    for arguments, message in (
        ((), "PASSWORDS is a folder"),
        ((tmp_path / "missing",), "missing is not a folder"),
        ((tmp_path / "empty",), "has no password file; expected one of: worker, api, operator, provisioner, runner"),
        ((tmp_path / "blank",), "worker is missing or empty; expected a password"),
        ((tmp_path / "filled", "--runner", "runner=default,r1"), "runner is missing or empty; expected a password"),
    ):
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert message in ended.stderr


def test_it_prints_the_users_that_have_a_password(tmp_path: Path) -> None:
    """One password file is enough."""
    (tmp_path / "worker").write_text("s3cr3t\n")
    ended = run(tmp_path)
    assert (ended.returncode, "taskherd-worker" in ended.stdout, "s3cr3t" in ended.stdout) == (0, True, False)


def test_a_runner_needs_its_targets(tmp_path: Path) -> None:
    """The user of a runner without a list of pools and names, or with one that could match others, is refused."""
    (tmp_path / "runner-gpu").write_text("s3cr3t\n")
    assert "add --runner runner-gpu=POOL,NAME" in run(tmp_path).stderr
    for wrong in ("runner-gpu", "runner-gpu=", "runner-gpu=a,,b", "runner-gpu=.*", "runner-gpu=a b", "api=a", "=a"):
        ended = run(tmp_path, "--runner", wrong)
        assert (ended.returncode, ended.stdout, "is wrong; expected" in ended.stderr) == (1, "", True), wrong
    printed = json.loads(run(tmp_path, "--runner", "runner-gpu=a,b-1").stdout)
    [rights] = printed["permissions"]
    assert rights["user"] == "taskherd-runner-gpu"
    for queue, readable in (("a", True), ("b-1", True), ("a-b", False), ("b", False), ("b-10", False), ("x", False)):
        assert bool(re.fullmatch(rights["read"], f"taskherd.work.{queue}")) is readable, queue
    for name in ("taskherd.reports", "taskherd.commands", "taskherdXwork.a", "taskherd.events", "amq.topic"):
        assert re.fullmatch(rights["read"], name) is None, name
        assert re.fullmatch(rights["configure"], name) is None, name


def test_installations_do_not_share_users(tmp_path: Path) -> None:
    """With another prefix, which must be one, it makes other users, for the queues of that prefix alone."""
    for name in ("worker", "api", "operator", "runner"):
        (tmp_path / name).write_text("s3cr3t\n")
    both = [json.loads(run(tmp_path, *prefix, "--runner", "runner=default,r1").stdout) for prefix in ((), ("team-b",))]
    names = [{user["name"] for user in each["users"]} for each in both]
    assert names[0] == {f"taskherd-{name}" for name in ("worker", "api", "operator", "runner")}
    assert names[1] == {f"team-b-{name}" for name in ("worker", "api", "operator", "runner")}
    for each, users in zip(both, names, strict=True):
        assert {rights["user"] for rights in each["permissions"]} == users
    for rights in both[1]["permissions"]:
        assert not any(re.search(rights[kind], "taskherd.reports") for kind in ("configure", "write", "read"))
    ended = run(tmp_path, "runner=default,r1")
    assert (ended.returncode, "expected the value of TASKHERD_AMQP_PREFIX" in ended.stderr) == (1, True)


def test_the_documented_rights_are_these() -> None:
    """The table in docs/operations.md has the patterns of users.py, unanchored and with the default prefix."""
    spec = importlib.util.spec_from_file_location("users", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    users = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(users)
    rights = users.permissions("taskherd", {"runner": ["POOL", "NAME"]})
    rows = {}
    for line in (SCRIPT.parents[2] / "docs" / "operations.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().strip("`").replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7 and cells[1].startswith("taskherd-"):
            rows[cells[1].removeprefix("taskherd-")] = tuple(cells[2:5])
    assert rows == rights
