"""``deploy/rabbitmq/users.py`` without what it needs; ``tests/deploy/test_roles.py`` uses its output."""

from __future__ import annotations

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
    for arguments, message in (
        ((), "PASSWORDS is a folder"),
        ((tmp_path / "missing",), "missing is not a folder"),
        ((tmp_path / "empty",), "has no password file; expected one of: worker, api, runner, provisioner"),
        ((tmp_path / "blank",), "worker is empty; expected a password"),
    ):
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert message in ended.stderr


def test_it_prints_the_users_that_have_a_password(tmp_path: Path) -> None:
    """One password file is enough."""
    (tmp_path / "runner").write_text("s3cr3t\n")
    ended = run(tmp_path)
    assert (ended.returncode, "taskherd-runner" in ended.stdout, "s3cr3t" in ended.stdout) == (0, True, False)
