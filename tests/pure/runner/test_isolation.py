from __future__ import annotations

import os
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from taskherd.errors import Malformed, Unavailable
from taskherd.runner import template
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.isolation import Isolation
from taskherd.runner.workspaces.sandbox import Sandbox
from taskherd.runner.workspaces.users import AgentUsers
from taskherd.settings.isolation import check_paths, parse_uids

UNUSED = 3_000_000_000
"""The first of some user ids that no process has."""


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        ({"network": "none"}, "`network: none` requires `sandbox: bwrap`"),
        ({"network": "none", "sandbox": "bwrap", "agent": "agentapi"}, "`network: none` does not suit `agentapi`"),
        ({"network": "none", "sandbox": "bwrap", "agent": "self"}, "`network: none` does not suit `self`"),
        ({"sandbox": "bwrap", "workdir": "/srv"}, "`workdir` must be inside the task's `work` folder"),
        ({"sandbox": "bwrap", "workdir": "a/../../b"}, "`workdir` must be inside the task's `work` folder"),
        ({"sandbox": "docker"}, "sandbox: Input should be 'none' or 'bwrap'"),
    ],
)
def test_a_template_cannot_demand_what_no_sandbox_can_give(run: dict[str, str], problem: str) -> None:
    """Combinations that cannot work are refused, with what to write instead."""
    with pytest.raises(Malformed) as refused:
        template.parse({"command": ["true"], **run})
    assert problem in refused.value.detail


def test_a_template_demands_no_sandbox_by_default() -> None:
    """Without the fields an agent runs as before."""
    run = template.parse({"command": ["true"], "workdir": "/srv"})
    assert (run.sandbox, run.network) == ("none", "host")


def test_a_range_of_users() -> None:
    """A range has two ids above 0, in order."""
    assert parse_uids("200000-265535") == (200_000, 265_535)
    assert parse_uids("") is None
    for wrong in ("200000", "0-5", "5-4", "5-5", "a-b", "1-2-3", "-5", f"1-{2**32 - 1}"):
        with pytest.raises(ValueError, match="not a range of user ids"):
            parse_uids(wrong)


def test_paths_that_a_sandbox_shows_are_absolute() -> None:
    """The root itself would show everything."""
    assert check_paths("/opt:/srv/tools") == "/opt:/srv/tools"
    for wrong in ("/", "opt", "/opt:tools", "//"):
        with pytest.raises(ValueError, match="not a list of absolute paths"):
            check_paths(wrong)


def test_users_are_given_once_and_again_when_released() -> None:
    """No two tasks have one user; one that a task on disk has is kept for it; none is left when all are given."""
    users = AgentUsers(UNUSED, UNUSED + 3)
    tasks = [uuid.UUID(int=number) for number in range(4)]
    users.hold(tasks[0], UNUSED + 2)
    users.hold(tasks[3], UNUSED + 2)  # another task has it
    users.hold(tasks[3], UNUSED)  # sends signals
    users.hold(tasks[3], UNUSED + 4)  # outside of the range
    assert users.assign(tasks[0]) == UNUSED + 2
    assert {users.assign(tasks[1]), users.assign(tasks[2])} == {UNUSED + 1, UNUSED + 3}
    with pytest.raises(Unavailable, match="all 3 users in TASKHERD_RUNNER_AGENT_UIDS are in use; widen the range"):
        users.assign(tasks[3])
    assert users.end(tasks[1]) == 0
    users.release(tasks[1])
    assert users.assign(tasks[3]) not in {users.assign(tasks[0]), users.assign(tasks[2])}


def test_a_user_of_a_living_process_is_not_given() -> None:
    """It is not free, although no task is known to have it."""
    users = AgentUsers(os.getuid() - 1, os.getuid())
    with pytest.raises(Unavailable, match="all 1 users"):
        users.assign(uuid.UUID(int=1))


def test_a_sandbox_without_its_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="bwrap is not installed; install the package bubblewrap"):
        Sandbox((), None).check("host")


@pytest.mark.parametrize(
    ("fields", "demand"),
    [
        ({"sandbox": "bwrap"}, "`sandbox: bwrap`"),
        ({"sandbox": "bwrap", "network": "none"}, "`sandbox: bwrap` and `network: none`"),
    ],
)
def test_a_template_whose_sandbox_a_runner_cannot_give_is_not_started(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], demand: str
) -> None:
    """The error says what it demands and why that is not there; one without a sandbox needs no program."""
    monkeypatch.setenv("PATH", "/nowhere")
    isolation = Isolation(Sandbox((), None))
    isolation.check(template.parse({"command": ["true"]}))
    with pytest.raises(Unavailable) as refused:
        isolation.check(template.parse({"command": ["true"], **fields}))
    problem = f"the template has {demand}, which this runner cannot give: bwrap is not installed; install the package"
    assert str(refused.value).startswith(problem)


def test_a_task_keeps_its_user_until_it_is_released() -> None:
    """Also the one that it had under an earlier runner."""
    isolation = Isolation(Sandbox((), None), AgentUsers(UNUSED, UNUSED + 2))
    first, second, third = (uuid.UUID(int=number) for number in (11, 12, 13))
    isolation.hold_user(first, UNUSED + 1)
    assert [isolation.assign_user(task) for task in (second, first, second)] == [UNUSED + 2, UNUSED + 1, UNUSED + 2]
    with pytest.raises(Unavailable, match="all 2 users"):
        isolation.assign_user(third)
    isolation.release_user(first)
    assert isolation.assign_user(third) == UNUSED + 1


@pytest.mark.parametrize(("root", "hidden"), [("runner", "runner"), (".taskherd/demo/runner", ".taskherd")])
def test_the_folder_of_the_runner_is_hidden_wherever_it_is_visible(tmp_path: Path, root: str, hidden: str) -> None:
    """Each path that shows it, also through a link, has an empty folder there, and programs in it are not visible."""
    real = tmp_path / "real"
    (real / root).mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    paths = (str(real), "/opt", str(tmp_path / "link"))
    sandbox = Sandbox(paths, None, tmp_path / "link" / root)
    folder = TaskFolder((real / root).resolve(), uuid.UUID(int=1))
    arguments = sandbox.wrap(["true"], folder, tmp_path, "host")
    covered = [path for option, path in pairwise(arguments) if option == "--tmpfs"]
    assert covered == [str(real / hidden), str(tmp_path / "link" / hidden)]
    for path in covered:
        assert arguments.index(str(Path(path).parents[hidden.count("/")])) < arguments.index(path)
        assert arguments.index(path) < arguments.index(str(folder.work))
    for program, is_shown in (("tool", True), (f"{hidden}/tool", False)):
        assert sandbox.shows(str(real / program)) is is_shown


def test_a_folder_of_the_runner_that_is_not_visible_is_not_covered(tmp_path: Path) -> None:
    """Nor one that does not exist, where nothing could be mounted."""
    folder = TaskFolder(tmp_path / "runner", uuid.UUID(int=1))
    missing = Sandbox((str(tmp_path),), None, folder.root).wrap(["true"], folder, tmp_path, "host")
    folder.create()
    elsewhere = Sandbox(("/opt",), None, folder.root).wrap(["true"], folder, tmp_path, "host")
    assert "--tmpfs" not in (*missing, *elsewhere)


def test_a_working_directory_is_not_made_through_a_link(tmp_path: Path) -> None:
    """An agent's link leads the runner nowhere; plain folders are made, also below existing ones."""
    folder = TaskFolder(tmp_path / "root", uuid.UUID(int=1))
    folder.create()
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder.work / "link").symlink_to(outside)
    (folder.work / "file").touch()
    for path in ("link/made", "a/link", "a/b/c", "a/../../escaped", f"{outside}/absolute", "file/made"):
        folder.make_workdir(path, None)
    assert list(outside.iterdir()) == []
    assert (folder.work / "a/b/c").is_dir()
    assert sorted(path.name for path in folder.path.iterdir()) == ["state", "work"]


def test_folders_are_emptied_and_removed_without_following_links(tmp_path: Path) -> None:
    """Temporary files are removed at each start, everything at the end, and nothing outside."""
    folder = TaskFolder(tmp_path / "root", uuid.UUID(int=1))
    folder.create()
    folder.prepare(None)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    for each in (folder.work, folder.home, folder.tmp):
        (each / "link").symlink_to(outside)
    folder.prepare(None)
    assert list(folder.tmp.iterdir()) == []
    folder.remove_work()
    assert [path.name for path in folder.path.iterdir()] == ["state"]
    assert [path.name for path in outside.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    "private",
    ["/etc/ssl/private", "/etc/pki/tls/private", "/etc/pki/entitlement", "/etc/pki/CA/private", "/etc/ssl/own"],
)
def test_a_sandbox_shows_certificates_without_the_machines_keys(tmp_path: Path, private: str) -> None:
    """No folder is shown that has one with keys in it."""
    folder = TaskFolder(tmp_path, uuid.UUID(int=1))
    arguments = Sandbox(("/opt",), None).wrap(["true"], folder, tmp_path, "host")
    binds = pairwise(arguments)
    shown = [Path(path) for option, path in binds if option in {"--bind", "--ro-bind", "--ro-bind-try"}]
    assert {Path("/etc/ssl/certs"), Path("/etc/pki/tls/certs"), Path("/etc/ssl/openssl.cnf")} <= set(shown)
    assert [path for path in shown if Path(private).is_relative_to(path)] == []
