"""The example agent in one file, examples/acp_agent.py, under the runner's part for agents that speak ACP."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from examples import acp_agent
from tests.runner.acp import AcpRun, acp_run


@asynccontextmanager
async def example(root: Path, prompt: str) -> AsyncIterator[AcpRun]:
    """Start the example agent with a prompt."""
    async with acp_run(root) as run:
        run.argv = [sys.executable, acp_agent.__file__]
        await run.start(prompt)
        yield run


async def test_it_does_what_is_allowed_and_asks_what_is_a_question(tmp_path: Path) -> None:
    """A rejected command is not run, an allowed one is, and the answer to a question is what it says last."""
    async with example(tmp_path, "Try `echo no > no`, then `echo yes > yes; exit 3`. How are you?") as run:
        for title, option in (("echo no > no", acp_agent.REJECT), ("echo yes > yes; exit 3", acp_agent.ALLOW)):
            await run.until_state("idle", title)
            assert run.answer(await run.opened(), option) == "done"
            await run.until_became(title, "open", "answered")
        await run.until_state("idle", "How are you?")
        assert run.answer(await run.opened(), None, "Very well") == "done"
        await run.until_state("idle", "I was told Very well.")
        assert not (run.task.work / "no").exists()
        assert (run.task.work / "yes").read_text() == "yes\n"
        assert any("exit status 3" in text for text in run.texts())


async def test_a_cancelled_turn_ends_its_command_and_not_the_agent(tmp_path: Path) -> None:
    """After an interrupt of a command that does not end, or while a person is asked, the next turn is carried out."""
    async with example(tmp_path, "Wait with `tail -f /dev/null`.") as run:
        assert run.answer(await run.opened(), acp_agent.ALLOW) == "done"
        await run.until_state("working", "tail -f")
        assert await run.follower.interrupt() == "stopped"
        assert await run.send("Who are you?") is None
        await run.until_state("idle", "Who are you?")
        assert await run.follower.interrupt() == "stopped"
        assert await run.send("Go on with `true`.") is None
        await run.until_state("idle", "true")
        assert not run.exits
        assert [each.title for each in run.open_requests()] == ["true"]
