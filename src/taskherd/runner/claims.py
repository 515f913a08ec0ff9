"""Of the runners of a pool one begins a build: the first whose claim the worker has committed.

A request is there more than once when it was repeated: because nobody of the pool was up, because the first report was
long in coming, because a queue was long. Each copy may reach another runner. So whoever is to begin a build first asks
about its task under a command id that the build determines, in a name that the runner determines.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, assert_never
from uuid import NAMESPACE_DNS, uuid5

import structlog

from taskherd.errors import Unavailable
from taskherd.runner.ownership import Ownership, query_ownership

if TYPE_CHECKING:
    from taskherd.broker.rpc import CommandClient
    from taskherd.messages.work import WorkspaceStart

log = structlog.get_logger(__name__)

NAMES = uuid5(NAMESPACE_DNS, "runners.taskherd.dev")


class Claim(Enum):
    """What became of a claim."""

    WON = "won"
    LOST = "lost"
    """Another runner has begun that build, or is to."""
    LEFT = "left"
    """The task is gone, or nobody can say: nothing is to be done."""


class Claims:
    """Claims builds in the name of one runner."""

    def __init__(self, commands: CommandClient, runner: str) -> None:
        self._commands = commands
        self._name = uuid5(NAMES, runner)

    async def claim(self, request: WorkspaceStart, *, sole: bool) -> Claim:
        """Claim a build; claiming it again gives the same answer.

        Where the worker does not answer in time, the `sole` copy of a request is begun nevertheless: the claim waits
        for the worker, before that of any later copy. A copy that is not the only one is left to the next repeat.
        """
        command_id = uuid5(request.task_id, f"claim/{request.build_number}")
        try:
            said = await query_ownership(self._commands, request.task_id, command_id, name=self._name, lasting=True)
        except Unavailable as error:
            log.warning("claim unanswered", task_id=str(request.task_id), begun=sole, reason=str(error))
            return Claim.WON if sole else Claim.LEFT
        match said:
            case Ownership.EXISTS:
                return Claim.WON
            case Ownership.OTHER_RUNNER:
                return Claim.LOST
            case Ownership.GONE:
                return Claim.LEFT
            case _:
                assert_never(said)
