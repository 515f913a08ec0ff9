"""What a child of the shim does before it executes the agent's program, in which order; nothing is executed here."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner import agent_process, privileges
from taskherd.runner.agent_process import become_agent

SPEC: dict[str, Any] = {"argv": ["agent", "-x"], "own_env": {"KEY": "é"}, "sandboxed": False, "uid": None, "cwd": "/w"}


class Child:
    """A child process, which notes what it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deeds: list[tuple[object, ...]] = []
        self.failures: dict[str, BaseException] = {}
        self.environment = {"PATH": "/bin", "KEY": "old"}
        self.pipes: set[int] = set()
        """Which of its streams are pipes; the others are files."""
        self.problem, self._written = os.pipe()
        self._monkeypatch = monkeypatch

    def _note(self, deed: str) -> Any:
        def note(*given: object) -> None:
            self.deeds.append((deed, *given))
            if deed in self.failures:
                raise self.failures[deed]

        return note

    def _status(self, descriptor: int) -> os.stat_result:
        return os.stat_result((0o010600 if descriptor in self.pipes else 0o100600, *range(9)))

    def become(self, **changed: Any) -> str:
        """Become an agent, and return what it says of its failure."""
        with self._monkeypatch.context() as patch:
            patch.setattr(signal, "set_wakeup_fd", self._note("wakeup"))
            patch.setattr(signal, "signal", self._note("signal"))
            patch.setattr(os, "setsid", self._note("session"))
            patch.setattr(os, "dup2", self._note("dup"))
            patch.setattr(os, "chdir", self._note("folder"))
            patch.setattr(os, "environ", self.environment)
            patch.setattr(os, "execvpe", self._note("execute"))
            patch.setattr(os, "fstat", self._status)
            patch.setattr(os, "fchown", self._note("owner"))
            patch.setattr(os, "_exit", self._note("exit"))
            patch.setattr(agent_process, "_apply_limits", lambda spec: self._note("limits")(spec["cwd"]))
            patch.setattr(privileges, "drop", self._note("user"))
            patch.setattr(privileges, "prctl", self._note("prctl"))
            become: Callable[..., object] = become_agent
            become({**SPEC, **changed}, (7, 8, 9), self._written)
        os.close(self._written)
        with os.fdopen(self.problem, encoding="utf-8") as file:
            return file.read()


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    """Return a child."""
    return Child(monkeypatch)


def test_a_child_does_not_wake_the_shim(child: Child) -> None:
    """It tells nobody about the signals that it gets before it executes the program."""
    assert child.become() == ""
    assert child.deeds[0] == ("wakeup", -1)


def test_an_agent_with_a_user_owns_its_pipes(child: Child) -> None:
    """It can open them by name in /dev then. That it dies with the shim is set last: a change of user undoes it."""
    child.pipes = {0, 2}
    child.become(uid=1007)
    user = [("owner", 0, 1007, 1007), ("owner", 2, 1007, 1007), ("user", 1007), ("prctl", 1, signal.SIGKILL)]
    assert [deed for deed in child.deeds if deed[0] in {"owner", "user", "prctl"}] == user


@pytest.mark.parametrize(
    ("deed", "failure", "words"),
    [
        ("execute", FileNotFoundError(2, "No such file", "agent"), "[Errno 2] No such file: 'agent'"),
        ("execute", FileNotFoundError(2, "No such file", "/bin/agent"), "[Errno 2] No such file: 'agent'"),
        ("execute", PermissionError(13, "Permission denied"), "[Errno 13] Permission denied: 'agent'"),
        ("folder", FileNotFoundError(2, "No such file", "/w"), "[Errno 2] No such file: '/w'"),
        ("folder", OSError(5, "Broken", b"/w"), "[Errno 5] Broken: 'agent'"),
        ("limits", ValueError("not allowed"), "not allowed"),
        ("user", MemoryError(), "MemoryError"),
        ("session", KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_why_an_agent_was_not_executed_is_told(child: Child, deed: str, failure: BaseException, words: str) -> None:
    """And the child exits in any case, or it would go on as a second shim."""
    child.failures[deed] = failure
    assert child.become(uid=1007) == words
    assert child.deeds[-2][0] == deed
    assert child.deeds[-1] == ("exit", 127)


@pytest.mark.parametrize("own", [{}, {"KEY": "é", "LD_PRELOAD": "x.so"}])
def test_a_sandbox_sets_the_variables_inside(child: Child, own: dict[str, str]) -> None:
    """They are in a file that it inherits, not in its own environment or arguments."""
    child.become(sandboxed=True, own_env=own)
    _, program, argv, environment = child.deeds[-2]
    assert isinstance(argv, list)
    assert (program, environment) == ("agent", {"PATH": "/bin", "KEY": "old"})
    if own:
        name, option, descriptor, *rest = argv
        assert (name, option, rest) == ("agent", "--args", ["-x"])
        with os.fdopen(int(descriptor), "rb") as file:
            assert file.read().decode() == "--setenv\0KEY\0é\0--setenv\0LD_PRELOAD\0x.so\0"
    else:
        assert argv == ["agent", "-x"]


class Kernel:
    """The system calls that a process gives up its privileges with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.users = (7, 7, 7)
        self.effective = 0
        self.refuses = 0
        monkeypatch.setattr(privileges, "prctl", lambda *given: self.calls.append(("prctl", *given)))
        monkeypatch.setattr(os, "setresuid", lambda *given: self.calls.append(("users", *given)))
        monkeypatch.setattr(os, "getresuid", lambda: self.users)
        monkeypatch.setattr(privileges, "_effective_capabilities", lambda: self.effective)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: self)
        monkeypatch.setattr(ctypes, "get_errno", lambda: 1)

    def capset(self, header: Any, sets: Any) -> int:
        """Note the call."""
        self.calls.append(("capset", list(header), list(sets)))
        return self.refuses

    def capget(self, header: Any, sets: Any) -> int:
        """Refuse the call."""
        self.calls.append(("capget", list(header), list(sets)))
        return self.refuses


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return a kernel that does what it is asked."""
    return Kernel(monkeypatch)


def test_a_process_gives_up_all_capabilities(kernel: Kernel) -> None:
    """The ambient ones before it becomes another user, and then those that are left."""
    privileges._become((7, 7, 7))
    assert kernel.calls == [("prctl", 47, 4), ("users", 7, 7, 7), ("capset", [0x20080522, 0], [0] * 6)]


@pytest.mark.parametrize(
    ("wanted", "users", "effective"),
    [((7, 7, 7), (7, 7, 7), 32), ((7, 8, 7), (7, 7, 7), 0), ((0, 8, 7), (0, 8, 7), 0)],
)
def test_a_process_that_keeps_privileges_does_not_go_on(
    kernel: Kernel, wanted: tuple[int, int, int], users: tuple[int, int, int], effective: int
) -> None:
    """Whatever the system calls say."""
    kernel.users, kernel.effective = users, effective
    with pytest.raises(OSError, match=f"the process did not become user {wanted[1]}"):
        privileges._become(wanted)


def test_a_refused_system_call_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the call, and has its error number."""
    effective_capabilities = privileges._effective_capabilities
    kernel = Kernel(monkeypatch)
    kernel.refuses = -1
    for call, name in ((lambda: privileges._become((7, 7, 7)), "capset"), (effective_capabilities, "capget")):
        with pytest.raises(OSError, match=name) as raised:
            call()
        assert raised.value.errno == 1
    assert kernel.calls[-1] == ("capget", [0x20080522, 0], [0] * 6)


def test_limits_do_not_need_an_oom_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may keep it from being set; a cgroup that cannot be entered, however, fails the start."""
    monkeypatch.setattr(agent_process, "OOM_SCORE", "no number")
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    spec = {"cgroup": None, "memory": None, "open_files": 5, "cpu": None}
    agent_process._apply_limits(spec)
    with pytest.raises(FileNotFoundError):
        agent_process._apply_limits({**spec, "cgroup": str(tmp_path / "gone")})
