"""Commands that an agent runs through its client (``terminal/*``), if the template allows it.

- The request for a command is recorded before the command is started, under a shim and in a folder of its own. So no
  runner starts it twice; one that was not started when its runner died is refused.
- Its shim says all the rest: whether it has started, what it wrote, how it ended. The next runner goes on with that.
- A command ends with the turn in which it was started: afterwards its output can be read until the next turn begins.
- What is kept of an agent's commands is bounded, in number and in size.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from acp import schema
from pydantic import ValidationError

from taskherd.runner.agents import output
from taskherd.runner.agents.acp import files
from taskherd.runner.agents.acp.connection import INTERNAL_ERROR, INVALID_PARAMS, RESOURCE_NOT_FOUND
from taskherd.runner.agents.acp.conversation import MAX_CALL_TEXT
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.terminals import TerminalCommand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.runner.agents.acp.connection import AgentCall, RpcId
    from taskherd.runner.agents.acp.conversation import Conversation
    from taskherd.runner.agents.acp.requests import Respond
    from taskherd.runner.agents.acp.turns import Turn
    from taskherd.runner.agents.context import AgentContext
    from taskherd.runner.workspaces.folders import RunFolder
    from taskherd.runner.workspaces.processes import ExitRecord, ShimHandle

METHODS: Final = tuple(f"terminal/{verb}" for verb in ("create", "output", "wait_for_exit", "kill", "release"))
MAX_TERMINALS: Final = 10
"""Maximum number of an agent's commands at a time: those that run, and those that it has not released."""
MAX_WAITS: Final = 20
"""Maximum number of requests that wait for the end of the same command."""
MAX_OUTPUT: Final = 256 * 1024
"""Maximum number of bytes of a command's output that the agent gets, the latest."""
MAX_COMMAND: Final = 64 * 1024
"""Maximum size of a command with its arguments and variables, in bytes."""
_CONTINUATION: Final = bytes(range(0x80, 0xC0))
"""The bytes that begin no character (UTF-8)."""
_READ_ATTEMPTS: Final = 5
"""Number of attempts to read output, whose segments are deleted as it goes on."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(slots=True)
class _Terminal:
    """A command of the agent."""

    number: int
    limit: int
    """Number of bytes of output that the agent wants."""
    asked: RpcId | None
    """The request for it, until that is answered."""
    waits: list[RpcId] = field(default_factory=list)
    """The requests that wait for its end."""
    is_ending: bool = False
    is_released: bool = False
    command: TerminalCommand | None = None
    """What is to be started, until it is; this and what follows is no part of the checkpoint."""
    handle: ShimHandle | None = None
    is_signalled: bool = False
    exit: ExitRecord | None = None

    @property
    def id(self) -> str:
        """The id by which the agent knows it."""
        return f"terminal-{self.number}"

    def dump(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        names = ("number", "limit", "asked", "is_ending", "is_released")
        return {**{name: getattr(self, name) for name in names}, "waits": list(self.waits)}

    @property
    def status(self) -> dict[str, Any]:
        """How it has ended, as the protocol says it."""
        assert self.exit is not None
        number = self.exit.signal
        name = None if number is None else processes.signal_name(number)
        return {"exitCode": self.exit.code, "signal": name}


class Terminals:
    """The commands that one agent runs through the runner."""

    def __init__(
        self,
        checkpoint: Mapping[str, Any],
        *,
        context: AgentContext,
        respond: Respond,
        conversation: Conversation,
        turn: Turn,
    ) -> None:
        self._context = context
        self._respond = respond
        self._conversation = conversation
        self._turn = turn
        self._next: int = checkpoint.get("next", 0)
        self._kept = [_Terminal(**record) for record in checkpoint.get("kept", ())]

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {"next": self._next, "kept": [each.dump() for each in self._kept]}

    def handle(self, call: AgentCall) -> None:
        """Carry out a request of the agent about a command, with one of ``METHODS``."""
        if call.method == "terminal/create":
            self._create(call)
            return
        wanted = call.params.get("terminalId")
        known = (each for each in self._kept if each.asked is None and not each.is_released)
        terminal = next((each for each in known if each.id == wanted), None)
        if terminal is None:
            self._respond.refuse(call.id, RESOURCE_NOT_FOUND, "there is no such terminal")
            return
        match call.method:
            case "terminal/output":
                self._respond.answer(call.id, self._output(terminal))
            case "terminal/wait_for_exit" if len(terminal.waits) >= MAX_WAITS:
                self._respond.refuse(call.id, INVALID_PARAMS, f"{MAX_WAITS} requests wait for its end already")
            case "terminal/wait_for_exit":
                terminal.waits.append(call.id)
            case "terminal/kill":
                terminal.is_ending = True
                self._respond.answer(call.id, {}, keep=True)
            case _:  # terminal/release
                terminal.is_ending = terminal.is_released = True
                self._respond.answer(call.id, {}, keep=True)

    def end_turn(self) -> None:
        """End the commands that run: their turn is over, or is cancelled."""
        for terminal in self._kept:
            terminal.is_ending = True

    def begin_turn(self) -> None:
        """Forget the commands of earlier turns."""
        for terminal in self._kept:
            terminal.is_ending = terminal.is_released = True

    def advance(self) -> bool:
        """Start, end and look at the commands; return whether there is something to record."""
        if not self._context.outbox.is_saved:
            return False
        if not self._kept:
            return False
        before = self.checkpoint()
        for terminal in list(self._kept):
            self._advance(terminal)
        return self.checkpoint() != before

    def close(self) -> None:
        """Stop following the commands; their shims keep running."""
        for terminal in self._kept:
            if terminal.handle is not None:
                terminal.handle.close()
                terminal.handle = None

    def _create(self, call: AgentCall) -> None:
        """Record that a command is to be started, or refuse it."""
        try:
            request = schema.CreateTerminalRequest.model_validate(call.params)
            command = self._command(request)
        except ValidationError:
            self._respond.refuse(call.id, INVALID_PARAMS, "the parameters do not fit the schema")
        except (files.NotAllowed, ValueError) as error:
            self._respond.refuse(call.id, INVALID_PARAMS, str(error))
        else:
            if len(self._kept) >= MAX_TERMINALS:
                words = f"{MAX_TERMINALS} terminals are open; release those that are no longer needed"
                self._respond.refuse(call.id, INVALID_PARAMS, words)
                return
            limit = MAX_OUTPUT if request.output_byte_limit is None else min(request.output_byte_limit, MAX_OUTPUT)
            self._kept.append(_Terminal(self._next, limit, call.id, command=command))
            self._next += 1

    def _command(self, request: schema.CreateTerminalRequest) -> TerminalCommand:
        """Return the command of a request. Raise ``NotAllowed`` or ``ValueError`` if it is not to be run."""
        if not self._turn.is_open or self._turn.cancelled:
            raise ValueError("a command runs only within a turn that is not cancelled")
        # Agents that want a shell give a line for it and no arguments.
        argv = [request.command, *request.args] if request.args else ["/bin/sh", "-c", request.command]
        env = {each.name: each.value for each in request.env or ()}
        texts = [*argv, *env, *env.values()]
        if not request.command or any("\0" in text for text in texts) or not all(map(_VARIABLE.fullmatch, env)):
            raise ValueError("the command, an argument or a variable is empty or has characters that it cannot have")
        if sum(len(text.encode(errors="replace")) for text in texts) > MAX_COMMAND:
            raise ValueError(f"the command with its arguments and variables is larger than {MAX_COMMAND} bytes")
        cwd = self._context.workdir
        if request.cwd is not None and request.cwd != str(cwd):
            files.check_folder(self._context.work, request.cwd)
            cwd = Path(request.cwd)
        return TerminalCommand(argv, cwd, env)

    def _advance(self, terminal: _Terminal) -> None:
        folder = self._context.folder.terminal(terminal.number)
        if terminal.command is not None and not self._start(terminal, folder):
            return
        if terminal.exit is None:
            self._look(terminal, folder)
        if terminal.asked is not None:
            self._answer_start(terminal, folder)
        if terminal.exit is not None:
            for request in terminal.waits:
                self._respond.answer(request, terminal.status, keep=True)
            terminal.waits.clear()
            self._conversation.show_terminal(terminal.id, lambda: _shown(folder, goes_on=terminal.exit is None))
            if terminal.is_released:
                folder.remove()
                self._kept.remove(terminal)

    def _start(self, terminal: _Terminal, folder: RunFolder) -> bool:
        """Start a command whose request is recorded; return whether that is done."""
        command, terminal.command = terminal.command, None
        assert command is not None
        if terminal.is_ending:
            self._refuse(terminal, "the turn has ended")
            return False
        try:
            folder.path.parent.mkdir(mode=0o700, exist_ok=True)
            terminal.handle = self._context.start_command(folder, command)
        except OSError as error:
            self._refuse(terminal, f"the command could not be started: {error}")
            return False
        return True

    def _look(self, terminal: _Terminal, folder: RunFolder) -> None:
        """Find out whether a command has ended, and end it if that is due."""
        if terminal.handle is None:
            terminal.handle = processes.open_running(folder)
        if terminal.handle is None:
            if not processes.has_shim(folder):  # or it has not written yet that it has started the command
                terminal.exit = processes.read_exit(folder)
            return
        terminal.exit = terminal.handle.collect()
        if terminal.exit is not None:
            terminal.handle.close()
            terminal.handle = None
        elif terminal.is_ending and not terminal.is_signalled and folder.started.exists():
            terminal.handle.stop()
            terminal.is_signalled = True

    def _answer_start(self, terminal: _Terminal, folder: RunFolder) -> None:
        """Say whether a command could be started, once that is known."""
        if folder.started.exists():
            assert terminal.asked is not None
            self._respond.answer(terminal.asked, {"terminalId": terminal.id}, keep=True)
            terminal.asked = None
        elif terminal.exit is not None:
            folder.remove()
            self._refuse(terminal, f"the command could not be started: {terminal.exit.detail}")

    def _refuse(self, terminal: _Terminal, reason: str) -> None:
        """Answer the request for a command with an error, and forget it."""
        assert terminal.asked is not None
        self._respond.refuse(terminal.asked, INTERNAL_ERROR, reason)
        self._kept.remove(terminal)

    def _output(self, terminal: _Terminal) -> dict[str, Any]:
        folder = self._context.folder.terminal(terminal.number)
        text, is_cut = _tail(folder, terminal.limit, goes_on=terminal.exit is None)
        result: dict[str, Any] = {"output": text, "truncated": is_cut}
        return result if terminal.exit is None else {**result, "exitStatus": terminal.status}


def _tail(folder: RunFolder, limit: int, *, goes_on: bool) -> tuple[str, bool]:
    """Return the latest output, at most ``limit`` bytes that begin with a character, and whether there was more.

    Of output that ``goes_on``, a character at the end that is not complete is left out.
    """
    data, is_cut = b"", False
    for _ in range(_READ_ATTEMPTS):
        total = output.size(folder.output)
        offset = max(0, total - limit)
        data, is_cut = b"", offset > 0
        while offset < total and (chunk := output.read(folder.output, offset, total - offset)).end > offset:
            if chunk.missing:  # its segment was deleted meanwhile, or could not be written
                data, is_cut = b"", True
            data, offset = data + chunk.data, chunk.end
        if data or not total:
            break
    if is_cut:
        data = data.lstrip(_CONTINUATION)
    return codecs.utf_8_decode(data, "replace", not goes_on)[0], is_cut


def _shown(folder: RunFolder, *, goes_on: bool) -> str:
    """Return the end of the output as the log has it."""
    text, is_cut = _tail(folder, MAX_CALL_TEXT, goes_on=goes_on)
    return ("…" if is_cut else "") + "\n".join(map(output.rendered_line, text.split("\n")))
