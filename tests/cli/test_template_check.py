"""``taskherd template check`` as people run it, with agents that fail in each way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskherd.cli.diagnostics.template import default_time_limit
from taskherd.directory_file.parse import parse_templates
from taskherd.directory_file.run import RunConfig
from tests.harness import fork_server
from tests.harness.fork_server import PROGRAM
from tests.harness.isolation import IS_ROOT, UIDS
from tests.harness.programs import find_program
from tests.harness.templates import TEMPLATES

ACP = [sys.executable, str(Path(__file__).parents[1] / "harness" / "acp_agent.py")]
AGENTAPI = [sys.executable, str(Path(__file__).parents[1] / "runner" / "agentapi.py")]
STUBBORN = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["setsid", "sleep", "600"])
time.sleep(600)
"""
Findings = dict[str, dict[str, str]]
pytestmark = pytest.mark.timeout(120)


def taskherd(
    arguments: list[str], env: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of taskherd, in a folder, and return what it printed."""
    ended = fork_server.run(arguments, env, folder=folder)
    return subprocess.CompletedProcess(arguments, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


class Checker:
    """The command, with temporary files in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.tmp = root / "tmp"
        self.tmp.mkdir()
        self.env = {"PATH": os.environ["PATH"], "TMPDIR": str(self.tmp), "COLUMNS": "300"}
        self.file = root / "templates.yaml"

    def write(self, run: Mapping[str, Any]) -> None:
        """Write a file with a template of that ``run``."""
        version = {"id": "5b8a1f0c-94d7-4f3e-8c21-6d0e7a9b2c02", "name": "v1", "run": dict(run)}
        template = {
            "id": "5b8a1f0c-94d7-4f3e-8c21-6d0e7a9b2c01", "organization": "acme", "name": "mine",
            "active_version": version["id"], "versions": [version],
        }  # fmt: skip
        self.file.write_text(yaml.safe_dump({"templates": [template]}))

    def command(self, *options: str) -> list[str]:
        """Return the command that checks the template."""
        return ["template", "check", "mine", "--file", str(self.file), *options]

    def check(self, run: Mapping[str, Any], *options: str, **env: str) -> tuple[int, Findings]:
        """Check a template, and return the exit code and the findings by the name of their check."""
        self.write(run)
        ended = taskherd(self.command("-o", "json", *options), {**self.env, **env})
        assert ended.stdout, ended.stderr
        return ended.returncode, {finding["check"]: finding for finding in json.loads(ended.stdout)}

    def left(self) -> list[str]:
        """Return the command lines of processes of agents that are left."""
        marker, found = f"TASKHERD_RUN_FOLDER={self.tmp}/".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text())
        return found


@pytest.fixture
def checker(tmp_path: Path) -> Iterator[Checker]:
    """Yield a checker; afterwards nothing of its agents is left."""
    checker = Checker(tmp_path)
    yield checker
    assert checker.left() == []
    assert list(checker.tmp.iterdir()) == []


def test_an_agent_that_works(checker: Checker) -> None:
    """An agent that opens a session passes, without a turn, as a table and as JSON."""
    code, found = checker.check({"agent": "acp", "command": [*ACP, "load"]})
    assert (code, {each["result"] for each in found.values()}) == (0, {"ok"})
    assert found["protocol"]["found"] == "ACP version 1: Fake Agent 1"
    assert "session/load" in found["capabilities"]["found"]
    ended = taskherd(checker.command(), checker.env)
    assert "it opens a session" in ended.stdout


@pytest.mark.parametrize(
    ("traits", "check", "words"),
    [
        (["version-2"], "protocol", "It speaks version 2 of the Agent Client Protocol"),
        (["auth"], "session", "it wants `authenticate`"),
        (["die"], "start", "it cannot start"),
        (["hang-initialize"], "protocol", "did not answer within"),
    ],
)
def test_an_acp_agent_that_fails(checker: Checker, traits: list[str], check: str, words: str) -> None:
    """What the agent refuses, or does not answer, is an error with its words, in bounded time."""
    began = time.monotonic()
    code, found = checker.check(
        {"agent": "acp", "command": [*ACP, *traits]}, "--timeout", "10" if "hang-initialize" in traits else "30"
    )
    assert (code, found[check]["result"]) == (1, "error")
    assert words in found[check]["found"]
    assert time.monotonic() - began < 45


def test_the_variables_to_sign_in_are_named(checker: Checker) -> None:
    """An agent that wants its user to sign in says with what, and so does the advice."""
    _, found = checker.check({"agent": "acp", "command": [*ACP, "auth"]})
    assert "API key (FAKE_KEY)" in found["session"]["advice"]


def test_what_a_template_needs_and_an_agent_cannot_is_a_note(checker: Checker) -> None:
    """An agent that cannot continue a session works, but a resumed task begins a new one."""
    code, found = checker.check({"agent": "acp", "command": ACP})
    assert (code, found["capabilities"]["result"]) == (0, "note")


def test_an_agent_that_does_not_speak_the_protocol(checker: Checker) -> None:
    """Text instead of messages is told from an agent that is slow."""
    code, found = checker.check({"agent": "acp", "command": ["sh", "-c", "yes hello"]})
    assert (code, found["protocol"]["result"]) == (1, "error")
    assert "hello" in found["protocol"]["found"]


def test_a_program_that_is_missing(checker: Checker) -> None:
    """A program that is not in the inherited PATH is an error that names the PATH."""
    code, found = checker.check({"command": ["no-such-agent"]})
    assert (code, found["program"]["found"]) == (1, "no-such-agent was not found")
    assert checker.env["PATH"] in found["program"]["advice"]


def test_variables_that_are_missing(checker: Checker) -> None:
    """Of several secrets one is enough; other variables are worth a note."""
    run = {"command": ["cat"], "env": {"inherit": ["PATH", "LANG", "A_KEY", "B_KEY", "BASE_URL"]}}
    code, found = checker.check(run, A_KEY="")
    assert (code, found["environment"]["found"]) == (1, "not set: A_KEY, B_KEY")
    code, found = checker.check(run, A_KEY="x")
    assert (code, found["environment"]["result"]) == (0, "note")
    assert found["environment"]["found"] == "not set: B_KEY, BASE_URL"
    assert checker.check(run, A_KEY="x", B_KEY="x", BASE_URL="x")[1]["environment"]["result"] == "ok"


@pytest.mark.parametrize(
    ("run", "result"),
    [
        ({"command": ["sh", "-c", "echo it is broken >&2; exit 3"]}, "error"),
        ({"command": ["sh", "-c", "echo it is broken; exit 78"], "stdin": "none"}, "error"),
        ({"command": ["sh", "-c", "echo it is broken; kill -9 $$"], "stdin": "prompt"}, "error"),
        ({"command": ["sh", "-c", "echo it is broken; exit 1"], "stdin": "none"}, "note"),
        ({"command": ["sh", "-c", "echo it is broken; exit 0"]}, "note"),
        ({"command": ["sh", "-c", "echo it is broken; exit 0"], "agent": "acp"}, "error"),
        ({"command": ["sh", "-c", "echo it is broken; exit 1"], "agent": "agentapi"}, "error"),
    ],
)
def test_an_agent_that_exits_at_once(checker: Checker, run: dict[str, Any], result: str) -> None:
    """It is an error with its last words, unless it may only lack a prompt."""
    code, found = checker.check(run)
    assert (found["start"]["result"], code) == (result, int(result == "error"))
    assert "it is broken" in found["start"]["found"]


def test_an_agent_that_waits(checker: Checker) -> None:
    """An agent that says nothing works if it runs; whatever it does to stay, it is ended."""
    code, found = checker.check({"command": [sys.executable, "-c", STUBBORN], "grace": 600})
    assert (code, found["start"]["result"]) == (0, "ok")


def test_an_agent_behind_agentapi(checker: Checker) -> None:
    """It answers on the port that it was given."""
    command = [*AGENTAPI, "{port}"]
    code, found = checker.check({"agent": "agentapi", "command": command})
    assert (code, found["AgentAPI"]["result"]) == (0, "ok")


def test_isolation_that_the_machine_lacks(checker: Checker) -> None:
    """A sandbox without bubblewrap, and users for a runner that may not have them, are errors that say what to do."""
    only_python = {"PATH": str(Path(sys.executable).parent)}
    code, found = checker.check({"command": [sys.executable], "sandbox": "bwrap"}, **only_python)
    assert (code, found["isolation"]["result"]) == (1, "error")
    assert "install the package bubblewrap" in found["isolation"]["found"]
    code, found = checker.check({"command": ["cat"]}, TASKHERD_RUNNER_CGROUP=str(checker.tmp.parent))
    assert (code, found["isolation"]["result"]) == (1, "error")
    assert "runner_cgroup" in found["isolation"]["found"]


def test_isolation_that_the_machine_has(checker: Checker) -> None:
    """In a sandbox, and with a user of its own, the agent runs as it would run in a task."""
    find_program("bwrap", "bubblewrap", print)
    code, found = checker.check({"command": ["cat"], "sandbox": "bwrap", "network": "none"})
    assert (code, found["start"]["result"]) == (0, "ok"), found
    assert "sandbox: bwrap, network: none" in found["isolation"]["found"]
    hidden = checker.tmp.parent / "agent"
    shutil.copy("/bin/cat", hidden)
    code, found = checker.check({"command": [str(hidden)], "sandbox": "bwrap"})
    assert (code, "not visible" in found["program"]["found"]) == (1, True)
    if IS_ROOT:
        for folder in (checker.tmp, *checker.tmp.parents):
            if folder.is_relative_to(checker.tmp.parents[3]):
                folder.chmod(folder.stat().st_mode | 0o011)
        code, found = checker.check({"command": ["sh", "-c", "id -u; exit 78"]}, TASKHERD_RUNNER_AGENT_UIDS=UIDS)
        assert "a user of its own" in found["isolation"]["found"], found
        assert "\n200" not in found["start"]["found"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_check_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    """Ended by a signal, it ends its agent; killed, it leaves that to the agent's shim, which has its time limit."""
    checker = Checker(tmp_path)
    checker.write({"agent": "acp", "command": [*ACP, "hang-initialize", "ignore-sigterm"]})
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen([*PROGRAM, *checker.command("--timeout", "40")], env=checker.env, stderr=file)
    while not any("acp_agent" in each for each in checker.left()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == (-9 if number == signal.SIGKILL else 1)
    deadline = time.monotonic() + 50
    while checker.left() and number == signal.SIGKILL and time.monotonic() < deadline:
        time.sleep(0.05)
    assert checker.left() == []
    assert "Traceback" not in errors.read_text()


def test_names_and_files(checker: Checker) -> None:
    """A name that is not in the file and an invalid file are errors without a traceback; shipped files are read."""
    checker.write({"command": ["cat"]})
    command = checker.command()
    for name, content, words in (
        ("yours", checker.file.read_text(), "it has: acme/mine"),
        ("mine", "templates: [{name: mine}]", "line 1"),
        ("mine", "templates: []", "templates"),
        ("mine", "{", "invalid"),
    ):
        checker.file.write_text(content)
        command[command.index("check") + 1] = name
        ended = taskherd(command, checker.env)
        assert ended.returncode == 1
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
    assert all(len(parse_templates(path.read_bytes())) == 1 for path in TEMPLATES.iterdir())
    command[command.index("check") + 1 :] = ["acme/codex", "--file", str(TEMPLATES / "codex.yaml")]
    ended = taskherd(command, {"PATH": "/usr/bin:/bin", "TMPDIR": str(checker.tmp)})
    assert ended.returncode == 1, ended.stdout
    assert "not set: OPENAI_API_KEY" in ended.stdout


def test_the_directory_file_of_the_folder_is_read_if_none_is_named(checker: Checker, tmp_path: Path) -> None:
    """It is ``directory.yaml``; without one the command says how to name another."""
    checker.write({"command": ["cat"]})
    command = ["template", "check", "mine"]
    ended = taskherd(command, checker.env, tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "directory.yaml" in ended.stderr
    assert "--file" in ended.stderr
    checker.file.rename(tmp_path / "directory.yaml")
    ended = taskherd(command, checker.env, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "acme/mine" in ended.stdout


@pytest.mark.parametrize(("start_timeout", "limit"), [(5, 30), (120, 120), (3_600, 600)])
def test_a_check_has_the_time_that_a_start_has(start_timeout: int, limit: int) -> None:
    """An agent that is slow to start, as a template says, is given its time, within bounds."""
    assert default_time_limit(RunConfig(command=("cat",), start_timeout=start_timeout)) == limit
