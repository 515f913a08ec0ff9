"""Followers of lines without processes: a test is the agent, and the shim that stands between the two."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskherd.runner.agents import output
from taskherd.runner.agents.acp.follower import AcpFollower
from taskherd.runner.agents.context import AgentContext
from taskherd.runner.workspaces.folders import RunFolder
from tests.pure.runner.contexts import make_context, reports_of
from tests.pure.runner.life import F, FollowerLife

SESSION = "the-session"


class LineLife(FollowerLife[F]):
    """A follower of an agent whose stdin and stdout carry lines, and what the agent was given and has written."""

    def __init__(self, folder: Path, make_follower: Callable[[AgentContext], F], **run: Any) -> None:
        self.folder = RunFolder(folder / "run-1")
        for path in (self.folder.path, self.folder.stdin, self.folder.output, self.folder.log):
            path.mkdir()
        self.work = folder / "work"
        self.work.mkdir()
        context = make_context(folder, **run)
        super().__init__(replace(context, folder=self.folder, work=self.work, workdir=self.work))
        self._make_follower = make_follower
        self.follow_again()

    def follow_again(self) -> None:
        """Go on with the follower of the next runner, which begins at the last checkpoint."""
        self.follower = self._make_follower(self.context)

    def change(self, **fields: Any) -> None:
        """Change what the follower is given, and go on with another one."""
        self.context = replace(self.context, **fields)
        self.follow_again()

    def write(self, *messages: dict[str, Any] | str) -> None:
        """Write messages as the agent, or lines that are none."""
        with (self.folder.output / f"{0:020d}").open("a") as file:
            for message in messages:
                file.write((message if isinstance(message, str) else json.dumps(message)) + "\n")

    def waiting(self) -> dict[int, dict[str, Any]]:
        """Return the messages that were submitted, and that the shim has not begun to write, by their lines."""
        numbers = sorted(int(path.name) for path in self.folder.stdin.iterdir() if path.name.isdigit())
        return {number: json.loads((self.folder.stdin / str(number)).read_bytes()) for number in numbers}

    def take(self, suffix: str = ".done") -> list[dict[str, Any]]:
        """Return these messages, and let the shim write them, or whatever another suffix says."""
        found = self.waiting()
        for number in found:
            (self.folder.stdin / str(number)).rename(self.folder.stdin / f"{number}{suffix}")
        return [{name: value for name, value in each.items() if name != "jsonrpc"} for each in found.values()]

    async def until_given(self) -> dict[str, Any]:
        """Wait until the agent is given the next message, which it takes."""
        await self.until(self.waiting)
        (message,) = self.take()
        return message

    @property
    def said(self) -> list[tuple[str, ...]]:
        """What was reported about the agent, without its log."""
        return [each for each in super().said if each != ("open",)]

    @property
    def states(self) -> list[tuple[str, str]]:
        """The reported states and their messages."""
        found = reports_of(self.context.outbox, "app.status")
        return [(report["state"], report.get("message", "")) for report in found]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The log as it is shown: the latest version of each entry."""
        latest: dict[int, dict[str, Any]] = {}
        for report in reports_of(self.context.outbox, "task.log"):
            latest |= {entry["id"]: entry for entry in report["entries"]}
        return [latest[number] for number in sorted(latest)]

    @property
    def notices(self) -> list[str]:
        """The notices of the runner, without its name."""
        found = [entry["content"] for entry in self.entries if entry.get("kind") == "notice"]
        return [text.removeprefix("taskherd: ") for text in found]


class AcpLife(LineLife[AcpFollower]):
    """A follower of an agent that speaks ACP."""

    def __init__(self, folder: Path, **run: Any) -> None:
        super().__init__(folder, AcpFollower, agent="acp", **run)

    def update(self, kind: str, **fields: Any) -> None:
        """Write a session update."""
        params = {"sessionId": SESSION, "update": {"sessionUpdate": kind, **fields}}
        self.write({"method": "session/update", "params": params})

    def say(self, text: str) -> None:
        """Write a part of a message."""
        self.update("agent_message_chunk", content={"type": "text", "text": text})

    def respond(self, number: int, **result: Any) -> None:
        """Answer a request of the runner."""
        self.write({"id": number, "result": result})

    def ask(self, number: int | str, title: str, *options: tuple[str, str]) -> None:
        """Ask for permission; options are ids and kinds."""
        offered = [{"optionId": each, "name": each, "kind": kind} for each, kind in options or OPTIONS]
        call = {"toolCallId": f"call-{number}", "title": title}
        params = {"sessionId": SESSION, "toolCall": call, "options": offered}
        self.write({"id": number, "method": "session/request_permission", "params": params})

    async def step(self) -> None:
        """Let the follower handle what the agent has written, and what the shim has."""
        while self.follower._reading.read():
            pass
        await self.follower._acknowledge()

    async def open(self) -> None:
        """Open the session, without a loop of the follower."""
        self.follower._recover()
        self.follower._opening.begin()
        for result in ({"protocolVersion": 1}, {"sessionId": SESSION}):
            (call,) = self.take()
            self.respond(call["id"], **result)
            await self.step()
        assert self.follower.start_outcome == ""

    async def begin(self, text: str = "Do it") -> int:
        """Give the agent a prompt, and return its id."""
        number = self.follower._send_prompt(text)
        self.take()
        await self.step()
        return number

    async def accept(self, *, prompt: bool = False) -> None:
        """Open the session that the follower asks for, and take its prompt if there is one."""
        for result in ({"protocolVersion": 1}, {"sessionId": SESSION}):
            self.respond((await self.until_given())["id"], **result)
        if prompt:
            assert (await self.until_given())["method"] == "session/prompt"

    def became(self) -> list[tuple[str, str]]:
        """Return title and state of each report about a request."""
        return [(each["title"], each["state"]) for each in reports_of(self.context.outbox, "agent.request")]


def continue_in_next_segment(life: LineLife[Any]) -> Path:
    """Begin the next segment of the agent's output, and return the one before it."""
    (life.folder.output / f"{output.size(life.folder.output):020d}").touch()
    return life.folder.output / f"{0:020d}"


OPTIONS = (("yes", "allow_once"), ("no", "reject_once"))
"""The options that an agent offers."""
