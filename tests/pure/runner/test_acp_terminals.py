"""Commands of an agent, without processes: which are run, when they end, and what the next runner does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents.acp import terminals
from taskherd.runner.agents.acp.connection import AgentCall
from taskherd.runner.agents.acp.conversation import MAX_CALL_TEXT
from taskherd.runner.agents.acp.terminals import METHODS, Terminals
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import ExitRecord
from taskherd.runner.workspaces.terminals import TerminalCommand
from tests.pure.runner.acp_life import AcpLife

KIB = 1024


class Handle:
    """The shim of a command, which ends when a test says so."""

    def __init__(self) -> None:
        self.exit: ExitRecord | None = None
        self.stops = 0
        self.is_closed = False

    def collect(self) -> ExitRecord | None:
        """Return how it ended."""
        return self.exit

    def stop(self) -> None:
        """Note it."""
        self.stops += 1

    def close(self) -> None:
        """Note it."""
        assert not self.is_closed
        self.is_closed = True


class Agent:
    """An agent that asks for commands, what it is answered, and the turn that it is in."""

    def __init__(self, folder: Path) -> None:
        self.life = AcpLife(folder)
        self.life.context.outbox.is_saved = True
        self.failure: OSError | None = None
        self.started: list[tuple[RunFolder, TerminalCommand]] = []
        self.handles: list[Handle] = []
        self.answers: dict[object, object] = {}
        self.kept: list[object] = []
        """The requests whose answers the next runner must have."""
        self.shown: list[tuple[str, str]] = []
        self.is_open = True
        self.cancelled = False
        self.life.change(start_command=self._start)
        self.follow_again({})

    def follow_again(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the next runner, which has this checkpoint."""
        me: Any = self
        self.terminals = Terminals(checkpoint, context=self.life.context, respond=me, conversation=me, turn=me)

    def _start(self, folder: RunFolder, command: TerminalCommand) -> Handle:
        if self.failure is not None:
            raise self.failure
        folder.path.mkdir()
        folder.output.mkdir()
        self.started.append((folder, command))
        self.handles.append(Handle())
        return self.handles[-1]

    def answer(self, request: object, result: object, *, keep: bool = False) -> None:
        """Note an answer."""
        assert request not in self.answers
        self.answers[request] = result
        if keep:
            self.kept.append(request)

    def refuse(self, request: object, code: int, words: str) -> None:
        """Note a refusal."""
        self.answer(request, (code, words))

    def show_terminal(self, name: str, text: Any) -> None:
        """Note what is shown of a command."""
        self.shown.append((name, text()))

    def ask(self, number: int, verb: str, **params: Any) -> object:
        """Make a request, and return the answer if there is one at once."""
        call = AgentCall(number, f"terminal/{verb}", {"sessionId": "s", **params}, has_fields=True)
        self.terminals.handle(call)
        return self.answers.get(number)

    def run(self, number: int, command: str = "make", **params: Any) -> str:
        """Have a command started, and return its id."""
        assert self.ask(number, "create", command=command, **params) is None
        self.terminals.advance()
        (self.started[-1][0].path / "started.json").write_text("{}")
        assert self.terminals.advance()
        result = self.answers[number]
        assert isinstance(result, dict)
        return str(result["terminalId"])


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """Return an agent in a turn."""
    return Agent(tmp_path)


def test_a_command_is_started_once_its_request_is_recorded(agent: Agent) -> None:
    """Its answer says that it has started; its end is told to who waits, its output in the log."""
    verbs = ("create", "output", "wait_for_exit", "kill", "release")
    assert tuple(f"terminal/{verb}" for verb in verbs) == METHODS
    assert not agent.terminals.advance()
    agent.ask(1, "create", command="make", args=["all"], env=[{"name": "_A1", "value": ""}])
    agent.life.context.outbox.is_saved = False
    assert not agent.terminals.advance()
    assert agent.started == []
    agent.life.context.outbox.is_saved = True
    agent.terminals.advance()
    ((folder, command),) = agent.started
    assert (command.argv, command.cwd, command.env) == (["make", "all"], agent.life.work, {"_A1": ""})
    assert folder.path == agent.life.folder.terminal(0).path
    assert folder.path.parent.stat().st_mode & 0o777 == 0o700
    assert not agent.terminals.advance()
    assert agent.answers == {}
    (folder.path / "started.json").write_text("{}")
    assert agent.terminals.advance()
    assert (agent.answers, agent.kept) == ({1: {"terminalId": "terminal-0"}}, [1])
    assert agent.ask(2, "wait_for_exit", terminalId="terminal-0") is None
    (folder.output / f"{0:020d}").write_text("\x1b[1mdone\x1b[0m\nb\rc")
    assert agent.ask(3, "output", terminalId="terminal-0") == {"output": "\x1b[1mdone\x1b[0m\nb\rc", "truncated": False}
    (handle,) = agent.handles
    handle.exit = ExitRecord("exited", signal=9)
    assert agent.terminals.advance()
    status = {"exitCode": None, "signal": "SIGKILL"}
    assert (agent.answers[2], agent.kept, handle.is_closed, handle.stops) == (status, [1, 2], True, 0)
    assert agent.shown == [("terminal-0", "done\nc")]
    assert agent.ask(4, "output", terminalId="terminal-0") == {
        "output": "\x1b[1mdone\x1b[0m\nb\rc", "truncated": False, "exitStatus": status
    }  # fmt: skip
    assert agent.ask(5, "wait_for_exit", terminalId="terminal-0") is None
    agent.terminals.advance()
    assert agent.answers[5] == status
    assert agent.ask(6, "release", terminalId="terminal-0") == {}
    assert agent.terminals.advance()
    assert not folder.path.exists()
    assert agent.ask(7, "output", terminalId="terminal-0") == (-32002, "there is no such terminal")
    assert agent.terminals.checkpoint() == {"next": 1, "kept": []}
    assert agent.run(8) == "terminal-1"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "the parameters do not fit the schema"),
        ({"command": ""}, "is empty or has characters"),
        ({"command": "a\0"}, "is empty or has characters"),
        ({"command": "a", "args": ["\0"]}, "is empty or has characters"),
        ({"command": "a", "env": [{"name": "1A", "value": ""}]}, "is empty or has characters"),
        ({"command": "a", "env": [{"name": "A", "value": ""}, {"name": "", "value": ""}]}, "is empty or has"),
        ({"command": "a", "env": [{"name": "A", "value": "\0"}]}, "is empty or has characters"),
        ({"command": "a", "cwd": "/"}, "is not in the task's folder"),
        ({"command": "a", "cwd": "WORK/missing"}, "No such file"),
        ({"command": "a", "args": ["x" * (64 * KIB)]}, "is larger than 65536 bytes"),
        ({"command": "ab", "args": ["c", "ä" * (32 * KIB - 2)], "env": [{"name": "A", "value": "B"}]}, "is larger"),
    ],
)
def test_what_is_no_command_is_refused(agent: Agent, params: dict[str, Any], words: str) -> None:
    """It says why; nothing is kept of it."""
    params = {name: str(value).replace("WORK", str(agent.life.work)) if name == "cwd" else value
              for name, value in params.items()}  # fmt: skip
    answer = agent.ask(1, "create", **params)
    assert isinstance(answer, tuple)
    assert answer[0] == -32602
    assert words in answer[1]
    assert agent.terminals.checkpoint() == {"next": 0, "kept": []}


def test_a_command_may_have_64_kib_and_a_folder_of_its_own(agent: Agent) -> None:
    """A line without arguments is one for a shell."""
    env = [{"name": "A", "value": "B"}]
    assert agent.ask(1, "create", command="ab", args=["x" * (64 * KIB - 4)], env=env) is None
    (agent.life.work / "sub").mkdir()
    agent.run(2, "ls | wc", cwd=f"{agent.life.work}/sub")
    agent.run(3, "pwd", cwd=str(agent.life.work))
    assert [command.argv for _, command in agent.started[1:]] == [
        ["/bin/sh", "-c", line] for line in ("ls | wc", "pwd")
    ]
    assert [command.cwd for _, command in agent.started[1:]] == [agent.life.work / "sub", agent.life.work]


@pytest.mark.parametrize(("is_open", "cancelled"), [(False, False), (True, True)])
def test_a_command_runs_only_within_a_turn(agent: Agent, *, is_open: bool, cancelled: bool) -> None:
    """Of one that is cancelled, none is begun."""
    agent.is_open, agent.cancelled = is_open, cancelled
    words = "a command runs only within a turn that is not cancelled"
    assert agent.ask(1, "create", command="make") == (-32602, words)


def test_ten_commands_are_kept_at_a_time(agent: Agent) -> None:
    """Until the agent releases one; as many requests as twenty may wait for the end of each."""
    names = [agent.run(number) for number in range(10)]
    assert names == [f"terminal-{number}" for number in range(10)]
    words = "10 terminals are open; release those that are no longer needed"
    assert agent.ask(10, "create", command="make") == (-32602, words)
    for number in range(20, 40):
        assert agent.ask(number, "wait_for_exit", terminalId="terminal-3") is None
    assert agent.ask(40, "wait_for_exit", terminalId="terminal-3") == (
        -32602, "20 requests wait for its end already"
    )  # fmt: skip
    assert agent.ask(41, "wait_for_exit", terminalId="terminal-4") is None
    agent.ask(42, "release", terminalId="terminal-3")
    assert agent.ask(43, "kill", terminalId="terminal-3") == (-32002, "there is no such terminal")
    agent.terminals.advance()
    assert [handle.stops for handle in agent.handles] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert agent.ask(44, "create", command="make") is not None
    agent.handles[3].exit = ExitRecord("stopped", code=0)
    agent.terminals.advance()
    assert [agent.answers[number] for number in range(20, 40)] == [{"exitCode": 0, "signal": None}] * 20
    assert 41 not in agent.answers
    assert agent.run(45) == "terminal-10"


def test_a_command_is_ended_once(agent: Agent) -> None:
    """When the agent says so, or its turn ends; it is known until the next turn begins."""
    agent.run(1)
    agent.run(2)
    assert agent.ask(3, "kill", terminalId="terminal-0") == {}
    assert agent.kept == [1, 2, 3]
    for _ in range(2):
        agent.terminals.advance()
    assert [handle.stops for handle in agent.handles] == [1, 0]
    agent.terminals.end_turn()
    for _ in range(2):
        agent.terminals.advance()
    assert [handle.stops for handle in agent.handles] == [1, 1]
    agent.handles[1].exit = ExitRecord("stopped", signal=15)
    agent.terminals.advance()
    found = agent.ask(4, "output", terminalId="terminal-1")
    assert found == {"output": "", "truncated": False, "exitStatus": {"exitCode": None, "signal": "SIGTERM"}}
    agent.terminals.begin_turn()
    assert agent.ask(5, "output", terminalId="terminal-1") == (-32002, "there is no such terminal")
    agent.terminals.advance()
    assert [each["number"] for each in agent.terminals.checkpoint()["kept"]] == [0]


def test_a_command_whose_turn_has_ended_is_not_started(agent: Agent) -> None:
    """Nor is one whose shim cannot be; that is told, and it is forgotten."""
    agent.ask(1, "create", command="make")
    agent.terminals.end_turn()
    assert agent.terminals.advance()
    assert agent.answers[1] == (-32603, "the turn has ended")
    agent.failure = OSError(24, "Too many open files")
    agent.ask(2, "create", command="make")
    assert agent.terminals.advance()
    assert agent.answers[2] == (-32603, "the command could not be started: [Errno 24] Too many open files")
    agent.failure = None
    agent.ask(3, "create", command="no such program")
    agent.terminals.advance()
    agent.handles[-1].exit = ExitRecord("not started", detail="No such file")
    assert agent.terminals.advance()
    assert agent.answers[3] == (-32603, "the command could not be started: No such file")
    assert not agent.started[-1][0].path.exists()
    assert agent.terminals.checkpoint()["kept"] == []


def test_the_next_runner_finds_its_shims(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with those that run, tells how others ended, and refuses what was not started."""
    agent.run(1)
    agent.run(2)
    agent.ask(3, "create", command="lost")
    agent.ask(4, "wait_for_exit", terminalId="terminal-1")
    checkpoint = agent.terminals.checkpoint()
    agent.terminals.close()
    agent.terminals.close()
    assert [handle.is_closed for handle in agent.handles] == [True, True]
    found = {0: Handle()}
    shims = {1: True, 2: False}
    monkeypatch.setattr(processes, "open_running", lambda folder: found.get(int(folder.path.name)))
    monkeypatch.setattr(processes, "has_shim", lambda folder: shims[int(folder.path.name)])
    agent.follow_again(checkpoint)
    agent.terminals.advance()
    assert agent.answers[3] == (-32603, "the command could not be started: its shim was never started")
    assert 4 not in agent.answers
    shims[1] = False
    (agent.started[1][0].path / "exit.json").write_text('{"reason": "exited", "code": 7}')
    assert agent.terminals.advance()
    assert agent.answers[4] == {"exitCode": 7, "signal": None}
    agent.ask(5, "kill", terminalId="terminal-0")
    agent.terminals.advance()
    assert found[0].stops == 1
    assert (len(agent.started), agent.run(6)) == (2, "terminal-3")


@pytest.mark.parametrize(
    ("wanted", "size", "told"),
    [
        (None, 256 * KIB, 256 * KIB),
        (None, 256 * KIB + 1, 256 * KIB),
        (10**9, 256 * KIB + 1, 256 * KIB),
        (5, 9, 5),
        (-1, 9, 9),
    ],
)
def test_the_agent_gets_as_much_output_as_it_wants(agent: Agent, wanted: int | None, size: int, told: int) -> None:
    """The latest, up to 256 KiB."""
    name = agent.run(1, outputByteLimit=wanted)
    (agent.started[0][0].output / f"{0:020d}").write_text("x" * (size - 1) + "y")
    found = agent.ask(2, "output", terminalId=name)
    assert found == {"output": "x" * (told - 1) + "y", "truncated": size > told}


def test_an_agent_may_want_no_output(agent: Agent) -> None:
    """It is told that there is some."""
    name = agent.run(1, outputByteLimit=0)
    assert agent.ask(2, "output", terminalId=name) == {"output": "", "truncated": False}
    (agent.started[0][0].output / f"{0:020d}").write_text("x")
    assert agent.ask(3, "output", terminalId=name) == {"output": "", "truncated": True}


def test_a_log_has_the_end_of_long_output(agent: Agent) -> None:
    """It begins with a whole character, and shows that there was more; what is not complete at the end is left out."""
    agent.run(1)
    most = MAX_CALL_TEXT
    segment = agent.started[0][0].output / f"{0:020d}"
    for text, shown in ((b"x" * most, "x" * most), (b"x" + "ä".encode() + b"x" * (most - 1), "…" + "x" * (most - 1))):
        segment.write_bytes(text)
        assert terminals._shown(agent.started[0][0], goes_on=False) == shown
    segment.write_bytes("ä".encode() + b"\xc3")
    assert terminals._shown(agent.started[0][0], goes_on=True) == "ä"
    assert terminals._shown(agent.started[0][0], goes_on=False) == "ä\ufffd"
