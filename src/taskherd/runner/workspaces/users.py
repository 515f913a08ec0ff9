"""Users of their own for agents: one for each task, of a range of ids that the operator gives the runner."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from taskherd.errors import Misconfigured, Unavailable
from taskherd.runner import privileges

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

END_TIMEOUT: Final = 10.0
"""Seconds within which the killed processes of a user must be gone."""
_POLL_INTERVAL: Final = 0.02
_CHECK_TIMEOUT: Final = 30.0
_MAX_NAMES: Final = 3
_OTHERS_MAY_ENTER: Final = 0o001


class AgentUsers:
    """The users of a runner's tasks. A user is a uid, and the gid of the same number.

    The first of the range runs nothing but the senders of signals (``privileges.kill_all``).
    """

    def __init__(self, first: int, last: int) -> None:
        self.killer_uid = first
        self._uids = range(first + 1, last + 1)
        self._held: dict[UUID, int] = {}
        self._assigning = threading.Lock()
        self._next = secrets.randbelow(len(self._uids))  # so that a user is not soon used again after a restart

    def __str__(self) -> str:
        return f"{self.killer_uid}-{self._uids[-1]}"

    def check(self, root: Path) -> None:
        """Raise ``Misconfigured`` if this process may not use the users, or they cannot reach their folders."""
        if problem := self._problem():
            raise Misconfigured("runner_agent_uids", f"{problem}; unset it to run agents as the runner's user")
        root.chmod(0o711)
        for folder in root.parents:
            if not folder.stat().st_mode & _OTHERS_MAY_ENTER:
                problem = f"the agents' users cannot enter {folder}; run `chmod o+x {folder}` or choose another folder"
                raise Misconfigured("runner_root", problem)

    def _problem(self) -> str | None:
        if missing := privileges.missing():
            return f"the runner lacks {', '.join(missing)}; run it as root or with these capabilities"
        users = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()} | {os.getuid(): "the runner's user"}
        groups = {entry.gr_gid: entry.gr_name for entry in grp.getgrall()}
        for kind, taken in (("users", users), ("groups", groups)):
            names = [taken[number] for number in sorted(taken) if self.killer_uid <= number <= self._uids[-1]]
            if names:
                shown = ", ".join(names[:_MAX_NAMES])
                return f"{self} contains the ids of existing {kind} ({shown}); choose another range"
        command = [sys.executable, "-I", "-S", privileges.__file__, "exec", str(self._uids[-1]), "/usr/bin/env", "true"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_TIMEOUT, check=False)  # noqa: S603 - fixed arguments
        if result.returncode:
            return f"no program can be run as user {self._uids[-1]} ({result.stderr.strip()[-200:]})"
        return None

    def hold(self, task_id: UUID, uid: int | None) -> None:
        """Keep the user that a task on this disk has, so that no other task gets it."""
        if uid is not None and uid in self._uids and uid not in self._held.values():
            self._held[task_id] = uid

    def assign(self, task_id: UUID) -> int:
        """Return the task's user, a free one if it has none. Raise ``Unavailable`` if none is free.

        Tasks that start at the same time, each in a thread of its own, are given theirs one after the other.
        """
        with self._assigning:
            if task_id not in self._held:
                self._held[task_id] = self._free()
            return self._held[task_id]

    def _free(self) -> int:
        """Return a user that no task has and of which no process is left."""
        held = set(self._held.values())
        for _ in self._uids:
            uid = self._uids[self._next]
            self._next = (self._next + 1) % len(self._uids)
            if uid not in held and not privileges.living(uid):
                return uid
        used = f"all {len(self._uids)} users in TASKHERD_RUNNER_AGENT_UIDS are in use"
        raise Unavailable(f"{used}; widen the range or delete tasks")

    def release(self, task_id: UUID) -> None:
        """Free the user of a task of which nothing is left."""
        self._held.pop(task_id, None)

    def end(self, task_id: UUID) -> int:
        """Kill all processes of the task's user, wait until they are gone, and return the number of those left."""
        uid = self._held.get(task_id)
        if uid is None or not privileges.living(uid):
            return 0
        deadline = time.monotonic() + END_TIMEOUT
        with suppress(OSError):  # those that are left are counted
            privileges.kill_all(uid, self.killer_uid)
        while (left := privileges.living(uid)) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        return left
