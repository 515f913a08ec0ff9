"""What a shim is given to run an agent: from the template, the request, the task's folder, the runner's isolation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from taskherd.runner.workspaces import environment
from taskherd.runner.workspaces.processes import RunSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.directory_file.run import RunConfig
    from taskherd.messages.work import WorkspaceStart
    from taskherd.runner.workspaces.folders import TaskFolder
    from taskherd.runner.workspaces.isolation import Isolation


class AgentHost(Protocol):
    """What a runner's machine gives each of its agents."""

    @property
    def api_url(self) -> str:
        """The API's address."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables of which a template inherits some."""

    @property
    def isolation(self) -> Isolation:
        """What separates agents from each other and from the runner."""


def make_run_spec(
    run: RunConfig,
    request: WorkspaceStart,
    host: AgentHost,
    folder: TaskFolder,
    *,
    uid: int | None,
    port: int | None,
    session: str,
) -> RunSpec:
    """Return how an agent is run, and create its cgroup.

    ``uid``: its own user, None: the runner's; ``session``: the one to be continued, or "". Raise ``Malformed`` if the
    template's placeholders cannot be substituted, ``OSError`` if there is no cgroup.
    """
    isolation, limits = host.isolation, run.limits
    is_sandboxed, cgroups = run.sandbox == "bwrap", isolation.cgroups
    home = folder.home if is_sandboxed or uid is not None else None
    tmp = Path("/tmp") if is_sandboxed else folder.tmp if uid is not None else None  # noqa: S108 - the sandbox's own
    paths = environment.LaunchPaths(folder.work, folder.prompt, host.api_url, port, home, tmp, session)
    cwd = environment.workdir(run, paths)
    argv = environment.command(run, request, paths)
    return RunSpec(
        argv=isolation.sandbox.wrap(argv, folder, cwd, run.network) if is_sandboxed else argv,
        cwd=cwd,
        env=environment.variables(run, request, paths, host.environ),
        grace=run.grace,
        timeout=limits.timeout,
        memory=limits.memory if cgroups is None else None,
        cpu=limits.cpu if cgroups is None else None,
        cgroup=cgroups.create(request.task_id, request.build_number, limits) if cgroups else None,
        stdin={"pipe": None, "none": Path(os.devnull), "prompt": folder.prompt}[run.stdin_kind],
        uid=uid,
        killer_uid=isolation.users.killer_uid if isolation.users else None,
        sandboxed=is_sandboxed,
        protocol=run.speaks,
    )
