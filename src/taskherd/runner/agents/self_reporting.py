"""Agents that report for themselves, over HTTP or MCP: the runner keeps them alive and says when they are gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskherd.domain.reports import Health, Lifecycle
from taskherd.runner.agents import stdin
from taskherd.runner.agents.context import said_last

if TYPE_CHECKING:
    from taskherd.runner.agents.context import Begin, Scene
    from taskherd.runner.workspaces.processes import Ending


class Itself:
    """The follower of an agent that needs none."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def follow(self) -> None:
        """Say that it is there, and no more."""
        if not self._scene.journal.ready:
            self._scene.account.lifecycle(Lifecycle.READY)
            self._scene.journal.ready = True
            await self._scene.save()
        await asyncio.Event().wait()

    async def deliver(self, text: str, begin: Begin) -> None:
        """Write it to the agent's stdin; raises `Undelivered` or `Unclear`."""
        await stdin.write(self._scene.folder.input, text, begin)

    def conclude(self, ending: Ending) -> None:
        """Say that it failed, where it did: then it can't do so itself any more."""
        if ending.well:
            self._scene.account.health(Health.DISABLED)
        else:
            said_last(self._scene, ending, "", "")
