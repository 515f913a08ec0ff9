"""Attacks by an agent on other agents, on its runner and on its own end, in each mode of isolation.

The table in docs/runner.md (Trust) says the same as ``HELD``, and as the tests of what outlives a task.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from taskherd.dev.services import Services
from taskherd.runner import template
from taskherd.runner.workspaces.cgroups import Cgroups
from tests.conftest import open_amqp_prefix
from tests.harness.databases import Databases
from tests.harness.isolation import (
    BOTH,
    BWRAP,
    CGROUP,
    CGROUPS,
    IS_ROOT,
    MODES,
    NO_NETWORK,
    NONE,
    ORDINARY,
    ORDINARY_BWRAP,
    UIDS,
    UNCONTAINED,
    USERS,
    VAR_TMP,
    Mode,
    cgroup,
    every_mode,
    in_modes,
    kill_all,
    open_folder,
    running,
)
from tests.harness.programs import find_program
from tests.harness.runner import RunnerHarness, RunnerSubprocess, eventually, runner_harness
from tests.harness.worker import worker_harness

pytestmark = pytest.mark.timeout(180)

KEY = "/etc/ssl/private/machine.key"
PREPARE = f"""
mkdir -p /etc/ssl && mount -t tmpfs -o mode=755 tmpfs /etc/ssl && mkdir -m 711 /etc/ssl/private
umask 077 && echo private >{KEY} && umask 022 && exec "$@"
"""
OWN_PROCESS = ("unshare", "--mount", "sh", "-ec", PREPARE, "sh", "env") if IS_ROOT else ("env",)
"""Starts a runner whose environment ``/proc`` shows; if root does, then beside a TLS key that only root may read."""
ATTACKS = {
    "reads another agent's environment, and so its token": "grep -qa TASKHERD_AGENT_TOKEN= /proc/{victim}/environ",
    "reads another agent's command line, and a prompt in it": "grep -qa secret-argument /proc/{victim}/cmdline",
    "reads another agent's files": "grep -q private {folder}/{task}/work/file",
    "writes another agent's files": "touch {folder}/{task}/work/planted",
    "reads another agent's prompt file": "grep -q . {folder}/{task}/prompt.txt",
    "signals another agent": "kill -0 {victim}",
    "reads another agent's shim's environment": "grep -qa TASKHERD_AGENT_TOKEN= /proc/{shim}/environ",
    "signals another agent's shim": "kill -0 {shim}",
    "reads the runner's environment, and so its RabbitMQ password": "grep -qa AMQP_URL= /proc/{runner}/environ",
    "signals the runner": "kill -0 {runner}",
    "reads the runner's journal": "grep -q . {folder}/{task}/state/journal.json",
    "forges an exit record": "touch {folder}/{task}/state/run-1/exit.json.planted",
    "lists the folder of another task": "ls {folder}/{task}",
    "reads other files of the runner's user": "grep -q credential {credential}",
    "writes into the system": "eval 'touch {system} && rm {system}'",
    "reads the machine's TLS keys": "grep -q private {key}",
    "reads files that another agent left in /tmp, and plants some": "eval 'grep -q private {left} && touch {planted}'",
    "connects to ports of the machine, such as another agent's AgentAPI": "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'",
}
ROOT_ONLY = {
    "reads the runner's environment, and so its RabbitMQ password",
    "writes into the system",
    "reads the machine's TLS keys",
}
"""The attacks that only root achieves."""
HELD: dict[str, set[str]] = {
    NONE.name: set() if IS_ROOT else ROOT_ONLY,
    CGROUPS.name: set(),
    ORDINARY.name: ROOT_ONLY,
    ORDINARY_BWRAP.name: set(ATTACKS) - {"connects to ports of the machine, such as another agent's AgentAPI"},
    BWRAP.name: set(ATTACKS) - {"connects to ports of the machine, such as another agent's AgentAPI"},
    NO_NETWORK.name: set(ATTACKS),
    USERS.name: set(ATTACKS)
    - {
        "reads another agent's command line, and a prompt in it",
        "reads files that another agent left in /tmp, and plants some",
        "connects to ports of the machine, such as another agent's AgentAPI",
    },
    BOTH.name: set(ATTACKS) - {"connects to ports of the machine, such as another agent's AgentAPI"},
}
"""The attacks that fail in each mode; root also reads the environment of a process that hides it."""


RUNNER_SCOPE: Literal["module", "function"] = "function" if "MUTATION_OUTCOMES" in os.environ else "module"
"""Tests share runners, but not under ``make mutants``: what a process executes counts for the test that started it."""
WORKER_SETTINGS = {"request_backoff_first": 0.5, "request_backoff_most": 1, "log_level": "warning"}


@pytest.fixture
async def harness(
    database_url: str, amqp_url: str, amqp_prefix: str, announce: Callable[[str], None]
) -> AsyncIterator[RunnerHarness]:
    """Yield a harness for this test alone, without a runner, whose folder other users may enter."""
    find_program("bwrap", "bubblewrap", announce)
    with open_folder() as folder:
        async with (
            worker_harness(database_url, amqp_url, amqp_prefix, **WORKER_SETTINGS) as worker,
            runner_harness(worker, folder) as harness,
        ):
            yield harness


@pytest.fixture
async def start(harness: RunnerHarness, mode: Mode) -> AsyncIterator[Callable[[], Any]]:
    """Yield a function that starts a runner in this mode, which the test may kill."""
    with settings_of(mode) as settings:
        yield lambda: harness.start(prefix=become(harness, mode), **settings)


@pytest.fixture(scope=RUNNER_SCOPE)
async def mode_harness(
    mode: Mode, services: Services, databases: Databases, announce: Callable[[str], None]
) -> AsyncIterator[RunnerHarness]:
    """Yield a harness with a runner in this mode, for all tests that leave it as it is."""
    find_program("bwrap", "bubblewrap", announce)
    with settings_of(mode) as settings, open_folder() as folder:
        async with (
            databases.lend() as database_url,
            open_amqp_prefix(services.amqp_url) as amqp_prefix,
            worker_harness(database_url, services.amqp_url, amqp_prefix, **WORKER_SETTINGS) as worker,
            runner_harness(worker, folder) as harness,
        ):
            await harness.start(prefix=become(harness, mode), **settings)
            yield harness


@pytest.fixture
async def shared(mode_harness: RunnerHarness) -> AsyncIterator[RunnerHarness]:
    """Yield the harness of the mode; afterwards delete all tasks, so that the next test finds nothing of them."""
    (runner,) = mode_harness.runners
    assert runner.process.returncode is None, runner.log.read_text()
    yield mode_harness
    tasks = await mode_harness.worker.database.fetch("SELECT id, deleted_at FROM tasks")
    for task in tasks:
        if task["deleted_at"] is None:
            assert (await mode_harness.worker.command("task.delete", task["id"]))["ok"]
    await eventually(lambda: not any((mode_harness.root / str(task["id"])).exists() for task in tasks), 60)


@contextmanager
def settings_of(mode: Mode) -> Iterator[dict[str, str]]:
    """Yield the settings of a runner in this mode, with a cgroup of its own if it gets one."""
    if mode.settings.get("runner_cgroup") != CGROUP:
        yield mode.settings
        return
    with cgroup() as path:
        yield {**mode.settings, "runner_cgroup": str(path)}


def become(harness: RunnerHarness, mode: Mode) -> tuple[str, ...]:
    """Return the command that runs another as the mode's user, who gets the runner's folder."""
    if mode.uid is None:
        return OWN_PROCESS
    harness.root.mkdir(exist_ok=True)
    os.chown(harness.root, mode.uid, mode.uid)
    user = ("--reuid", str(mode.uid), "--regid", str(mode.uid), "--clear-groups")
    return (*OWN_PROCESS, f"HOME={harness.root}", "setpriv", *user, "--inh-caps", "-all", "--bounding-set", "-all")


async def shell(harness: RunnerHarness, mode: Mode, script: str, **run: Any) -> uuid.UUID:
    """Create a task whose agent is a shell script."""
    command = ["sh", "-c", script, "sh", "secret-argument"]
    await harness.template({"command": command, "grace": 1, **mode.run, **run})
    return await harness.worker.create(input=f"Do it {uuid.uuid4().hex}")


def agent_of(harness: RunnerHarness, task_id: uuid.UUID) -> int:
    """Return the pid of the agent itself, not of a sandbox around it."""
    (agent,) = [pid for pid in running("secret-argument") if is_shell(pid) and pid in harness.marked(task_id)]
    return agent


def is_shell(pid: int) -> bool:
    """Return whether a process is a shell."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sh\0")


@every_mode
async def test_what_an_agent_can_do_to_others(shared: RunnerHarness, mode: Mode) -> None:
    """In each mode exactly the attacks fail that the documentation says."""
    credential = shared.folder / "credential"
    credential.write_text("credential")
    credential.chmod(0o600)
    os.chown(credential, *(2 * [-1 if mode.uid is None else mode.uid]))
    left = Path(f"/tmp/taskherd-test-{uuid.uuid4().hex}")  # noqa: S108 - the attack is on this folder
    planted = left.with_suffix(".planted")
    victim = await shell(shared, mode, f"umask 022; echo private | tee file >{left}; echo up; read line")
    await shared.until_output(victim, "up")
    with socket.create_server(("127.0.0.1", 0)) as listener, removed(left, planted):
        values = {
            "victim": agent_of(shared, victim),
            "shim": shared.agent(victim)["pid"],
            "runner": shared.runners[0].process.pid,
            "folder": shared.root,
            "task": victim,
            "credential": credential,
            "system": f"/usr/{left.name}",
            "key": KEY,
            "left": left,
            "planted": planted,
            "port": listener.getsockname()[1],
        }
        lines = [
            f'if {attack.format(**values)} >/dev/null 2>&1; then echo "could: {name}"; else echo "failed: {name}"; fi'
            for name, attack in ATTACKS.items()
        ]
        attacker = await shell(shared, mode, "\n".join([*lines, "echo attacked; read line"]))
        await shared.until_output(attacker, "attacked")
        has_planted = planted.exists()
    output = "\n".join(await shared.output(attacker)).splitlines()
    assert {line.removeprefix("failed: ") for line in output if line.startswith("failed: ")} == HELD[mode.name]
    assert {line.removeprefix("could: ") for line in output if line.startswith("could: ")} == (
        set(ATTACKS) - HELD[mode.name]
    )
    assert has_planted == ("reads files that another agent left in /tmp, and plants some" not in HELD[mode.name])


@pytest.mark.parametrize("mode", [each for each in MODES if each.run.get("network") is None and each.run], ids=str)
@pytest.mark.parametrize("visible", ["real", "link"])
async def test_a_sandbox_shows_no_other_task_below_a_visible_path(
    harness: RunnerHarness, mode: Mode, visible: str
) -> None:
    """The runner's folder is covered, also where a link leads to it; the task's own and what is beside it are not."""
    with open_folder(VAR_TMP) as outside:
        outside.chmod(0o755)
        (outside / "real").mkdir()
        (outside / "real/tool").write_text("shown")
        (outside / "link").symlink_to(outside / "real")
        async with runner_harness(harness.worker, outside / "real") as below:
            paths = str(outside / visible)
            await below.start(prefix=become(below, mode), runner_sandbox_paths=paths, **mode.settings)
            victim = await shell(below, mode, "echo private >file; echo up; read line")
            await below.until_output(victim, "up")
            roots = " ".join(f"{outside}/{name}/r1" for name in ("real", "link"))
            attack = f"for root in {roots}; do cat $root/{victim}/work/file $root/*/state/journal.json; ls $root; done"
            attacker = await shell(below, mode, f"cat {paths}/tool; echo; ({attack}) 2>&1; echo attacked; read line")
            await below.until_output(attacker, "attacked")
            output = "\n".join(await below.output(attacker))
    assert output.startswith("shown\n")
    assert "private" not in output
    assert "secret-argument" not in output
    assert str(victim) not in output.replace(f"{victim}/work/file: No such file", "")


@contextmanager
def removed(*paths: Path) -> Iterator[None]:
    """Remove files after the block, if they are there."""
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def test_the_documentation_says_what_holds() -> None:
    """Each row is one attack, and its columns are what the attack achieves in each mode."""
    text = (Path(__file__).parents[2] / "docs/runner.md").read_text()
    table = re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text)
    rows = {row[0]: row[1:] for row in table if row[1:] != ("neither", "`bwrap`", "users", "both")}
    outlives = "leaves processes after a pause, a delete or an interrupted start"
    assert rows.pop(outlives) == ("**yes**, unless `TASKHERD_RUNNER_CGROUP`", "no", "no", "no")
    assert rows.pop(POSES) == ("no", "no", "no", "no")
    assert rows.keys() == ATTACKS.keys()
    for attack, row in rows.items():
        for mode, cell in zip((NONE, BWRAP, USERS, BOTH), row, strict=True):
            if cell != "if it is root":
                assert (cell == "no") == (attack in HELD[mode.name]), (attack, mode.name)
        assert ("unless `network: none`" in row[1]) == (attack in HELD[NO_NETWORK.name] - HELD[BWRAP.name])


POSES = "poses as another agent's AgentAPI, and so gets its prompt"
SERVER = Path(__file__).parent / "agentapi.py"
"""The program that agents run gets its text: they may not enter the folder of this file everywhere."""
every_mode_of_agentapi = in_modes(each for each in MODES if each not in (NO_NETWORK, CGROUPS))
"""A server needs a network, and a cgroup changes nothing about ports."""


@every_mode_of_agentapi
async def test_a_prompt_goes_to_nobody_who_took_the_port_of_its_agent(shared: RunnerHarness, mode: Mode) -> None:
    """Whoever listens there before the agent does is sent nothing, and the start fails with words that say why."""
    arrived = bytearray()

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = b'event: status_change\ndata: {"status": "stable"}\n\n'
        with suppress(OSError):
            while data := await reader.read(65_536):
                arrived.extend(data)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event)
        writer.close()

    script = 'echo "$TASKHERD_AGENT_PORT" > port; exec sleep 1000'
    task_id = await shell(shared, mode, script, agent="agentapi")
    told = shared.work(task_id) / "port"
    await eventually(lambda: told.exists() and told.read_text().strip())
    async with await asyncio.start_server(pose, "127.0.0.1", int(told.read_text())):
        await shared.until_state(task_id, "failed", "Another process than the agent listens on the agent's port")
        await shared.until_output(task_id, "Another process than the agent listens")
        await shared.until_status(task_id, "error")
        await eventually(lambda: not shared.marked(task_id))
    assert arrived == b""


@every_mode_of_agentapi
async def test_a_prompt_goes_to_the_agent_that_listens(harness: RunnerHarness, mode: Mode) -> None:
    """Its own user, and its sandbox, are no reason to take it for another."""
    await harness.start(prefix=become(harness, mode), runner_sandbox_paths=sys.base_prefix, **mode.settings)
    start = f"{sys.base_prefix}/bin/python3 - \"$TASKHERD_AGENT_PORT\" <<'END'\n{SERVER.read_text()}\nEND"
    task_id = await shell(harness, mode, start, agent="agentapi", idle_after=1)
    await harness.until_state(task_id, "idle", "Did: Do it")


BOMB = """
cat > bomb <<'END'
[ $1 -gt 0 ] || exec sleep {argument}
setsid env -i PATH=$PATH sh bomb $(($1-1)) &
setsid env -i PATH=$PATH sh bomb $(($1-1)) &
END
setsid env -i PATH=$PATH sh bomb {depth} &
setsid env -i sleep {argument} &
( (setsid env -i sleep {argument} &) & )
sleep {argument} &
echo planted
until [ -e go ]; do sleep 0.05; done
kill -9 $PPID
exec sleep {argument}
"""
DEPTH = 6


async def plant(harness: RunnerHarness, mode: Mode, argument: str) -> uuid.UUID:
    """Start an agent that leaves daemons without the run's marker and then kills its parent process."""
    task_id = await shell(harness, mode, BOMB.replace("{argument}", argument).replace("{depth}", str(DEPTH)))
    await harness.until_output(task_id, "planted")
    await harness.until_status(task_id, "active")
    await eventually(lambda: len(running(argument)) == 2**DEPTH + 3)
    return task_id


@pytest.mark.parametrize("command", ["task.pause", "task.delete"])
@every_mode
async def test_nothing_outlives_its_task(shared: RunnerHarness, mode: Mode, command: str) -> None:
    """Daemons in sessions of their own, without the run's marker, end with the task, except in ``UNCONTAINED`` modes.

    Before, the agent kills its parent process with SIGKILL, which is its shim unless its isolation prevents that.
    """
    argument = f"9{uuid.uuid4().int % 10**8:08}"
    try:
        task_id = await plant(shared, mode, argument)
        (shared.work(task_id) / "go").touch()
        if mode in (*UNCONTAINED, CGROUPS):  # its shim is killed, so it is lost
            await shared.until_state(task_id, "failed", "lost")
        else:
            await eventually(lambda: len(running(argument)) == 2**DEPTH + 4)
        assert (await shared.worker.command(command, task_id))["ok"]
        if command == "task.delete":
            await eventually(lambda: not (shared.root / str(task_id)).exists())
        else:
            await shared.until_status(task_id, "paused")
        assert bool(running(argument)) == (mode in UNCONTAINED)
    finally:
        kill_all(argument)


@every_mode
async def test_nothing_outlives_an_interrupted_start(
    harness: RunnerHarness, mode: Mode, start: Callable[[], Any]
) -> None:
    """If runner and shim are killed, the next runner ends what the agent has left, before it starts another."""
    first: RunnerSubprocess = await start()
    argument = f"8{uuid.uuid4().int % 10**8:08}"
    task_id = await plant(harness, mode, argument)
    await first.kill()
    os.kill(harness.agent(task_id)["pid"], signal.SIGKILL)
    await start()
    await harness.until_state(task_id, "failed", "lost")
    try:
        if mode in UNCONTAINED:
            assert running(argument)
        else:
            await eventually(lambda: not running(argument))  # on a busy machine a killed process takes its time
    finally:
        kill_all(argument)


@every_mode
async def test_an_agent_has_what_it_needs(shared: RunnerHarness, mode: Mode) -> None:
    """Prompt, HOME, temporary folder, working directory, standard streams and inputs work in every mode."""
    script = """
        set -e
        test "$(cat "$TASKHERD_PROMPT_FILE")" = "$TASKHERD_PROMPT"
        cd; cd - >/dev/null
        test "${PWD##*/work/}" = a/b
        touch here "${TMPDIR:-/tmp}/temporary-$TASKHERD_TASK_ID"
        rm "${TMPDIR:-/tmp}/temporary-$TASKHERD_TASK_ID"
        echo up > /dev/stdout
        read line
        trap 'echo terminated; touch terminated; exit 3' TERM
        echo "got $line" > /dev/stderr
        while :; do sleep 0.05 || :; done
    """
    task_id = await shell(shared, mode, script, workdir="a/b", grace=30, idle_after=0.5)
    await shared.until_output(task_id, "up")
    await shared.until_status(task_id, "active")
    assert (await shared.worker.command("task.send", task_id, input="over here"))["ok"]
    await shared.until_output(task_id, "got over here")
    assert (await shared.worker.command("task.pause", task_id))["ok"]
    await shared.until_status(task_id, "paused")
    assert (shared.work(task_id) / "a/b/terminated").exists()
    record = json.loads((shared.state(task_id) / "run-1/exit.json").read_text())
    assert (record["reason"], record["code"]) == ("stopped", 3)


@in_modes(each for each in MODES if each.run or each is NONE)
async def test_an_agent_in_a_sandbox_that_closed_its_stdin_takes_no_inputs(shared: RunnerHarness, mode: Mode) -> None:
    """The sandbox around the agent keeps stdin open, but does not count."""
    task_id = await shell(shared, mode, "exec 0</dev/null; echo up; exec sleep 1000", idle_after=0.5)
    await shared.until_output(task_id, "up")
    await shared.until_status(task_id, "active")
    assert (await shared.worker.command("task.send", task_id, input="hello"))["ok"]
    await shared.until_output(task_id, "The agent has closed its stdin")


@in_modes(each for each in MODES if each is not NONE)
async def test_a_command_that_does_not_exist_is_reported(shared: RunnerHarness, mode: Mode) -> None:
    """The task says which program is missing; inside a sandbox it is the sandbox that says so."""
    await shared.template({"command": ["/no/such/program"], **mode.run})
    task_id = await shared.worker.create(input="Run nothing")
    await shared.until_state(task_id, "failed", "/no/such/program")


@pytest.mark.parametrize(
    ("controllers", "limits", "missing"),
    [("memory", {"cpu": 1}, "cpu"), ("cpu", {"memory": "4Gi"}, "memory"), ("", {"cpu": 1, "memory": "4Gi"}, "cpu")],
)
async def test_a_limit_that_the_cgroup_cannot_set_fails_the_build(
    harness: RunnerHarness, controllers: str, limits: dict[str, Any], missing: str
) -> None:
    """The runner's log says so at its start; agents without that limit, and with others, start.

    A folder takes the place of the cgroup: the development machines have no cgroup v2 with controllers.
    """
    path = harness.folder / "cgroup"
    path.mkdir()
    (path / "cgroup.controllers").write_text(controllers)
    runner = await harness.start(runner_cgroup=str(path))
    assert "templates with such limits fail to start" in str(runner.lines())
    assert f"unavailable: the cgroup lacks the controllers {missing}" in str(runner.lines())
    refused = await shell(harness, NONE, "exec sleep 1000", limits=limits)
    reason = f"the template has `limits.{missing}`, which this runner cannot give: its cgroup lacks the controller"
    await harness.until_state(refused, "failed", reason)
    examples: dict[str, Any] = {"memory": "4Gi", "cpu": 1}
    possible = {name: examples[name] for name in controllers.split()}
    started = await shell(harness, NONE, "echo up; exec sleep 1000", limits={**possible, "timeout": "1h"})
    await harness.until_output(started, "up")
    assert (path / f"{started}-1" / "memory.max").exists() == ("memory" in possible)
    assert (path / f"{started}-1" / "cpu.max").exists() == ("cpu" in possible)


async def test_a_sandbox_that_cannot_be_had_fails_the_build(harness: RunnerHarness) -> None:
    """The error says what is missing and what to install; the runner's log said so at its start."""
    runner = await harness.start(prefix=("env", "PATH=/nowhere"))
    assert "install the package bubblewrap" in str(runner.lines())
    task_id = await shell(harness, BWRAP, "true")
    await harness.until_state(
        task_id,
        "failed",
        "the template has `sandbox: bwrap`, which this runner cannot give: "
        "bwrap is not installed; install the package bubblewrap",
    )
    await harness.until_status(task_id, "error")


if IS_ROOT:

    async def test_each_task_has_a_user_of_its_own_without_any_privilege(harness: RunnerHarness) -> None:
        """Two tasks have two users, no groups, no capabilities, no way to gain any, and keep their user."""
        first = await harness.start(runner_agent_uids=UIDS)
        assert any(line.get("agent_users") == UIDS for line in first.lines())
        script = "id -u; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; echo up; exec sleep 1000"
        users = {}
        tasks = [await shell(harness, USERS, script) for _ in range(2)]
        for task_id in tasks:
            await harness.until_output(task_id, "up")
            await harness.until_status(task_id, "active")
            lines = "\n".join(await harness.output(task_id)).split()
            user = users[task_id] = int(lines[0])
            assert 200_001 <= user <= 200_063
            assert lines[1] == lines[0]
            assert [int(lines[lines.index(f"Cap{name}:") + 1], 16) for name in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
            assert lines[lines.index("NoNewPrivs:") + 1] == "1"
            status = harness.work(task_id).stat()
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (user, user, 0o700)
        assert len(set(users.values())) == len(tasks)
        await first.kill()
        await harness.start(runner_agent_uids=UIDS)
        for task_id in tasks:
            assert (await harness.worker.command("task.pause", task_id))["ok"]
            await harness.until_status(task_id, "paused")
            assert (await harness.worker.command("task.resume", task_id))["ok"]
            await harness.until_status(task_id, "active")
            assert harness.work(task_id).stat().st_uid == users[task_id]

    async def test_a_runner_with_capabilities_need_not_be_root(harness: RunnerHarness) -> None:
        """Its capabilities are passed on to no agent, and no process of another task is ended."""
        names = "chown,dac_override,fowner,kill,setgid,setuid".replace(",", ",+")
        user = ("setpriv", "--reuid", "199999", "--regid", "199999", "--clear-groups")
        capabilities = ("--inh-caps", f"+{names}", "--ambient-caps", f"+{names}")
        await harness.start(prefix=(*user, *capabilities), runner_agent_uids=UIDS)
        other = await shell(harness, USERS, "echo up; exec sleep 1000")
        await harness.until_output(other, "up")
        await harness.until_status(other, "active")
        argument = f"7{uuid.uuid4().int % 10**8:08}"
        script = f"grep ^Cap /proc/self/status; setsid env -i sleep {argument} & echo up; wait"
        task_id = await shell(harness, USERS, script)
        await harness.until_output(task_id, "up")
        await harness.until_status(task_id, "active")
        await eventually(lambda: len(running(argument)) == 1)
        lines = "\n".join(await harness.output(task_id)).split()
        assert [int(lines[lines.index(f"Cap{name}:") + 1], 16) for name in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
        assert (await harness.worker.command("task.delete", task_id))["ok"]
        await eventually(lambda: not (harness.root / str(task_id)).exists())
        assert running(argument) == set()
        assert harness.worker.document(other)["status"] == "active"
        assert len(harness.marked(other)) == len({"shim", "agent"})

    async def test_the_capabilities_of_the_container_are_enough(harness: RunnerHarness) -> None:
        """As in deploy/compose.yaml, the runner sees what agents do and ends them, and they cannot read its secret."""
        service = yaml.safe_load((Path(__file__).parents[2] / "deploy/compose.yaml").read_text())["services"]["runner"]
        granted = ",".join(f"+{name.lower()}" for name in service["cap_add"])
        limits = ("--no-new-privs", "--inh-caps", "-all", "--bounding-set", f"-all,{granted}")
        secret = harness.folder / "amqp_url"
        secret.write_text(harness.worker.urls[1])
        secret.chmod(0o600)
        uids = service["environment"]["TASKHERD_RUNNER_AGENT_UIDS"]
        runner = await harness.start(prefix=("setpriv", *limits), runner_agent_uids=uids)
        status = Path(f"/proc/{runner.process.pid}/status").read_text()
        assert int(re.findall(r"CapEff:\t(\w+)", status)[0], 16).bit_count() == len(service["cap_add"])
        argument = f"6{uuid.uuid4().int % 10**8:08}"
        attack = f"cat {secret} /proc/{runner.process.pid}/environ; (setsid env -i sleep {argument} &);"
        script = f"{attack} sleep 3 </dev/null; echo up; read line"
        task_id = await shell(harness, USERS, script, idle_after=0.5)
        await harness.until_state(task_id, "idle")
        states = [event["task"]["current_state"] or {} for event in harness.worker.events_of(task_id)]
        assert {state["message"] for state in states if state.get("state") == "idle"} == {"up"}  # after the sleep
        output = "\n".join(await harness.output(task_id))
        assert output.count("Permission denied") == 2
        assert "amqp://" not in output
        assert (await harness.worker.command("task.delete", task_id))["ok"]
        await eventually(lambda: not (harness.root / str(task_id)).exists())
        assert running(argument) == set()

    async def test_a_range_without_a_free_user_fails_the_build(harness: RunnerHarness) -> None:
        """A user is free again when nothing of its task is left."""
        await harness.start(runner_agent_uids="200000-200001")
        first = await shell(harness, USERS, "echo up; exec sleep 1000")
        await harness.until_output(first, "up")
        second = await shell(harness, USERS, "echo up; exec sleep 1000")
        await harness.until_state(second, "failed", "all 1 users in TASKHERD_RUNNER_AGENT_UIDS are in use; widen")
        assert (await harness.worker.command("task.delete", first))["ok"]
        await eventually(lambda: not (harness.root / str(first)).exists())
        assert (await harness.worker.command("task.resume", second))["ok"]
        await harness.until_output(second, "up")

    async def test_links_of_an_agent_lead_the_runner_nowhere(harness: RunnerHarness) -> None:
        """The runner, which is root, neither creates, gives away nor removes anything outside of the task's folder."""
        outside = harness.folder / "outside"
        outside.mkdir(mode=0o755)
        (outside / "kept").write_text("kept")
        await harness.start(runner_agent_uids=UIDS)
        script = f"ln -s {outside} sub; ln -s {outside} ~/link; ln -s {outside}/kept $TMPDIR/link; echo up; sleep 1000"
        task_id = await shell(harness, USERS, script)
        await harness.until_output(task_id, "up")
        await harness.until_status(task_id, "active")
        assert (await harness.worker.command("task.pause", task_id))["ok"]
        await harness.until_status(task_id, "paused")
        await harness.template({"command": ["sh", "-c", "pwd"], "workdir": "sub/made"})
        assert (await harness.worker.command("task.resume", task_id))["ok"]
        await harness.until_state(task_id, "failed", "No such file or directory")
        assert (await harness.worker.command("task.delete", task_id))["ok"]
        await eventually(lambda: not (harness.root / str(task_id)).exists())
        assert [path.name for path in outside.iterdir()] == ["kept"]
        assert (outside / "kept").stat().st_uid == outside.stat().st_uid == 0

    async def test_a_task_from_before_the_setting_gets_its_files(harness: RunnerHarness) -> None:
        """Its files become its user's, but no file with another name, which may be outside of its folder."""
        outside = harness.folder / "outside"
        outside.write_text("kept")
        first = await harness.start()
        task_id = await shell(harness, NONE, f"mkdir sub; echo 1 > sub/own; ln {outside} hard; echo up; sleep 1000")
        await harness.until_output(task_id, "up")
        await harness.until_status(task_id, "active")
        assert (await harness.worker.command("task.pause", task_id))["ok"]
        await harness.until_status(task_id, "paused")
        await first.terminate()
        await harness.start(runner_agent_uids=UIDS)
        await harness.template({"command": ["sh", "-c", "echo 2 >> sub/own; echo changed; sleep 1000"]})
        assert (await harness.worker.command("task.resume", task_id))["ok"]
        await harness.until_output(task_id, "changed")
        work = harness.work(task_id)
        assert (work / "sub/own").stat().st_uid == work.stat().st_uid != 0
        assert outside.stat().st_uid == 0

    @pytest.mark.parametrize(
        ("prefix", "settings", "problem"),
        [
            (
                ("setpriv", "--bounding-set", "-setuid,-kill"),
                {"runner_agent_uids": UIDS},
                "the runner lacks CAP_KILL, CAP_SETUID; run it as root or with these capabilities",
            ),
            ((), {"runner_agent_uids": "1-100"}, "contains the ids of existing users (daemon, bin, sys)"),
            ((), {"runner_agent_uids": "200000"}, "expected a range of at least two ids"),
            ((), {"runner_agent_uids": UIDS, "runner_root": "{closed}/r1"}, "cannot enter {closed}; run `chmod o+x"),
        ],
    )
    async def test_a_runner_that_cannot_give_users_of_their_own_does_not_start(
        harness: RunnerHarness, prefix: tuple[str, ...], settings: dict[str, str], problem: str
    ) -> None:
        """The error names what is missing and what to do."""
        closed = harness.folder / "closed"
        closed.mkdir(mode=0o700)
        settings = {name: value.replace("{closed}", str(closed)) for name, value in settings.items()}
        with pytest.raises(AssertionError, match=r".") as failure:
            await harness.start(prefix=prefix, **settings)
        assert problem.replace("{closed}", str(closed)) in str(failure.value)


async def until_command_ended(work: Path) -> None:
    """Wait until the command that an agent has run through the runner has succeeded."""
    ended = work / "ended"
    await eventually(lambda: ended.exists() and ended.read_text(), 60)  # the shell creates it before it writes
    assert '"exitCode":0' in ended.read_text()


COMMAND_BESIDE = """
tell() { printf '%s\\n' "{\\"jsonrpc\\":\\"2.0\\",$1}"; }
look() { id -u > $1.user; ls / > $1.root; cat /proc/self/cgroup > $1.cgroup; }
look agent
read line; tell '"id":0,"result":{"protocolVersion":1}'
read line; tell '"id":1,"result":{"sessionId":"s"}'
read line
command='look() { id -u > $1.user; ls / > $1.root; cat /proc/self/cgroup > $1.cgroup; }; look command; sleep 300 &'
tell '"id":"c","method":"terminal/create","params":{"sessionId":"s","command":"'"$command"'"}'
read line
tell '"id":"w","method":"terminal/wait_for_exit","params":{"terminalId":"terminal-0"}'
read line; echo "$line" > ended
while read line; do :; done
"""


@every_mode
async def test_a_command_beside_an_agent_is_held_as_the_agent_is(shared: RunnerHarness, mode: Mode) -> None:
    """A command that runs through the runner has the agent's user, root and cgroup, and its end spares it."""
    task_id = await shell(shared, mode, COMMAND_BESIDE, agent="acp", client_terminals=True)
    work = shared.work(task_id)
    await until_command_ended(work)
    for name in ("user", "root", "cgroup"):
        assert (work / f"command.{name}").read_text() == (work / f"agent.{name}").read_text()
    assert len(shared.marked(task_id)) >= 2
    assert (await shared.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not shared.marked(task_id), 60)


COMMAND_WITH_LIBRARY = """
tell() { printf '%s\\n' "{\\"jsonrpc\\":\\"2.0\\",$1}"; }
read line; tell '"id":0,"result":{"protocolVersion":1}'
read line; tell '"id":1,"result":{"sessionId":"s"}'
read line
env='{"name":"LD_DEBUG","value":"libs"},{"name":"LD_DEBUG_OUTPUT","value":"'$PWD'/linked"},{"name":"W","value":"a b"}'
command='echo $W > word'
tell '"id":"c","method":"terminal/create","params":{"sessionId":"s","command":"'"$command"'","env":['"$env"']}'
read line
tell '"id":"w","method":"terminal/wait_for_exit","params":{"terminalId":"terminal-0"}'
read line; echo "$line" > ended
while read line; do :; done
"""


@every_mode
async def test_variables_of_a_command_beside_an_agent_have_no_effect_outside_its_sandbox(
    shared: RunnerHarness, mode: Mode
) -> None:
    """The program that makes the sandbox loads no library that they name: it would run in the runner's place."""
    task_id = await shell(shared, mode, COMMAND_WITH_LIBRARY, agent="acp", client_terminals=True)
    work = shared.work(task_id)
    await until_command_ended(work)
    assert (work / "word").read_text() == "a b\n"
    linked = "".join(each.read_text() for each in work.glob("linked.*"))
    assert "libc.so" in linked, "the shell's libraries"
    assert "bwrap" not in linked
    assert "libcap" not in linked, "one of bubblewrap's libraries"


@pytest.mark.skipif(CGROUPS not in MODES, reason="only root can make a cgroup")
def test_the_cgroups_of_all_runs_of_a_task_are_removed() -> None:
    """With what runs in them; that of a later run stays."""
    task_id, limits = uuid.uuid4(), template.parse({"command": ["a"]}).limits
    with ExitStack() as sleeping, cgroup() as root:
        cgroups = Cgroups(root)
        processes = [sleeping.enter_context(subprocess.Popen(["sleep", "600"])) for _ in range(3)]
        for number, process in enumerate(processes, start=9):
            (cgroups.create(task_id, number, limits) / "cgroup.procs").write_text(str(process.pid))
        assert cgroups.remove(task_id, 10) == 0
        assert [process.wait(timeout=30) for process in processes[:2]] == [-signal.SIGKILL] * 2
        assert [path.name for path in root.iterdir() if path.is_dir()] == [f"{task_id}-11"]
        assert processes[2].poll() is None
        assert cgroups.remove(task_id, 11) == 0
