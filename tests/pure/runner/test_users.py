"""The users of agents: which may be used, who has which, and how their processes end; none is run as one."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.errors import Misconfigured, Unavailable
from taskherd.runner import privileges
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.users import AgentUsers

FIRST, LAST = 300_000, 300_004
TASKS = [UUID(int=number) for number in range(6)]


class Machine:
    """What the machine says about its users."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.missing: list[str] = []
        self.names: dict[int, str] = {}
        self.result = SimpleNamespace(returncode=0, stderr="")
        self.commands: list[Any] = []
        self.alive: list[int] = []
        """How many processes live at each look, and from the last one on."""
        self.kills: list[tuple[int, int]] = []
        self.clock = 1_000.0
        monkeypatch.setattr(privileges, "missing", lambda: self.missing)
        monkeypatch.setattr(privileges, "living", self._living)
        monkeypatch.setattr(privileges, "kill_all", self._kill_all)
        self.groups: dict[int, str] = {}
        monkeypatch.setattr(pwd, "getpwall", self._users)
        monkeypatch.setattr(
            grp, "getgrall", lambda: [SimpleNamespace(gr_gid=gid, gr_name=name) for gid, name in self.groups.items()]
        )
        monkeypatch.setattr(subprocess, "run", self._run)
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _users(self) -> list[Any]:
        return [SimpleNamespace(pw_uid=uid, pw_name=name) for uid, name in self.names.items()]

    def _living(self, _uid: int) -> int:
        return self.alive.pop(0) if len(self.alive) > 1 else (self.alive or [0])[0]

    def _kill_all(self, uid: int, sender: int) -> None:
        self.kills.append((uid, sender))
        raise OSError("one is left")

    def _run(self, command: Any, **options: Any) -> Any:
        assert not options["check"]
        self.commands.append(command)
        return self.result

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine on which the users may be used."""
    return Machine(monkeypatch)


@pytest.fixture
def users() -> AgentUsers:
    """Return the users of four tasks, and one who sends signals."""
    return AgentUsers(FIRST, LAST)


def test_users_that_can_be_used_can_reach_their_folders(machine: Machine, users: AgentUsers, tmp_path: Path) -> None:
    """Each folder above them lets others in; that of all tasks is made so."""
    parent = tmp_path / "parent"
    root = parent / "root"
    root.mkdir(parents=True)
    for folder in (*root.parents, root):
        mode = folder.stat().st_mode
        if not mode & 0o001 and folder.stat().st_uid == os.getuid() and tmp_path.is_relative_to(folder):
            folder.chmod(mode | 0o001)
    root.chmod(0o700)
    parent.chmod(0o700)
    with pytest.raises(
        Misconfigured, match=f"cannot enter {parent}; run `chmod o.x {parent}` or choose another folder"
    ):
        users.check(root)
    parent.chmod(0o701)
    users.check(root)
    assert root.stat().st_mode & 0o777 == 0o711
    command = [sys.executable, "-I", "-S", privileges.__file__, "exec", "300004", "/usr/bin/env", "true"]
    assert machine.commands == [command] * 2
    assert str(users) == "300000-300004"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({FIRST - 1: "a", LAST + 1: "b"}, None),
        ({FIRST: "a"}, "contains the ids of existing users (a); choose another range"),
        ({LAST: "d", FIRST + 1: "b", FIRST + 3: "c", FIRST: "a"}, "users (a, b, c); choose"),
    ],
)
def test_users_of_others_cannot_be_used(
    machine: Machine, users: AgentUsers, names: dict[int, str], problem: str | None
) -> None:
    """Whether of an agent, or of the one who sends signals."""
    machine.names = names
    found = users._problem()
    assert found is None if problem is None else problem in str(found)


def test_groups_of_others_cannot_be_used(machine: Machine, users: AgentUsers) -> None:
    """The number of an agent's user is also that of its group, to which its files are open."""
    machine.groups = {FIRST - 1: "a", LAST + 1: "b"}
    assert users._problem() is None
    machine.groups[LAST] = "staff"
    assert users._problem() == "300000-300004 contains the ids of existing groups (staff); choose another range"


def test_what_keeps_a_runner_from_using_them_is_said(
    machine: Machine, users: AgentUsers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Privileges that it lacks, its own user, or a kernel that knows none of them."""
    machine.result = SimpleNamespace(returncode=1, stderr="x" * 300 + "no such user\n")
    found = users._problem()
    assert found == f"no program can be run as user 300004 ({'x' * 188}no such user)"
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: FIRST + 2)
        assert "existing users (the runner's user)" in str(users._problem())
    machine.missing = ["CAP_KILL", "CAP_CHOWN"]
    lacks = "the runner lacks CAP_KILL, CAP_CHOWN; run it as root or with these capabilities"
    with pytest.raises(Misconfigured, match=f"{lacks}; unset it to run agents as the runner's user"):
        users.check(tmp_path)


def test_a_user_belongs_to_one_task(machine: Machine, users: AgentUsers) -> None:
    """In turns, without those that are held for tasks on disk, or still have processes."""
    users._next = 3
    for task, uid in (
        (TASKS[4], FIRST),
        (TASKS[4], LAST + 1),
        (TASKS[4], None),
        (TASKS[4], FIRST + 1),
        (TASKS[5], FIRST + 1),
    ):
        users.hold(task, uid)
    assert users.assign(TASKS[4]) == FIRST + 1
    assert [users.assign(task) for task in (TASKS[0], TASKS[1], TASKS[0])] == [LAST, FIRST + 2, LAST]
    users.release(TASKS[0])
    users.release(TASKS[0])
    assert users.assign(TASKS[2]) == FIRST + 3
    machine.alive = [1]
    with pytest.raises(Unavailable, match="all 4 users in TASKHERD_RUNNER_AGENT_UIDS are in use; widen the range"):
        users.assign(TASKS[3])
    machine.alive = []
    assert users.assign(TASKS[3]) == LAST


def test_two_tasks_that_start_together_have_no_user_in_common(
    users: AgentUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looks for one while the first looks whether the last free one still has processes."""
    for number, task in enumerate(TASKS[:3]):
        users.hold(task, FIRST + 1 + number)
    found: list[int | str] = []

    def assign(task: UUID) -> None:
        try:
            found.append(users.assign(task))
        except Unavailable:
            found.append("none is free")

    second = threading.Thread(target=assign, args=[TASKS[4]])

    def living(_uid: int) -> int:
        if second.ident is None:
            second.start()
            second.join(0.5)  # it waits for the first one, which nobody sees
        return 0

    monkeypatch.setattr(privileges, "living", living)
    assign(TASKS[3])
    second.join(30)
    assert sorted(map(str, found)) == [str(LAST), "none is free"]


def test_the_processes_of_a_user_are_killed(machine: Machine, users: AgentUsers) -> None:
    """If there are any; those that do not end in ten seconds are counted."""
    users.hold(TASKS[0], FIRST + 1)
    machine.alive = [0]
    assert users.end(TASKS[0]) == 0
    machine.alive = [2]
    assert users.end(TASKS[1]) == 0
    assert machine.kills == []
    machine.alive = [2, 2, 1, 0]
    assert users.end(TASKS[0]) == 0
    assert machine.clock < 1_001
    machine.alive = [3]
    assert users.end(TASKS[0]) == 3
    assert machine.kills == [(FIRST + 1, FIRST)] * 2
    assert 1_010 <= machine.clock < 1_011


class Parts:
    """The sandbox, the cgroups and the users of a runner."""

    def __init__(self) -> None:
        self.problem = ""
        self.missing_controllers: set[str] = set()
        self.left = [0, 0]
        self.ended: list[tuple[Any, ...]] = []

    def check(self, network: str) -> None:
        """Say what is wrong."""
        assert network == "host"
        if self.problem:
            raise Unavailable(self.problem)

    def remove(self, *given: Any) -> int:
        """End what is in a cgroup."""
        self.ended.append(given)
        return self.left[0]

    def end(self, *given: Any) -> int:
        """End what a user runs."""
        self.ended.append(given)
        return self.left[1]

    def __str__(self) -> str:
        return "1-2"


def test_the_log_says_how_agents_are_separated() -> None:
    """And why they are not."""
    parts: Any = Parts()
    plain = Isolation(parts)
    sandboxed = "bwrap, for templates that demand it"
    assert plain.describe() == {
        "agent_users": "the runner's own", "sandbox": sandboxed, "limits": "rlimit and CPU affinity, for each process"
    }  # fmt: skip
    full = Isolation(parts, parts, parts)
    assert full.describe() == {"agent_users": "1-2", "sandbox": sandboxed, "limits": "cgroup v2"}
    parts.missing_controllers, parts.problem = {"memory", "cpu"}, "no bwrap"
    assert full.describe() == {
        "agent_users": "1-2", "sandbox": "unavailable: no bwrap",
        "limits": "unavailable: the cgroup lacks the controllers cpu, memory",
    }  # fmt: skip


def test_an_agent_ends_with_all_that_it_has_started() -> None:
    """In its cgroup and as its user; what is left is logged."""
    parts: Any = Parts()
    assert Isolation(parts).end(TASKS[1], 2) == 0
    full = Isolation(parts, parts, parts)
    with capture_logs() as logged:
        for left, total in (([0, 0], 0), ([3, 1], 3), ([1, 2], 2)):
            parts.left = left
            assert full.end(TASKS[1], 2) == total
    assert parts.ended == [(TASKS[1], 2), (TASKS[1],)] * 3
    assert [entry["processes"] for entry in logged] == [3, 2]


@pytest.mark.parametrize(
    ("uid", "sandbox", "prepares"), [(None, "none", False), (7, "none", True), (None, "bwrap", True)]
)
def test_an_agent_that_is_separated_has_folders_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int | None, sandbox: str, *, prepares: bool
) -> None:
    """Others have their working directory alone."""
    folder = TaskFolder(tmp_path, TASKS[1])
    folder.create()
    deeds: list[tuple[Any, ...]] = []
    monkeypatch.setattr(TaskFolder, "prepare", lambda _, user: deeds.append(("prepare", user)))
    monkeypatch.setattr(TaskFolder, "make_workdir", lambda _, *given: deeds.append(("make", *given)))
    parts: Any = Parts()
    run: Any = SimpleNamespace(sandbox=sandbox, workdir="a/b")
    for _ in range(2):
        Isolation(parts).prepare(run, folder, uid)
    assert deeds == ([("prepare", uid), ("make", "a/b", uid)] * 2 if prepares else [])
    assert (folder.work / "a" / "b").is_dir() is not prepares
