"""How privileges are given up, and who is killed with them; nothing is given up here."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from taskherd.runner import privileges


def test_what_a_runner_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As people know it."""
    names = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
    for effective, missing in ((0, names), (0b11101011, []), (0b11001011, ["CAP_KILL"]), (1, names[1:])):
        monkeypatch.setattr(privileges, "_effective_capabilities", lambda effective=effective: effective)
        assert privileges.missing() == missing


def test_a_process_has_the_capabilities_that_the_kernel_shows() -> None:
    """All 64 of them."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - as short
        shown = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    assert privileges._effective_capabilities() == int(shown, 16)


def test_a_system_call_that_fails_is_an_error() -> None:
    """With its number."""
    with pytest.raises(OSError, match="prctl") as raised:
        privileges.prctl(10**6, 0)
    assert raised.value.errno == errno.EINVAL


def test_living_processes_are_counted_by_their_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither zombies, nor what has exited, nor what is no process."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as living, subprocess.Popen(["/bin/true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        names = [str(living.pid), str(zombie.pid), "self", "uptime", "4194305"]
        monkeypatch.setattr(os, "listdir", lambda _: names)
        assert privileges.living(os.getuid()) == 1
        assert privileges.living(os.getuid() + 1) == 0
        living.kill()


@pytest.mark.parametrize(
    ("hard", "most"),
    [(resource.RLIM_INFINITY, 1_024), (2_000, 1_024), (500, 500)],
)
def test_an_agent_becomes_its_user_for_good(monkeypatch: pytest.MonkeyPatch, hard: int, most: int) -> None:
    """Without groups of others, with few processes, and without a way to gain privileges, in this order."""
    deeds: list[tuple[object, ...]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *given: deeds.append(("limit", *given)))
    monkeypatch.setattr(os, "setgroups", lambda *given: deeds.append(("groups", *given)))
    monkeypatch.setattr(os, "setresgid", lambda *given: deeds.append(("group", *given)))
    monkeypatch.setattr(privileges, "_become", lambda *given: deeds.append(("user", *given)))
    monkeypatch.setattr(privileges, "prctl", lambda *given: deeds.append(("prctl", *given)))
    privileges.drop(7)
    assert deeds == [
        ("limit", resource.RLIMIT_NPROC, (most, most)),
        ("groups", []),
        ("group", 7, 7, 7),
        ("user", (7, 7, 7)),
        ("prctl", 38, 1),
    ]


@pytest.mark.parametrize(("statuses", "tries"), [([0], 1), ([9, 256, 9, 9, 0], 5), ([9] * 6, 5)])
def test_a_kill_is_tried_again(monkeypatch: pytest.MonkeyPatch, statuses: list[int], tries: int) -> None:
    """It may be hit by the kill of another agent; then it gives up."""
    given: list[object] = []

    def spawn(*arguments: object) -> int:
        given.append(arguments)
        return 5

    monkeypatch.setattr(os, "posix_spawn", spawn)
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, statuses.pop(0)) if options == 0 else None)
    if statuses[-1]:
        with pytest.raises(OSError, match="the processes of user 7 could not be killed"):
            privileges.kill_all(7, 8)
    else:
        privileges.kill_all(7, 8)
    command = [sys.executable, "-I", "-S", privileges.__file__, "kill", "7", "8"]
    assert given == [(sys.executable, command, {})] * tries


def test_the_program_runs_two_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error for any other."""
    deeds: list[tuple[object, ...]] = []
    monkeypatch.setattr(privileges, "drop", lambda *given: deeds.append(("drop", *given)))
    monkeypatch.setattr(os, "execvp", lambda *given: deeds.append(("exec", *given)))
    monkeypatch.setattr(privileges, "_kill_as", lambda *given: deeds.append(("kill", *given)))
    privileges.main(["exec", "7", "ls", "-l"])
    privileges.main(["kill", "7", "8"])
    assert deeds == [("drop", 7), ("exec", "ls", ["ls", "-l"]), ("kill", 7, 8)]
    for wrong in ([], ["kill", "7"], ["kill", "7", "8", "9"], ["other"]):
        with pytest.raises(SystemExit) as raised:
            privileges.main(wrong)
        assert raised.value.code == 2


def test_all_that_a_user_may_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process whose real and saved user nobody else is; nobody may be there to be killed."""
    deeds: list[tuple[object, ...]] = []

    def kill(*given: int) -> None:
        deeds.append(given)
        raise ProcessLookupError

    monkeypatch.setattr(privileges, "_become", lambda *given: deeds.append(given))
    monkeypatch.setattr(os, "kill", kill)
    privileges._kill_as(7, 8)
    assert deeds == [((8, 7, 8),), (-1, signal.SIGKILL)]
