"""Limits of runs: what is written to the files of a cgroup, here in an ordinary folder; what a runner cannot give."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import UUID

import pytest

from taskherd.errors import Misconfigured, Unavailable
from taskherd.runner import template
from taskherd.runner.workspaces import cgroups as module
from taskherd.runner.workspaces.cgroups import Cgroups
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.launch_plan import LaunchPlan, plan_launch
from taskherd.runner.workspaces.sandbox import Sandbox

TASK, OTHER = UUID(int=0xC6), UUID(int=0xC7)


def delegated(folder: Path, controllers: str = "cpuset cpu io memory pids") -> Cgroups:
    """Return the cgroups of a runner whose own has these controllers."""
    (folder / "cgroup.controllers").write_text(f"{controllers}\n")
    return Cgroups(folder)


def limits(**fields: Any) -> Any:
    """Return the limits of a template."""
    return template.parse({"command": ["a"], "limits": fields}).limits


@pytest.mark.parametrize(
    ("controllers", "enabled", "missing"),
    [
        ("cpuset cpu io memory pids", "+cpu +memory", set()),
        ("memory cpuset", "+memory", {"cpu"}),
        ("io", "", {"cpu", "memory"}),
    ],
)
def test_the_controllers_of_runs_are_enabled(tmp_path: Path, controllers: str, enabled: str, missing: set[str]) -> None:
    """As far as the runner's cgroup has them."""
    assert delegated(tmp_path, controllers).missing_controllers == missing
    assert (tmp_path / "cgroup.subtree_control").read_text() == enabled


def test_what_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    """The message names the folder and what was expected."""
    with pytest.raises(
        Misconfigured, match=r"cannot be used .*; expected a delegated cgroup v2 without processes"
    ) as raised:
        Cgroups(tmp_path)
    ((setting, problem),) = raised.value.wrong
    assert (setting, problem.startswith(f"{tmp_path} cannot be used")) == ("runner_cgroup", True)


def test_each_run_has_its_own_limits(tmp_path: Path) -> None:
    """Only those that the template has; CPU is a quota in each tenth of a second."""
    cgroups = delegated(tmp_path)
    path = cgroups.create(TASK, 3, limits(cpu=1.5, memory="512Mi"))
    assert path == tmp_path / f"{TASK}-3"
    assert (path / "memory.max").read_text() == str(512 * 2**20)
    assert (path / "cpu.max").read_text() == "150000 100000"
    assert cgroups.create(TASK, 3, limits()) == path, "a repeated start finds it"
    assert list(cgroups.create(TASK, 4, limits()).iterdir()) == []


def test_the_end_of_a_run_kills_what_is_in_its_cgroup(tmp_path: Path) -> None:
    """It is removed once nothing is left; one that was removed before has nothing left either."""
    cgroups = delegated(tmp_path)
    assert cgroups.remove(TASK, 5) == 0
    path = cgroups.create(TASK, 5, limits())
    (path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert cgroups.remove(TASK, 5) == 0
    assert (path / "cgroup.kill").read_text() == "1"


def test_no_earlier_run_of_a_task_keeps_its_cgroup(tmp_path: Path) -> None:
    """A start may be accepted while the agent of an earlier one lives; other tasks keep theirs, and later runs."""
    cgroups = delegated(tmp_path)
    runs = [cgroups.create(TASK, number, limits()) for number in (2, 9, 10, 11)]
    other = cgroups.create(OTHER, 2, limits())
    for path in (*runs, other):
        (path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert cgroups.remove(TASK, 10) == 0
    assert [(path / "cgroup.kill").exists() for path in (*runs, other)] == [True, True, True, False, False]


def test_processes_that_cannot_be_killed_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stuck in the kernel stays for a while; a cgroup that is empty meanwhile has none left."""
    monkeypatch.setattr(module, "END_TIMEOUT", 0.2)
    cgroups = delegated(tmp_path)
    path = cgroups.create(TASK, 6, limits())
    (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (path / "cgroup.procs").write_text("7\n8\n")
    started = time.monotonic()
    assert cgroups.remove(TASK, 6) == 2
    assert time.monotonic() - started >= 0.2, "they were waited for"
    assert Isolation(Sandbox((), None), cgroups=cgroups).end(TASK, 6) == 2
    monkeypatch.setattr(module, "END_TIMEOUT", 60)
    emptied = Timer(0.1, (path / "cgroup.events").write_text, ["populated 0\nfrozen 0\n"])
    emptied.start()
    assert cgroups.remove(TASK, 6) == 0
    assert time.monotonic() - started < 30
    (cgroups.create(TASK, 4, limits()) / "cgroup.events").write_text("populated 1\n")
    (tmp_path / f"{TASK}-4" / "cgroup.procs").write_text("6\n")
    (path / "cgroup.events").write_text("populated 1\n")
    monkeypatch.setattr(module, "END_TIMEOUT", 0)
    assert cgroups.remove(TASK, 6) == 3, "of all its runs"
    emptied.join()


def test_what_a_runner_says_about_limits(tmp_path: Path) -> None:
    """Without a cgroup they hold for each process; one without controllers gives none."""
    sandbox = Sandbox((), None)
    assert Isolation(sandbox)._describe_limits() == "rlimit and CPU affinity, for each process"
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder, controllers, text in (
        (whole, "cpu memory", "cgroup v2"),
        (part, "pids", "unavailable: the cgroup lacks the controllers cpu, memory"),
    ):
        folder.mkdir()
        assert Isolation(sandbox, cgroups=delegated(folder, controllers))._describe_limits() == text


def test_a_template_with_limits_that_a_runner_cannot_give_is_not_started(tmp_path: Path) -> None:
    """Only if it has the limit whose controller is missing; without a cgroup each limit can be given."""
    sandbox = Sandbox((), None)
    lacking = Isolation(sandbox, cgroups=delegated(tmp_path, "memory"))
    with pytest.raises(Unavailable, match=r"the template has `limits\.cpu`, .* its cgroup lacks the controller cpu; "):
        lacking.check(template.parse({"command": ["a"], "limits": {"cpu": 1}}))
    lacking.check(template.parse({"command": ["a"], "limits": {"memory": "1Gi"}}))
    Isolation(sandbox).check(template.parse({"command": ["a"], "limits": {"cpu": 1, "memory": "1Gi"}}))


def test_agents_without_users_of_their_own_are_the_runners(tmp_path: Path) -> None:
    """Nothing is held, assigned or ended for them."""
    isolation = Isolation(Sandbox((), None))
    isolation.hold_user(TASK, 7)
    assert isolation.assign_user(TASK) is None
    isolation.release_user(TASK)
    assert isolation.end(TASK, 1) == 0
    assert Isolation(Sandbox((), None), cgroups=delegated(tmp_path)).end(TASK, 1) == 0


@pytest.mark.parametrize(
    ("resume_command", "has_session", "plan"),
    [
        (["go", "--resume", "{session}"], True, LaunchPlan(("go", "--resume", "{session}"), gives_prompt=False)),
        (["go", "--resume={session}"], False, LaunchPlan(("begin",), gives_prompt=True)),
        (["go", "--continue"], False, LaunchPlan(("go", "--continue"), gives_prompt=False)),
    ],
)
def test_a_session_that_is_not_known_cannot_be_continued(
    resume_command: list[str], *, has_session: bool, plan: LaunchPlan
) -> None:
    """Then the agent begins again, and is given the prompt."""
    run = template.parse({"command": ["begin"], "resume": "continue", "resume_command": resume_command})
    assert plan_launch(run, given=True, finished=False, has_session=has_session) == plan
