"""What passes between a runner and an agent that speaks ACP, each line with its time: when the agent truly works."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.harness import tee_agent

PROGRAMS: Final = {
    "claude-code": "claude-agent-acp",
    "codex": "codex-acp",
    "gemini": "gemini",
    "opencode": "opencode",
}
"""The programs of the agents, by the names of their templates."""
_ASKS: Final = {"session/request_permission", "elicitation/create"}


class Change(NamedTuple):
    """A change of what the protocol says of an agent."""

    at: float
    """Seconds since the epoch."""
    works: bool
    """Whether from then on a prompt is in flight, and no request of the agent is open."""
    in_turn: bool
    """Whether from then on a prompt is in flight."""
    stop_reason: str = ""
    """With what the agent has ended its turn, if it does that now."""


class TurnSpan(NamedTuple):
    """A turn, in seconds since the epoch."""

    begin: float
    went_on: float
    """When the agent was given the prompt, or the latest answer to a request."""
    end: float
    is_whole: bool
    """Whether the agent has ended it by itself."""


class ProtocolRecord:
    """The record of the only agent of a test."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is one in which the agents' user may create files."""
        self._folder = folder

    def wrap(self, path: str) -> str:
        """Return a PATH that has ``path``'s agents as scripts, which record what passes."""
        programs = self._folder / "bin"
        programs.mkdir()
        environment = f"PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))}"
        for name in PROGRAMS.values():
            if program := shutil.which(name, path=path):
                tee = shlex.join([sys.executable, "-m", "tests.real_agents.protocol"])
                record = f"{shlex.quote(str(self._folder))}/$$.jsonl"
                script = programs / name
                script.write_text(f'#!/bin/sh\n{environment} exec {tee} {record} {shlex.quote(program)} "$@"\n')
                script.chmod(0o755)
        return os.pathsep.join([str(programs), path])

    def changes(self) -> list[Change]:
        """Return the changes so far, in order."""
        (file,) = self._folder.glob("*.jsonl")
        return changes_in(json.loads(line) for line in file.read_text().splitlines())


def changes_in(lines: Iterable[dict[str, Any]]) -> list[Change]:
    """Return the changes in a transcript of ``tee_agent``, in order; the first one begins the first turn."""
    changes: list[Change] = []
    prompt: int | None = None
    asked: set[int | str] = set()
    for line in lines:
        message, is_given, reason = json.loads(line["text"]), line["direction"] == "in", ""
        method, number = message.get("method"), message.get("id")
        if is_given and method == "session/prompt":
            prompt = number
        elif is_given and method is None:
            asked.discard(number)
        elif not is_given and method in _ASKS:
            asked.add(number)
        elif not is_given and method is None and prompt is not None and number == prompt:
            prompt, reason = None, message.get("result", {}).get("stopReason", "")
        works, in_turn = prompt is not None and not asked, prompt is not None
        last = changes[-1] if changes else Change(0, works=False, in_turn=False)
        if (works, in_turn) != (last.works, last.in_turn):
            changes.append(Change(line["at"], works, in_turn, reason))
    return changes


def turns_of(changes: Iterable[Change]) -> list[TurnSpan]:
    """Return the turns that have ended."""
    turns: list[TurnSpan] = []
    begin = went_on = None
    for change in changes:
        went_on = change.at if change.works else went_on
        if change.in_turn:
            begin = begin or change.at
        elif begin is not None and went_on is not None:
            turns.append(TurnSpan(begin, went_on, change.at, change.stop_reason == "end_turn"))
            begin = None
    return turns


if __name__ == "__main__":
    tee_agent.STARTED = time.monotonic() - time.time()  # so that the record has times of the day
    sys.exit(tee_agent.main(sys.argv[1], sys.argv[2:]))
