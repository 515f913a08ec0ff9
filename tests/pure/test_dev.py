"""What the processes of ``taskherd dev`` are handed, and what it says about the agents of its runner."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from taskherd.dev import agent_users, dev, ports, postgres
from taskherd.dev.processes import MARKER_VARIABLE
from taskherd.dev.services import Services

SERVERS = {"TASKHERD_DATABASE_URL": "postgresql://u:of-the-database@h/d", "TASKHERD_SECRET_KEY": "key-of-the-servers"}
RUNNERS = {"TASKHERD_AMQP_URL": "amqp://u:of-the-broker@h", "TASKHERD_RUNNER_NAME": "dev", "LANG": "C.UTF-8"}


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace Python by a program that writes its environment to a file named after the command; return its folder."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nenv -0 > "${0%/*}/$3"\n')  # the arguments are: -m taskherd COMMAND
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    return tmp_path


def environment_of(python: Path, command: str, inherited: set[str]) -> dict[str, str]:
    """Return the environment in which ``taskherd dev`` starts a command."""
    with dev._process(python, command, {**SERVERS, **RUNNERS}, inherited) as process:
        assert process.wait(30) == 0
    items = (python / command).read_text().split("\0")
    return dict(item.split("=", 1) for item in items if item)


def test_a_runner_is_started_without_what_only_servers_need(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database nor the key, from wherever they come, also if a template inherits their variables."""
    of_the_developer = {
        "TASKHERD_DATABASE_READ_URL": "postgresql://u:of-the-standby@h/d",
        "TASKHERD_TOKEN": "token-of-alice",
        "AWS_SECRET_ACCESS_KEY": "of-the-developer",
        "ANTHROPIC_API_KEY": "of-the-agents",
    }
    for name, value in of_the_developer.items():
        monkeypatch.setenv(name, value)
    given = environment_of(python, "runner", {"ANTHROPIC_API_KEY", "PGPASSWORD", *SERVERS})
    assert RUNNERS.items() <= given.items()
    assert given["ANTHROPIC_API_KEY"] == "of-the-agents"
    assert given[MARKER_VARIABLE] == str(python / "worker")
    secrets = {**SERVERS, **of_the_developer}
    del secrets["ANTHROPIC_API_KEY"]
    assert secrets.keys() & given.keys() == set()
    assert [name for name, value in given.items() if any(secret in value for secret in secrets.values())] == []

    for server in ("worker", "api"):
        assert {**SERVERS, **RUNNERS, **of_the_developer}.items() <= environment_of(python, server, set()).items()


SET_USERS = (
    f", or set {agent_users.VARIABLE}=400000-465535, which was not done because other users cannot enter /closed"
)


@pytest.mark.parametrize(
    ("uid", "closed", "told"), [(1_000, None, ("your user", "")), (0, Path("/closed"), ("root", SET_USERS))]
)
def test_who_gives_agents_no_users_says_what_they_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, closed: Path | None, told: tuple[str, str]
) -> None:
    """An ordinary user is told only of the sandbox, having no other users to give; root is told what is closed."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.delenv(agent_users.VARIABLE, raising=False)
    monkeypatch.setattr(agent_users, "_SUBORDINATE", ())
    monkeypatch.setattr(agent_users, "closed_folder", lambda _paths: closed)
    who, advice = told
    can = f"they can read your files, also {tmp_path}/data/env, and so act as anyone"
    notice = f"agents run as {who}: {can}; give their templates `run.sandbox: bwrap`{advice}"
    assert dev.isolate_agents(tmp_path / "data", os.defpath) == ({}, notice)
    assert not (tmp_path / "data").exists()


def test_processes_that_share_the_user_of_an_external_broker_are_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    """There no users are made for them, so that a line says what the runner may do with the developer's."""
    url = RUNNERS["TASKHERD_AMQP_URL"]
    assert dev.create_users(Services(url, SERVERS["TASKHERD_DATABASE_URL"]), "dev") == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("taskherd dev: worker, API and runner share the RabbitMQ user of TASKHERD_AMQP_URL")
    assert "TASKHERD_COMMAND_SENDERS" in line
    assert "of-the-broker" not in line


def test_data_of_postgresql_is_used_as_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that adds the user ``postgres`` later changes nothing for the data that ``nobody`` has made."""
    added = pwd.struct_passwd(("postgres", "x", 4321, 4321, "", "/", "/bin/sh"))
    monkeypatch.setattr(postgres, "_other_user", lambda: added)
    node = postgres.PostgresNode(postgres.PostgresBinaries(Path("/usr/bin"), "here", "17.0"), tmp_path)
    assert "--reuid=4321" in node._as_user()
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    (cluster / "PG_VERSION").write_text("17\n")
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    if os.geteuid() == 0:
        os.chown(cluster, owner.pw_uid, owner.pw_gid)
    assert {f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}"} <= set(node._as_user())


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_the_ports_that_are_set_are_used_where_they_are_free(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API has its own, the three processes have three in a row; in place of one that is taken is any other.

    They are of an address that only this test uses, so that no other process takes one meanwhile.
    """
    monkeypatch.setattr(ports, "HOST", own_address())
    first = next(port for port in iter(lambda: ports.find_free([None])[0], 0) if are_free(port, 4))
    monkeypatch.setenv("TASKHERD_API_PORT", str(first))
    monkeypatch.setenv("TASKHERD_OPS_PORT", str(first + 1))
    with socket.create_server((ports.HOST, first + shift)):
        chosen = dev.choose_ports()
    others = [port for number, port in enumerate(chosen) if number != shift]
    assert others == [first + number for number in range(4) if number != shift]
    assert chosen[shift] not in range(first, first + 4)


def own_address() -> str:
    """Return a loopback address that belongs to this process alone, as far as tests go."""
    high, low = divmod(os.getpid() % 2**16, 2**8)
    return f"127.77.{high}.{low}"


def are_free(first: int, count: int) -> bool:
    """Return whether these ports in a row are free."""
    row = [*range(first, first + count)]
    return ports.find_free([*row]) == row


def test_ports_of_zero_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are different, and none is above what a port can be, if the first is the last that there is."""
    monkeypatch.setenv("TASKHERD_API_PORT", "0")
    monkeypatch.setenv("TASKHERD_OPS_PORT", "0")
    assert len({*dev.choose_ports()} - {0}) == 4
    monkeypatch.setenv("TASKHERD_OPS_PORT", "65535")
    assert max(dev.choose_ports()) <= 65535
