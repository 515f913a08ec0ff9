"""The documented commands for dumps and restores, run with PostgreSQL's own programs: none loses the last good dump."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.harness.replication import find_binaries

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```sh\n(.*?)^```$", OPERATIONS)
DUMPS = [block for block in BLOCKS if "pg_dump" in block]
RESTORES = [block for block in BLOCKS if block.startswith("dump=")]
KEPT = 14
FUNCTION = next(line for block in DUMPS for line in block.splitlines() if line.startswith("as_superuser()"))
"""What the restore of a cluster has from its dump."""
PROGRAMS = {
    "docker": """case "$*" in
        compose*" -T postgres"*) while [ "${1#postgres}" = "$1" ]; do shift; done; shift; exec "$@" ;;
        *) echo "docker $*" >>calls ;;
        esac""",
    "su": 'test "$1 $2" = "postgres -c" && exec sh -c "$3"',
    "kubectl": """case "$1" in
        exec) while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
        *) echo "kubectl $*" >>calls ;;
        esac""",
    "systemctl": 'echo "systemctl $*" >>calls',
    "pg_dump": 'head -c "$BYTES" whole && exit "$STATUS"',
    "pg_restore": 'case "$*" in "-f -") exec "$PG_RESTORE" -f - ;; *) echo "pg_restore $*" >>calls ;; esac',
}
"""Those that the commands call: containers and users are this machine and this user, and a dump may fail."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def folder(tmp_path: Path, database_url: str) -> Path:
    """Return a folder with the programs, and ``whole``, a dump of a database."""
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(find_binaries().folder / "pg_dump"), "-Fc", "-f", str(tmp_path / "whole"), database_url]
    subprocess.run(command, check=True, timeout=60)
    return tmp_path


def _run(folder: Path, commands: str, size: int = 0, status: int = 0) -> int:
    """Run commands in a folder, where a dump has this size and ends with this status; return their status."""
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "PG_RESTORE": str(find_binaries().folder / "pg_restore"),
        "BYTES": str(size),
        "STATUS": str(status),
        "SUPERUSER_URL": "postgresql://nobody@nowhere/taskherd",
    }
    return subprocess.run(["sh", "-uc", commands], cwd=folder, env=environment, timeout=60, check=False).returncode


def _dumps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.dump")}


def test_every_way_to_install_has_a_dump_and_a_restore() -> None:
    """compose, its cluster, systemd and Kubernetes."""
    assert len(DUMPS) == len(RESTORES) == 4


@pytest.mark.parametrize("commands", DUMPS, ids=lambda block: block.split()[0])
def test_a_dump_that_fails_leaves_the_earlier_ones_whole(folder: Path, commands: str) -> None:
    """Whether ``pg_dump`` fails at once, in the middle, or ends early without saying so; a later one replaces it."""
    whole = (folder / "whole").read_bytes()
    for day in range(1, KEPT + 1):
        (folder / f"taskherd-2026-01-{day:02}.dump").write_bytes(whole)
    before = _dumps(folder)
    for size, status in ((0, 1), (len(whole) // 2, 1), (len(whole), 1), (0, 0), (len(whole) - 100, 0)):
        assert _run(folder, commands, size, status) != 0
        assert _dumps(folder) == before

    assert _run(folder, commands, len(whole)) == 0
    after = _dumps(folder)
    (new,) = after.keys() - before.keys()
    assert after[new] == whole
    assert sorted(after) == [*sorted(before)[1:], new]
    assert _run(folder, commands, 0, 1) != 0
    assert _dumps(folder) == after


@pytest.mark.parametrize("commands", RESTORES, ids=lambda block: block.split()[3])
def test_a_restore_reads_the_dump_before_it_removes_anything(folder: Path, commands: str) -> None:
    """Of a dump that is cut off, nothing is stopped, removed or restored; of a whole one, it goes on."""
    whole = (folder / "whole").read_bytes()
    (name,) = re.findall(r"^dump=(\S+)$", commands, re.MULTILINE)
    for content in (b"", whole[: len(whole) // 2]):
        (folder / name).write_bytes(content)
        assert _run(folder, f"{FUNCTION}\n{commands}") != 0
        assert not (folder / "calls").exists()
    (folder / name).write_bytes(whole)
    assert _run(folder, f"{FUNCTION}\n{commands}") == 0
    assert (folder / "calls").read_text().strip()
