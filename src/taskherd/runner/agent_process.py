"""Turn a child of the shim into the agent: between fork and exec, in a process that has one thread."""

from __future__ import annotations

import math
import os
import resource
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskherd.runner import privileges

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

PR_SET_PDEATHSIG = 1  # see prctl(2)
OOM_SCORE = "500"


def become_agent(spec: Mapping[str, Any], streams: tuple[int, int, int], problem: int) -> NoReturn:
    """Execute the agent's program with these descriptors as stdin, stdout and stderr.

    If that fails, write why to the descriptor ``problem``, and exit.
    """
    program = spec["argv"][0]
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, descriptor in enumerate(streams):
            os.dup2(descriptor, target)
        _prepare(spec)
        os.execvpe(program, *_arguments_and_variables(spec))  # noqa: S606 - what this is for
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else program
        message = f"[Errno {error.errno}] {error.strerror}: {program if name.endswith(f'/{program}') else name!r}"
        os.write(problem, message.encode(errors="replace"))
    except BaseException as error:  # noqa: BLE001 - it must not return into the shim's code
        os.write(problem, (str(error) or type(error).__name__).encode(errors="replace"))
    finally:
        os._exit(127)


def _prepare(spec: Mapping[str, Any]) -> None:
    """Set the limits, user and folder of this process."""
    _apply_limits(spec)
    if uid := spec["uid"]:
        for descriptor in (0, 1, 2):  # so that the agent can open /dev/stdin, /dev/stdout and /dev/stderr
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.fchown(descriptor, uid, uid)
        privileges.drop(uid)
    privileges.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after ``drop``, which resets it
    os.chdir(spec["cwd"])


def _arguments_and_variables(spec: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments, the program among them, and the environment of the process to be executed.

    A sandbox gets the agent's own variables by a file that bubblewrap reads, and sets them inside: bubblewrap itself
    runs outside, where it must not load the libraries that they name. Its arguments are visible to other users.
    """
    argv, own = spec["argv"], spec["own_env"]
    if not (spec["sandboxed"] and own):
        return argv, {**os.environ, **own}
    options = "".join(f"--setenv\0{name}\0{value}\0" for name, value in own.items())
    descriptor = os.memfd_create("variables", 0)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(os.fsencode(options))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return [argv[0], "--args", str(descriptor), *argv[1:]], {**os.environ}


def _apply_limits(spec: Mapping[str, Any]) -> None:
    """Set OOM score, cgroup and rlimits."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    if cgroup := spec["cgroup"]:
        (Path(cgroup) / "cgroup.procs").write_text("0")
    if memory := spec["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(spec["open_files"], hard), hard))
    if cpu := spec["cpu"]:
        usable = sorted(os.sched_getaffinity(0))
        first = os.getpid() % len(usable)  # so that not all agents share the first cores
        os.sched_setaffinity(0, (usable[first:] + usable[:first])[: math.ceil(cpu)])
