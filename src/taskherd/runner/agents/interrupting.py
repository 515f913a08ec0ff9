"""The steps that all kinds of agents share when they are interrupted: what does not end is ended, and recorded so."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from taskherd.domain.reports import InterruptOutcome
from taskherd.observability.failpoints import Failpoint
from taskherd.runner import process_table
from taskherd.runner.agents.context import NotInterrupted

if TYPE_CHECKING:
    from taskherd.runner.agents.context import AgentContext
    from taskherd.runner.workspaces.processes import ExitRecord

REACTION_TIMEOUT: Final = 10.0
"""Seconds within which an agent must end what it does, after it was asked to."""
TERM_TIMEOUT: Final = 10.0
"""Maximum number of seconds from SIGTERM to SIGKILL; a shorter ``grace`` of the template counts."""
KILL_TIMEOUT: Final = 20.0
"""Seconds within which the processes of an agent must have ended after SIGKILL."""
LINGER_TIMEOUT: Final = 2.0
"""Seconds within which an agent that has ended its turn on SIGINT exits, too, if it does."""
_POLL_INTERVAL: Final = 0.1

INTERRUPTED: Final = "The turn was interrupted."
"""The message of an agent whose turn an interrupt has ended."""
NOT_ENDED: Final = "The agent's processes could not be ended; check the runner's machine."


def has_exited(context: AgentContext) -> bool:
    """Return whether the agent has exited, and its shim has recorded it."""
    return context.folder.exit.exists()


async def mark_interrupted(context: AgentContext, *, interrupted: bool) -> None:
    """Record whether the end of the agent from now on is that of an interrupt, on disk if that can be written."""
    context.journal.interrupted = interrupted
    with suppress(OSError):
        await context.save()


async def send_interrupt(context: AgentContext) -> None:
    """Send the agent SIGINT; its end from then on is that of an interrupt."""
    await mark_interrupted(context, interrupted=True)
    context.interrupt_agent()
    context.failpoint(Failpoint.INTERRUPT_SIGNAL)


async def settle_interrupt(context: AgentContext) -> None:
    """Wait a moment whether an agent that has ended its turn on SIGINT exits, too; else its end is its own again.

    Programs exit a moment later, and what the worker sends after the interrupt must not go to one that is exiting.
    """
    if await _exits(context, LINGER_TIMEOUT):
        return
    if _runs(context):
        await mark_interrupted(context, interrupted=False)
    else:
        await _exits(context, TERM_TIMEOUT)  # its shim ends what it has left behind


def _runs(context: AgentContext) -> bool:
    """Return whether the agent itself runs; also if that cannot be found out."""
    try:
        started = json.loads(context.folder.started.read_text())
        return bool(process_table.start_ticks(started["agent"]) == started["agent_start"])
    except (FileNotFoundError, ProcessLookupError):
        return not context.folder.started.exists()
    except (OSError, ValueError, LookupError, TypeError):
        return True


async def end_agent(context: AgentContext) -> InterruptOutcome:
    """End the agent, which ``mark_interrupted`` was called for: SIGTERM, then SIGKILL. Raise ``NotInterrupted``."""
    context.stop_agent()
    if await _exits(context, min(context.run.grace, TERM_TIMEOUT)):
        return InterruptOutcome.STOPPED
    context.stop_agent()  # a second request ends the grace time
    if await _exits(context, KILL_TIMEOUT):
        return InterruptOutcome.STOPPED
    raise NotInterrupted(NOT_ENDED)


def as_interrupted(context: AgentContext, agent_exit: ExitRecord) -> ExitRecord:
    """Return how the agent ended: by an interrupt, if there was one, unless its workspace was to be stopped anyway."""
    journal = context.journal
    if journal.interrupted and journal.transition == "start" and agent_exit.reason != "timeout":
        return replace(agent_exit, reason="interrupted")
    return agent_exit


async def _exits(context: AgentContext, seconds: float) -> bool:
    """Wait until the agent has exited; return False if it does not in time."""
    try:
        async with asyncio.timeout(seconds):
            while not has_exited(context):  # noqa: ASYNC110 - files send no notification
                await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        return False
    return True
