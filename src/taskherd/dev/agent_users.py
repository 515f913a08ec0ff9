"""Users of their own for the agents of ``taskherd dev``, where it is root and they can reach what they need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.errors import Misconfigured
from taskherd.runner.workspaces.users import AgentUsers
from taskherd.settings.isolation import parse_uids

if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE: Final = "TASKHERD_RUNNER_AGENT_UIDS"
RANGE: Final = "400000-465535"
"""Not that of the files in ``deploy/``: two runners on one machine must not share a range."""
_SUBORDINATE: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
_OTHERS_MAY_ENTER: Final = 0o001


def obstacle(root: Path, path: str) -> str:
    """Return why agents cannot have users of ``RANGE``, "" if they can.

    Then ``root``, the folder of the runner, exists, and others may enter it. ``path`` is the PATH of the agents: a
    program in a folder that is closed to others would be missing.
    """
    uids = parse_uids(RANGE)
    assert uids is not None
    if os.geteuid() != 0:
        return "taskherd dev is not root"
    if any(_overlaps(file, *uids) for file in _SUBORDINATE):
        return "/etc/subuid or /etc/subgid gives away ids of the range"
    programs = (folder for folder in map(Path, path.split(os.pathsep)) if folder.is_dir() and any(folder.iterdir()))
    modules = (entry for entry in map(Path, sys.path) if entry.is_absolute() and entry.exists())
    if closed := closed_folder((*programs, *modules, Path(sys.executable))):
        return f"other users cannot enter {closed}"
    if root.is_dir() and any(_ran_as_root(folder, *uids) for folder in root.iterdir() if folder.is_dir()):
        return f"{root} has tasks whose agents ran as root"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        AgentUsers(*uids).check(root)
    except Misconfigured as error:
        return str(error)
    return ""


def closed_folder(paths: Iterable[Path]) -> Path | None:
    """Return a folder on the way to one of the paths, or what it links to, that others may not enter."""
    for path in paths:
        ways = {path.absolute(), path.resolve()}
        for each in ways:
            folders = [each, *each.parents] if each.is_dir() else [*each.parents]
            for folder in folders:
                if not folder.stat().st_mode & _OTHERS_MAY_ENTER:
                    return folder
    return None


def _ran_as_root(task: Path, first: int, last: int) -> bool:
    """Return whether the agents of a task had no user of the range: its files would be closed to one."""
    return not first < task.stat().st_gid <= last


def _overlaps(file: Path, first: int, last: int) -> bool:
    """Return whether a file such as /etc/subuid assigns ids of the range to a user; see subuid(5)."""
    lines = [line.split(":") for line in file.read_text().splitlines()] if file.exists() else []
    given = [(int(start), int(count)) for _, start, count in (line for line in lines if len(line) == 3)]  # noqa: PLR2004 - name, first, count
    return any(start <= last and start + count > first for start, count in given)
