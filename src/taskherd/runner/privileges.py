"""Give up privileges: run a program as an agent's user, and end all processes of that user.

The shim imports this module, and it also runs as a file: ``python -I -S privileges.py exec UID COMMAND…`` and
``… kill UID SENDER``. It therefore uses the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

MAX_PROCESSES = 1_024
"""Maximum number of processes and threads of one agent's user: a quarter of what deploy/ gives a runner, so that a fork
bomb leaves room for everything else."""
REQUIRED = {0: "CHOWN", 1: "DAC_OVERRIDE", 3: "FOWNER", 5: "KILL", 6: "SETGID", 7: "SETUID"}
"""The capabilities that a runner needs to run agents as users of their own; see capabilities(7)."""
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4  # see prctl(2)
_CAPABILITY_VERSION_3 = 0x20080522
_KILL_ATTEMPTS = 5


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process with the system call of that name."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def missing() -> list[str]:
    """Return the names of the required capabilities that this process lacks."""
    effective = _effective_capabilities()
    return [f"CAP_{name}" for number, name in REQUIRED.items() if not effective >> number & 1]


def drop(uid: int) -> None:
    """Become the user and group ``uid`` for good: without other groups, capabilities or a way to gain any.

    Raise ``OSError`` if that is not possible.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = MAX_PROCESSES if hard == resource.RLIM_INFINITY else min(MAX_PROCESSES, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    _become((uid, uid, uid))
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def kill_all(uid: int, sender: int) -> None:
    """Kill all processes of the user ``uid`` at once, so that none can escape by forking. Raise ``OSError`` if not.

    kill(2) with pid -1 holds the lock that fork(2) needs. ``sender`` is a user that runs nothing else: no agent can
    send signals to a process whose real and saved user it is.
    """
    command = [sys.executable, "-I", "-S", __file__, "kill", str(uid), str(sender)]
    for _ in range(_KILL_ATTEMPTS):
        _, status = os.waitpid(os.posix_spawn(sys.executable, command, {}), 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return  # otherwise it was killed by the sender for another agent, which runs as the same user
    message = f"the processes of user {uid} could not be killed"
    raise OSError(message)


def living(uid: int) -> int:
    """Return the number of processes of the user, without zombies; 0 if /proc cannot be read."""
    return sum(_user_of(pid) == uid for pid in os.listdir("/proc") if pid.isdigit())  # noqa: PTH208 - strings are enough


def _user_of(pid: str) -> int | None:
    """Return the real user of a living process."""
    with suppress(OSError):
        fields = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        if not fields["State"].startswith("Z"):
            return int(fields["Uid"].split()[0])
    return None


def _kill_as(uid: int, sender: int) -> None:
    """Send SIGKILL to every process that ``uid`` may send signals to, except this one."""
    _become((sender, uid, sender))
    with suppress(ProcessLookupError):  # there is none
        os.kill(-1, signal.SIGKILL)


def _become(users: tuple[int, int, int]) -> None:
    """Set the real, effective and saved user, and give up all capabilities.

    The kernel takes them away only from a process that was root; a runner may have been given them in another way.
    """
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    os.setresuid(*users)
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
    if os.getresuid() != users or 0 in users or _effective_capabilities():
        message = f"the process did not become user {users[1]}"
        raise OSError(message)


def _effective_capabilities() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    return int(sets[0]) | int(sets[3]) << 32


def main(arguments: list[str]) -> None:
    """Run one of the two commands in the module's description."""
    match arguments:
        case ["exec", uid, *command]:
            drop(int(uid))
            os.execvp(command[0], command)  # noqa: S606 - running it as that user is what this is for
        case ["kill", uid, sender]:
            _kill_as(int(uid), int(sender))
        case _:
            sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
