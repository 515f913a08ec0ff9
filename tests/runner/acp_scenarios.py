"""What real agents that speak ACP are recorded with, and what their recordings are replayed with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.runner import eventually
from tests.runner.acp import AcpRun

COMMAND = "echo it is done > result; cat result"
ANSWER = "The command printed: it is done"


@dataclass(frozen=True)
class Scenario:
    """What is done with an agent."""

    carry_out: Callable[[AcpRun], Awaitable[None]]
    run: dict[str, Any] = field(default_factory=dict)


async def _policy(run: AcpRun) -> None:
    """A prompt whose tool the policy allows, then an input, then one that is interrupted."""
    await run.start(f"run: {COMMAND}")
    await run.until_state("idle", ANSWER)
    assert await run.send("Thank you") is None
    await run.until_state("idle", "You said: Thank you")
    assert await run.send("run: tail -f /dev/null") is None
    await run.until_state("working", "tail -f")
    assert await run.follower.interrupt() == "stopped"
    await run.until_state("idle", "interrupted")


async def _person(run: AcpRun) -> None:
    """A prompt whose tool a person permits once, and rejects once."""
    await run.start(f"run: {COMMAND}")
    for kind, title in (("allow_once", COMMAND), ("reject_once", "echo never > never")):
        request = await run.opened()
        await run.until_state("idle", request.title)
        assert (request.kind, request.tool is not None and request.tool.kind) == ("approval", "execute")
        assert title in f"{request.title} {request.tool} {request.detail}"
        (option,) = [option.id for option in request.options if option.kind == kind]
        assert run.answer(request, option) == "done"
        assert run.answer(request, option) == "repeated"
        await run.until_became(request.title, "open", "answered")
        assert run.requests()[request.title][-1].option_id == option
        if kind == "allow_once":
            await run.until_state("idle", ANSWER)
            assert await run.send("run: echo never > never") is None
    await eventually(lambda: not run.open_requests() and run.state[0] == "idle")


async def _resume(run: AcpRun) -> None:
    """A session that the next build's agent continues."""
    await run.start("Good morning")
    await run.until_state("idle", "Good morning")
    assert run.session is not None
    await run.session.stop()
    await run.start("Good morning")
    await eventually(lambda: run.journal.ready_reported)
    assert await run.send("Good night") is None
    await run.until_state("idle", "Good night")


SCENARIOS = {
    "policy": Scenario(_policy, {"approvals": {"default": "allow"}}),
    "person": Scenario(_person),
    "resume": Scenario(_resume),
}


def scenario_of(transcript: Path) -> str:
    """Return the name of the scenario that a transcript records, the last word of its name."""
    return transcript.stem.rpartition("-")[2]
