"""Commands that an agent runs through the runner (ACP: terminals): each under a shim of its own, beside the agent.

Such a command has the agent's user, sandbox and cgroup, so it can do what the agent itself could do, and no more. Its
shim lets it survive the runner, as the agent does.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.runner.workspaces import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from taskherd.runner.workspaces.folders import RunFolder
    from taskherd.runner.workspaces.processes import RunSpec, ShimHandle

GRACE: Final = 2.0
"""Seconds from SIGTERM to SIGKILL."""
SEGMENT_BYTES: Final = 64 * 1024
"""Size of an output file in bytes; of a command's output its shim keeps 15 full ones and the one that it writes."""
END_TIMEOUT: Final = 10.0
"""Seconds within which the shims of commands that are killed must have ended."""
_POLL_INTERVAL: Final = 0.02


@dataclass(frozen=True, slots=True)
class TerminalCommand:
    """A command, its working directory, and the variables that it has in addition to the agent's."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]


def make_terminal_spec(
    agent: RunSpec, command: TerminalCommand, wrap: Callable[[Sequence[str], Path], Sequence[str]]
) -> RunSpec:
    """Return how a command is run beside an agent; ``wrap`` puts it into the agent's kind of sandbox."""
    return replace(
        agent,
        argv=wrap(command.argv, command.cwd),
        cwd=command.cwd,
        own_env=command.env,
        grace=GRACE,
        timeout=None,
        stdin=Path(os.devnull),
        protocol=False,
        beside_agent=True,
        segment_bytes=SEGMENT_BYTES,
    )


def end_all(run: RunFolder) -> int:
    """Kill the commands beside the agent of a run, which has ended. Return the number of processes that are left."""
    handles = {folder.path: processes.open_running(folder) for folder in run.list_terminals()}
    for handle in filter(None, handles.values()):
        handle.stop()
        handle.stop()  # without grace
    deadline = time.monotonic() + END_TIMEOUT
    return sum(_collect(folder, handles[folder.path], deadline) for folder in run.list_terminals())


def _collect(folder: RunFolder, handle: ShimHandle | None, deadline: float) -> int:
    """Wait until a shim has ended, kill what is left, and return the number of processes that survived that."""
    agent_exit = None
    if handle is not None:
        while (agent_exit := handle.collect()) is None and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        handle.close()
    if agent_exit is None:
        return processes.kill_marked(folder)  # its shim has ended, or not started the command yet
    return agent_exit.leftover
