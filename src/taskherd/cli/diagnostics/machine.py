"""Check what a runner needs of its machine: its name, its folder, processes, cgroups and users."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.cli.diagnostics.findings import Finding, error, note, ok
from taskherd.runner.app import default_name
from taskherd.runner.workspaces.cgroups import CONTROLLERS
from taskherd.settings.isolation import parse_uids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from taskherd.settings import Settings

MIN_FREE: Final = 256 * 1024 * 1024
"""Free bytes below which a runner cannot be expected to work."""
LITTLE_FREE: Final = 2 * 1024 * 1024 * 1024
"""Free bytes below which there is a warning."""
MIN_INODES: Final = 10_000
"""Free inodes below which there is a warning: a workspace with a git clone uses thousands."""
SUBORDINATE_IDS: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
"""What users of this machine may become in containers of their own; Debian gives the second one 165536 to 231071."""
_GIB: Final = 1024**3


async def check_machine(settings: Settings) -> AsyncIterator[Finding]:
    """Check this machine for a runner. Nothing is written."""
    for finding in await _in_daemon_thread(settings):
        yield finding


async def _in_daemon_thread(settings: Settings) -> list[Finding]:
    """Run the checks in a thread that the end of the process does not wait for: a dead network file system blocks."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[Finding]] = loop.create_future()

    def run() -> None:
        findings = [
            _name(settings),
            _folder(Path(settings.runner_root)),
            _processes(),
            _limits(settings.runner_cgroup),
            check_agent_users(settings.runner_agent_uids),
        ]
        loop.call_soon_threadsafe(lambda: None if result.done() else result.set_result(findings))

    threading.Thread(target=run, name="machine", daemon=True).start()
    return await result


def _name(settings: Settings) -> Finding:
    name = settings.runner_name or default_name()
    if name == settings.runner_pool:
        return error("runner's name", f"{name} is also the name of its pool", "set another TASKHERD_RUNNER_NAME")
    return ok("runner's name", f"{name}, in the pool {settings.runner_pool}")


def _folder(root: Path) -> Finding:
    root = root.absolute()
    what = f"folder {root}"
    try:
        existing = next(each for each in (root, *root.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        inodes = os.statvfs(existing)
    except OSError as problem:
        return error(what, f"cannot be used ({problem.strerror})", "set TASKHERD_RUNNER_ROOT to a writable folder")
    if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        advice = "run doctor as the runner's user, and set TASKHERD_RUNNER_ROOT to a folder that this user may write"
        return error(what, f"{existing} is not a folder that this user may write", advice)
    found = f"writable, {free / _GIB:.1f} GiB free"
    if free < MIN_FREE:
        return error(what, found, "free disk space")
    if free < LITTLE_FREE or (inodes.f_files and inodes.f_favail < MIN_INODES):
        return note(what, f"{found}, {inodes.f_favail} inodes", "free disk space: workspaces and logs need it")
    return ok(what, found)


def _processes() -> Finding:
    """Check what the shims use: pidfds, and the process table in /proc."""
    what = "process control"
    try:
        os.close(os.pidfd_open(os.getpid()))
        Path("/proc/self/stat").read_bytes()
        Path("/proc/self/environ").read_bytes()
    except (OSError, AttributeError) as problem:
        return error(what, f"not usable ({problem})", "run on Linux 5.3 or newer, with /proc mounted")
    return ok(what, "/proc and pidfds work")


def _limits(cgroup: str) -> Finding:
    """Check the delegated cgroup that the settings name, if any."""
    what = "limits of agents"
    if not cgroup:
        return ok(what, "for each process separately (TASKHERD_RUNNER_CGROUP is not set)")
    root = Path(cgroup)
    advice = f"delegate a cgroup v2 with the controllers {' and '.join(sorted(CONTROLLERS))} to the runner's user"
    try:
        missing = CONTROLLERS - set((root / "cgroup.controllers").read_text().split())
    except OSError as problem:
        return error(what, f"{root} cannot be used ({problem.strerror})", advice)
    if missing:
        return error(what, f"{root} lacks the controllers {', '.join(sorted(missing))}", advice)
    if not all(os.access(each, os.W_OK) for each in (root, root / "cgroup.subtree_control")):
        return error(what, f"this user may not write {root}", advice)
    return ok(what, f"cgroups in {root}")


def check_agent_users(uids: str, files: Sequence[Path] = SUBORDINATE_IDS) -> Finding:
    """Check that no user of this machine may become a user of agents in containers of its own (subuid(5))."""
    what, chosen = "users of agents", parse_uids(uids)
    if chosen is None:
        return ok(what, "the runner's own (TASKHERD_RUNNER_AGENT_UIDS is not set)")
    first, last = chosen
    owners = {
        f"{owner} in {file}"
        for file in files
        for owner, start, count in _subordinate_ids(file)
        if start <= last and first < start + count
    }
    if owners:
        advice = "choose a range of TASKHERD_RUNNER_AGENT_UIDS that these files do not have, while there are no tasks"
        return error(what, f"{uids} overlaps the ids of {', '.join(sorted(owners))}", advice)
    return ok(what, uids)


def _subordinate_ids(file: Path) -> list[tuple[str, int, int]]:
    """Return the owner, the first id and the number of ids of each valid line; none if the file cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    valid = filter(None, (re.fullmatch(r"([^:]*):([0-9]{1,10}):([0-9]{1,10})", line) for line in lines))
    return [(match[1], int(match[2]), int(match[3])) for match in valid]
