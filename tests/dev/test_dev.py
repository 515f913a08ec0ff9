"""``taskherd dev`` as a new user sees it: the commands that it prints and those of the README work as printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from taskherd.dev import agent_users, broker_users, dev
from tests.harness.dev_session import alarming, session
from tests.harness.isolation import VAR_TMP, open_folder
from tests.harness.programs import find_program
from tests.harness.templates import EXAMPLE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADING = "## A task's life, in curl\n"
"""The section of the README whose commands are run."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def make_folder(folder: Path) -> dict[str, str]:
    """Make an empty folder with a Python for the README's commands, and return the environment for commands in it."""
    (folder / ".venv/bin").mkdir(parents=True)
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
    return {**inherited, "PYTHONPATH": path, "TASKHERD_LOG_LEVEL": "warning"}


async def shell(script: str, folder: Path, env: dict[str, str]) -> str:
    """Run a bash script, which must succeed, and return its output."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=folder,
        env={name: value for name, value in env.items() if name != "TASKHERD_LOG_LEVEL"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, (output, errors)
    return output.decode()


def json_objects(text: str) -> list[Any]:
    """Return the JSON objects in a text, ignoring everything else."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


async def test_the_printed_commands_and_those_of_the_readme_work(
    tmp_path: Path, announce: Callable[[str], None]
) -> None:
    """The printed curl commands, the README's commands, ``taskherd task`` with ``.taskherd/env``, and ``try.py``.

    That program of the README may send commands as the developer's user, though senders are checked.
    """
    find_program("curl", "curl", announce)
    env = make_folder(tmp_path)
    async with session(tmp_path, env) as lines:
        assert alarming(lines) == []
        curls = [line.partition(": ")[2].strip() for line in lines if "curl " in line]
        created, listed = [json_objects(await shell(line, tmp_path, env))[0] for line in curls]
        assert created["initial_prompt"] == "How large is this program?"
        assert [each["id"] for each in listed["tasks"]] == [created["id"]]

        section = README.partition(HEADING)[2].partition("\n## ")[0]
        output = await shell("\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL)), tmp_path, env)
        documents = json_objects(output)
        assert "because" in output
        states = [each["current_state"] for each in documents if "initial_prompt" in each and each["current_state"]]
        assert any((each["state"], each["message"]) == ("idle", "Which package?") for each in states)
        assert any((each["state"], each["message"]) == ("complete", "questions answered: 1") for each in states)
        conversation = next(each["logs"] for each in documents if "logs" in each)
        assert any(entry["content"].startswith("domain: ") for entry in conversation)
        assert {"204", "202"} <= set(output.split())
        events = re.findall(r"(?m)^event: (.*)$", output)
        assert (events[0], events[-1]) == ("task.snapshot", "task.deleted")

        listed_by_cli = json.loads(
            await shell(". .taskherd/env; .venv/bin/python -m taskherd task list -o json", tmp_path, env)
        )
        assert [each["id"] for each in listed_by_cli] == [created["id"]]

        (program,) = re.findall(r"save this as `try\.py`:\n\n```python\n(.*?)```", README, re.DOTALL)
        (tmp_path / "try.py").write_text(program)
        assert "Reading the log" in await shell(". .taskherd/env; .venv/bin/python try.py", tmp_path, env)
    assert alarming(lines) == []


def environment(pid: str) -> dict[str, str]:
    """Return the environment of a process, as ``/proc`` shows it."""
    items = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(item.split("=", 1) for item in items if "=" in item)


async def test_the_runner_gets_no_secret_of_the_servers(tmp_path: Path) -> None:
    """``/proc`` shows the runner neither the database URL nor the secret key, however they were given.

    What the runner has, only root can see: it lets no process of its user look, so that no agent can.
    """
    secrets = {"AWS_SECRET_ACCESS_KEY": "of-the-developer", "TASKHERD_SOMETHING_NEW": "of-a-server"}
    env = {**make_folder(tmp_path), **secrets, "TASKHERD_SECRET_KEY": "0123456789abcdef" * 4}
    env |= {"ANTHROPIC_API_KEY": "inherited", "OTEL_SERVICE_NAME": "mine", "TASKHERD_RUNNER_HEARTBEAT_EVERY": "7s"}
    is_root = os.geteuid() == 0
    async with session(tmp_path, env) as lines:
        assert set(alarming(lines)) == {"warning: unknown setting TASKHERD_SOMETHING_NEW"}
        (pids,) = re.findall(r"running as processes (\d+), (\d+) and (\d+);", "\n".join(lines))
        worker, api = environment(pids[0]), environment(pids[1])
        with nullcontext() if is_root else pytest.raises(PermissionError):
            runner = environment(pids[2])
    assert {"TASKHERD_DATABASE_URL", "TASKHERD_SECRET_KEY"} <= worker.keys()
    assert worker["TASKHERD_COMMAND_SENDERS"] == "taskherd-api,taskherd"
    users = [urlsplit(each["TASKHERD_AMQP_URL"]).username for each in (worker, api)]
    assert users == ["taskherd-worker", "taskherd-api"]
    if is_root:
        kept = {name for name in runner if name.startswith(("TASKHERD_DATABASE", "TASKHERD_SECRET", "TASKHERD_TOKEN"))}
        assert kept == set()
        assert worker["TASKHERD_DATABASE_URL"] not in runner.values()
        assert worker["TASKHERD_SECRET_KEY"] not in runner.values()
        assert secrets.keys() & runner.keys() == set()
        assert runner["ANTHROPIC_API_KEY"] == "inherited"  # by a template of the example
        assert (runner["OTEL_SERVICE_NAME"], runner["TASKHERD_RUNNER_HEARTBEAT_EVERY"]) == ("mine", "7s")
        assert urlsplit(runner["TASKHERD_AMQP_URL"]).username == "taskherd-runner"
        assert all(urlsplit(other["TASKHERD_AMQP_URL"]).password not in runner.values() for other in (worker, api))


AGENT = "cat ../../../env && echo could || echo failed; true"
"""Reads the developer's credentials from the folder of ``taskherd dev``."""


async def attack(folder: Path, env: dict[str, str], run: dict[str, Any]) -> str:
    """Have an agent read the developer's credentials, and return whether it ``could`` or ``failed``, as it says."""
    output = await output_of(folder, env, {"command": ["sh", "-c", AGENT], **run})
    (outcome,) = {*output.split()} & {"could", "failed"}
    assert ("TASKHERD_SECRET_KEY" in output) == (outcome == "could")
    return outcome


async def output_of(folder: Path, env: dict[str, str], run: dict[str, Any]) -> str:
    """Return what an agent of a template with this ``run`` writes until it ends."""
    document = yaml.safe_load(EXAMPLE.read_text())
    template = next(each for each in document["templates"] if each["name"] == "counts")
    template["versions"][0]["run"] = {"agent": "stdio", **run}
    (folder / "directory.yaml").write_text(yaml.safe_dump(document))
    taskherd = f"{sys.executable} -m taskherd"
    script = f"""
        . .taskherd/env
        {taskherd} directory apply directory.yaml >&2
        name=$({taskherd} task create --template counts "Read it" -o json | {sys.executable} -c '
import json, sys
print(json.load(sys.stdin)["name"])')
        {taskherd} task wait "$name" >&2
        {taskherd} task logs "$name" -o json
    """
    entries = json.loads(await shell(script, folder, env))["logs"]
    return "\n".join(entry["content"] for entry in entries if entry["type"] == "output")


async def test_agents_without_isolation_can_read_the_developers_files(
    tmp_path: Path, announce: Callable[[str], None]
) -> None:
    """A line at the start says so, and what to set; with that they cannot. Root's home is closed to others."""
    find_program("bwrap", "bubblewrap", announce)
    env = make_folder(tmp_path)
    tmp_path.chmod(0o700)
    async with session(tmp_path, env) as lines:
        assert alarming(lines) == []
        (told,) = [line for line in lines if "they can read your files, also .taskherd/env" in line]
        assert "`run.sandbox: bwrap`" in told
        assert (f"{agent_users.VARIABLE}={agent_users.RANGE}" in told) == (os.geteuid() == 0)
        assert await attack(tmp_path, env, {}) == "could"
        assert await attack(tmp_path, env, {"sandbox": "bwrap"}) == "failed"


async def test_a_sandbox_hides_the_data_folder_below_a_visible_path(announce: Callable[[str], None]) -> None:
    """The credentials of ``taskherd dev`` are out of reach also where the project's folder is visible in sandboxes."""
    find_program("bwrap", "bubblewrap", announce)
    with open_folder(VAR_TMP) as folder:
        env = {**make_folder(folder), "TASKHERD_RUNNER_SANDBOX_PATHS": str(folder), agent_users.VARIABLE: ""}
        async with session(folder, env):
            assert await attack(folder, env, {}) == "could"
            assert await attack(folder, env, {"sandbox": "bwrap"}) == "failed"


if os.geteuid() == 0:

    async def test_agents_of_root_cannot_read_the_developers_files_where_others_may_enter() -> None:
        """They have users of their own, if nothing else is set, and can do their work; else a line says what is closed.

        Closed is the folder of taskherd itself, as in root's home.
        """
        closed = agent_users.closed_folder([*map(Path, filter(None, sys.path)), Path(sys.executable)])
        with open_folder() as folder:
            env = {**make_folder(folder), "PATH": os.defpath}
            async with session(folder, env) as lines:
                assert alarming(lines) == []
                told = [line for line in lines if "can read your files" in line]
                outcome = await attack(folder, env, {})
                if closed is None:
                    assert told == []
                    assert any("agents run as users of their own" in line for line in lines)
                    assert outcome == "failed"
                    run = {
                        "command": ["python", "-c", "import os; print(os.getuid())"],
                        "env": {"inherit": ["PATH"]},
                    }
                    first, last = map(int, agent_users.RANGE.split("-"))
                    assert first < int(await output_of(folder, env, run)) <= last
                else:
                    assert [f"other users cannot enter {closed}" in line for line in told] == [True]
                    assert outcome == "could"

    @pytest.mark.parametrize("value", ["", "300000-300063"])
    def test_the_environment_decides_about_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        """What is set stays; set to nothing, agents run as root, and the line says so."""
        monkeypatch.setenv(agent_users.VARIABLE, value)
        settings, told = dev.isolate_agents(tmp_path, os.defpath)
        assert settings == {}
        assert bool(told) == (value == "")

    def test_agents_get_no_users_where_they_could_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder of programs that is closed to others, and tasks that ran as root."""
        monkeypatch.setattr(sys, "path", [])  # where taskherd itself is does not matter here
        if agent_users.closed_folder([Path(sys.executable)]) is not None:
            monkeypatch.setattr(sys, "executable", shutil.which("python3", path=os.defpath))
        with open_folder() as folder:
            assert agent_users.obstacle(folder / "runner", os.defpath) == ""
            tools = folder / "tools"
            tools.mkdir(mode=0o700)
            assert agent_users.obstacle(folder / "runner", f"{os.defpath}:{tools}") == ""  # it is empty
            (tools / "agent").touch()
            assert f"cannot enter {tools}" in agent_users.obstacle(folder / "runner", f"{os.defpath}:{tools}")
            assert "cannot enter" in agent_users.obstacle(tools / "runner", os.defpath)
            (folder / "runner/task").mkdir()
            assert "ran as root" in agent_users.obstacle(folder / "runner", os.defpath)
            os.chown(folder / "runner/task", 0, int(agent_users.RANGE.partition("-")[0]) + 5)
            assert agent_users.obstacle(folder / "runner", os.defpath) == ""


def test_the_users_have_the_rights_of_users_py(tmp_path: Path) -> None:
    """The patterns are those of ``deploy/rabbitmq/users.py``, for the prefix and targets of this machine."""
    for command in ("worker", "api", "runner"):
        (tmp_path / command).write_text("s3cr3t")
    script = ROOT / "deploy" / "rabbitmq" / "users.py"
    arguments = (tmp_path, "my.prefix", "--runner", "runner=gpu,dev")
    printed = subprocess.run([sys.executable, script, *arguments], capture_output=True, check=True, timeout=30).stdout
    expected = {
        each["user"].removeprefix("my.prefix-"): (each["configure"], each["write"], each["read"])
        for each in json.loads(printed)["permissions"]
    }
    assert broker_users.rights("my.prefix", ("gpu", "dev")) == expected
