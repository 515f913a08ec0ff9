"""What every kind of agent has in common: what it works with, and how an input can fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from uuid import UUID

from taskherd.domain.reports import AgentState, Health
from taskherd.errors import TaskherdError
from taskherd.observability.metrics import Metrics
from taskherd.runner.journal import Journal
from taskherd.runner.outbox import Checkpoint, Outbox
from taskherd.runner.reporter import Reporter
from taskherd.runner.template import Run
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import AgentExit

SHORT = 160
"""Characters of a status message that is made from what an agent wrote."""


Begin: TypeAlias = Callable[[], Awaitable[None]]
"""Puts on disk that an input may have reached the agent from now on."""


class NotDelivered(TaskherdError):  # noqa: N818 - named for what it says, as those of `errors`
    """An input that the agent did not take."""


class DeliveryUnknown(TaskherdError):  # noqa: N818 - as above
    """An input of which nobody knows whether the agent took it."""


@dataclass(frozen=True, slots=True)
class AgentContext:
    """What a follower of an agent works with."""

    run: Run
    journal: Journal
    folder: RunFolder
    reporter: Reporter
    outbox: Outbox
    metrics: Metrics
    save: Callable[[], Awaitable[None]]
    once: Callable[[UUID, str], Awaitable[str | None]]
    """Give an input to the agent, unless that was tried before; in words why not, where it did not take it."""

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the follower had come with the run at hand; empty at its beginning."""
        mark = self.outbox.checkpoint
        return mark if mark.get("build") == self.reporter.build_number else {}


class Follower(Protocol):
    """Follows one agent while it runs."""

    async def follow(self) -> None:
        """Report what it does, until cancelled."""

    async def deliver(self, text: str, begin: Begin) -> None:
        """Give it an input, after `begin` was awaited; raises `NotDelivered` or `DeliveryUnknown`."""

    def conclude(self, exit_: AgentExit) -> None:
        """Report what is left to be told when it has ended."""


def report_exit(context: AgentContext, exit_: AgentExit, state: str, words: str) -> None:
    """Report the state in which an agent ended that did not say it itself, in its last `words` or in ours."""
    if exit_.why == "stopped":
        return
    if exit_.succeeded:
        if state not in {AgentState.COMPLETE, AgentState.FAILED}:
            context.reporter.status(AgentState.COMPLETE, words or "The agent has completed its task.")
        context.reporter.health(Health.DISABLED)
        return
    told = exit_.describe()
    context.reporter.status(AgentState.FAILED, f"{told} Its last words: {words}" if words else told)
    context.reporter.health(Health.UNHEALTHY)


def shorten(text: str) -> str:
    """The text cut to what fits a status."""
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
