"""What separates agents from each other and from the runner: users of their own, sandboxes and cgroups.

``docs/runner.md`` (Trust) has a table of what holds with which of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.directory_file.run import RunConfig
    from taskherd.runner.workspaces.cgroups import Cgroups
    from taskherd.runner.workspaces.folders import TaskFolder
    from taskherd.runner.workspaces.sandbox import Sandbox
    from taskherd.runner.workspaces.users import AgentUsers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation that a runner gives; without ``users``, all agents run as the runner's own user."""

    sandbox: Sandbox
    users: AgentUsers | None = None
    cgroups: Cgroups | None = None

    def describe(self) -> dict[str, str]:
        """Return what the log says about it at the runner's start."""
        try:
            self.sandbox.check("host")
            sandbox = "bwrap, for templates that demand it"
        except Unavailable as error:
            sandbox = f"unavailable: {error}"
        return {
            "agent_users": str(self.users) if self.users else "the runner's own",
            "sandbox": sandbox,
            "limits": self._describe_limits(),
        }

    def _describe_limits(self) -> str:
        if self.cgroups is None:
            return "rlimit and CPU affinity, for each process"
        missing = sorted(self.cgroups.missing_controllers)
        return f"unavailable: the cgroup lacks the controllers {', '.join(missing)}" if missing else "cgroup v2"

    def check(self, run: RunConfig) -> None:
        """Raise ``Unavailable`` if the template demands more than this runner can give."""
        self._check_limits(run)
        if run.sandbox == "none":
            return
        try:
            self.sandbox.check(run.network)
        except Unavailable as error:
            demand = f"`sandbox: {run.sandbox}`" + (" and `network: none`" if run.network == "none" else "")
            raise Unavailable(f"the template has {demand}, which this runner cannot give: {error}") from error

    def _check_limits(self, run: RunConfig) -> None:
        for name in sorted(self.cgroups.missing_controllers if self.cgroups is not None else ()):
            if getattr(run.limits, name):
                raise Unavailable(
                    f"the template has `limits.{name}`, which this runner cannot give: its cgroup lacks the controller "
                    f"{name}; delegate it, or unset TASKHERD_RUNNER_CGROUP to limit each process of an agent by itself"
                )

    def hold_user(self, task_id: UUID, uid: int | None) -> None:
        """Keep the user of a task that is on this disk."""
        if self.users is not None:
            self.users.hold(task_id, uid)

    def assign_user(self, task_id: UUID) -> int | None:
        """Return the user of the task's agents; None: the runner's. Raise ``Unavailable`` if there is none left."""
        return self.users.assign(task_id) if self.users is not None else None

    def release_user(self, task_id: UUID) -> None:
        """Free the user of a task of which nothing is left."""
        if self.users is not None:
            self.users.release(task_id)

    def prepare(self, run: RunConfig, folder: TaskFolder, uid: int | None) -> None:
        """Create the folders of a task's agent. Raise ``OSError`` if that fails."""
        if uid is not None or run.sandbox != "none":
            folder.prepare(uid)
            folder.make_workdir(run.workdir, uid)
        else:
            (folder.work / run.workdir).mkdir(parents=True, exist_ok=True)

    def end(self, task_id: UUID, build_number: int) -> int:
        """Kill all processes of a task's user and of its runs' cgroups, up to this build's.

        Return the number of those that are left.
        """
        left = self.cgroups.remove(task_id, build_number) if self.cgroups is not None else 0
        if self.users is not None:
            left = max(left, self.users.end(task_id))
        if left:
            log.warning("processes of an agent could not be killed", task_id=str(task_id), processes=left)
        return left
