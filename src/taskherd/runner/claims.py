"""Claim a build before starting it: the first claim that the worker commits wins.

A request is repeated if no runner of the pool was up, the first report was delayed, or a queue was long. Each copy may
reach a different runner.

A claim is an ownership query: a ``task.update_input`` command that the worker always refuses (see ``ownership_query``).
Its command id is derived from the build and its actor from the runner's name. The worker keeps its reply to the first
command with an id, so it repeats that reply to the runner that claimed first, and refuses any other actor with 409.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, assert_never
from uuid import NAMESPACE_DNS, uuid5

import structlog

from taskherd.errors import Unavailable
from taskherd.runner.ownership_query import Ownership, query_ownership

if TYPE_CHECKING:
    from taskherd.broker.command_client import CommandClient
    from taskherd.messages.work import WorkspaceStart

log = structlog.get_logger(__name__)

RUNNER_NAMESPACE = uuid5(NAMESPACE_DNS, "runners.taskherd.dev")


class Claim(Enum):
    """The result of a claim. The values of ``LOST`` and ``SKIPPED`` are outcomes in ``runner_requests_total``."""

    WON = "won"
    """This runner may start the build. Not counted: the request is counted when it has been executed."""
    LOST = "lost"
    """Another runner claimed the build."""
    SKIPPED = "left"
    """The task does not exist, or no worker answered: do not start this copy of the request."""


class Claims:
    """The claims of one runner."""

    def __init__(self, commands: CommandClient, runner: str) -> None:
        self._commands = commands
        self._actor_id = uuid5(RUNNER_NAMESPACE, runner)

    async def claim(self, request: WorkspaceStart, *, only_copy: bool) -> Claim:
        """Claim a build. Idempotent.

        If the worker does not answer in time, a request that is certainly the ``only_copy`` is still won: its
        claim is in the worker's queue, ahead of the claim of any later copy. Other copies are dropped; the worker sends
        the request again.
        """
        command_id = uuid5(request.task_id, f"claim/{request.build_number}")
        try:
            ownership = await query_ownership(
                self._commands, request.task_id, command_id, actor_id=self._actor_id, no_expiry=True
            )
        except Unavailable as error:
            log.warning("claim unanswered", task_id=str(request.task_id), started=only_copy, reason=str(error))
            return Claim.WON if only_copy else Claim.SKIPPED
        match ownership:
            case Ownership.EXISTS:
                return Claim.WON
            case Ownership.OTHER_RUNNER:
                return Claim.LOST
            case Ownership.GONE:
                return Claim.SKIPPED
            case _:
                assert_never(ownership)
