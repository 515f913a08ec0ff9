"""Start an agent once without a task, as a runner on this machine would start it, and leave nothing of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from taskherd.messages.work import WorkRequestOwner, WorkRequestPreset, WorkspaceStart
from taskherd.runner import journal as journals
from taskherd.runner import listeners
from taskherd.runner.agents import output
from taskherd.runner.agents.context import TAIL_BYTES
from taskherd.runner.agents.kinds import follower_class
from taskherd.runner.agents.words import last_words
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.folders import RunFolder, TaskFolder, list_tasks
from taskherd.runner.workspaces.launcher import free_port
from taskherd.runner.workspaces.run_spec import make_run_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from taskherd.directory_file.model import VersionPart
    from taskherd.directory_file.run import RunConfig
    from taskherd.runner.workspaces.isolation import Isolation
    from taskherd.runner.workspaces.processes import ExitRecord, RunSpec, ShimHandle

GRACE: Final = 2.0
"""Maximum number of seconds from SIGTERM to SIGKILL."""
END_TIMEOUT: Final = 5.0
"""Seconds within which the agent's processes must have ended after that."""
POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at an agent."""
_BUILD: Final = 1


class AgentEnded(Exception):  # noqa: N818 - it is no error here, it ends a probe
    """The agent has ended."""


@dataclass(frozen=True, slots=True)
class TrialHost:
    """What this machine gives the agent."""

    api_url: str
    environ: Mapping[str, str]
    isolation: Isolation
    root: Path
    """The folder of the trial."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An agent that is prepared, and then started."""

    run: RunConfig
    host: TrialHost
    folder: TaskFolder
    spec: RunSpec
    port: int | None

    @property
    def files(self) -> RunFolder:
        """The files of the run."""
        return self.folder.run(_BUILD)

    @asynccontextmanager
    async def started(self, deadline: float) -> AsyncIterator[None]:
        """Have the agent run, and end it.

        Raise ``OSError`` or ``Unavailable`` if it cannot be started, ``TimeoutError`` if it is not by ``deadline``, in
        seconds of the event loop.
        """
        async with asyncio.timeout_at(deadline):
            handle = await processes.start(self.files, self.spec)
        try:
            yield
        finally:
            await asyncio.shield(asyncio.ensure_future(_end(handle, self.spec.grace)))
            handle.close()

    def how_it_ended(self) -> ExitRecord | None:
        """Return how the agent has ended, None if it runs."""
        return processes.read_exit(self.files, agent_started=True) if self.files.exit.exists() else None

    async def identify_peer(self, own_port: int) -> listeners.Peer:
        """Return who has the other end of the connection from a port to that of the agent."""
        assert self.port is not None
        return await listeners.identify_peer(own_port, self.port, processes.recorded_shim(self.files), self.spec.uid)

    def raise_if_ended(self) -> None:
        """Raise ``AgentEnded`` if the agent has ended."""
        if self.how_it_ended() is not None:
            raise AgentEnded

    def last_words(self) -> str:
        """Return the last lines that the agent wrote for people."""
        texts = [output.tail(folder, TAIL_BYTES) for folder in (self.files.log, self.files.output) if folder.exists()]
        return next(filter(None, map(last_words, texts)), "")


@asynccontextmanager
async def prepared(version: VersionPart, run: RunConfig, host: TrialHost, seconds: float) -> AsyncIterator[Trial]:
    """Yield the agent of a template, ready to be started; then end what is left of it, and remove its files.

    Its shim ends it after ``seconds``, even if this process is killed. Raise ``Malformed``, ``OSError``, or
    ``Unavailable`` if it has no user.
    """
    folder = TaskFolder(host.root, uuid4())
    port = free_port() if follower_class(run).needs_port else None
    try:
        folder.create()
        uid = await asyncio.to_thread(host.isolation.assign_user, folder.task_id)
        await asyncio.to_thread(host.isolation.prepare, run, folder, uid)
        folder.write_prompt("", uid)
        request = _request(version, folder)
        spec = make_run_spec(run, request, host, folder, uid=uid, port=port, session="")
        limit = seconds if spec.timeout is None else min(seconds, spec.timeout)
        spec = replace(spec, grace=min(spec.grace, GRACE), timeout=limit)
        yield Trial(run, host, folder, spec, port)
    finally:
        await asyncio.shield(asyncio.to_thread(_remove, folder, host.isolation))


@asynccontextmanager
async def temporary_root(isolation: Isolation, runner_root: str) -> AsyncIterator[Path]:
    """Yield a temporary folder that the agents' users can enter. Raise ``Misconfigured`` if they cannot.

    Users that tasks of this machine's runner have are not given to others.
    """
    root = Path(tempfile.mkdtemp(prefix="taskherd-template-"))
    try:
        if isolation.users is not None:
            await asyncio.to_thread(isolation.users.check, root)
            with suppress(OSError):
                for task in list_tasks(Path(runner_root)):
                    journal = journals.load(task.journal)
                    isolation.hold_user(task.task_id, journal.agent_uid if journal is not None else task.owner())
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _request(version: VersionPart, folder: TaskFolder) -> WorkspaceStart:
    """Return a request to start an agent without a prompt, with the template's default preset or its first one."""
    presets = sorted(version.presets, key=lambda each: not each.default)
    preset = presets[0] if presets else None
    return WorkspaceStart(
        request_id=uuid4(),
        attempt=1,
        task_id=folder.task_id,
        task_name="template-check",
        owner=WorkRequestOwner(id=uuid4(), username="template-check"),
        build_number=_BUILD,
        build_id=uuid4(),
        template_version_id=version.id,
        run=version.run,
        prompt="",
        preset=WorkRequestPreset(id=preset.id, name=preset.name, parameters=preset.parameters) if preset else None,
        agent_token="",
    )


async def _end(handle: ShimHandle, grace: float) -> None:
    """End the agent and its descendants: SIGTERM, the grace time, SIGKILL."""
    for seconds in (grace + 1, END_TIMEOUT):
        handle.stop()  # a second request ends the grace time
        with suppress(TimeoutError):
            await asyncio.wait_for(handle.wait(), seconds)
            return


def _remove(folder: TaskFolder, isolation: Isolation) -> None:
    """End what is left of the agent, and remove its files."""
    for run in folder.list_runs():
        processes.kill_marked(run)
    isolation.end(folder.task_id, _BUILD)
    isolation.release_user(folder.task_id)
    shutil.rmtree(folder.path, ignore_errors=True)


def find_program(trial: Trial) -> str | None:
    """Return where the agent's program is, None if the agent does not find it."""
    program = trial.spec.argv[0] if not trial.spec.sandboxed else trial.run.command[0]
    if os.sep in program:
        return shutil.which(os.path.join(trial.spec.cwd, program))  # noqa: PTH118 - an absolute one stays as it is
    return shutil.which(program, path=trial.spec.env.get("PATH", os.defpath))
