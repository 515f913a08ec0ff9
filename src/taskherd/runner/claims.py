"""Claim a build before starting it: the first claim that the worker commits wins.

A request is repeated if no runner of the pool was up, the first report was delayed, or a queue was long. Each copy may
reach a different runner.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Final, assert_never

import structlog

from taskherd.broker.command_client import NotPublished
from taskherd.domain.claims import BuildClaim, ClaimOutcome
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.claims import BUILD_CLAIM, decode_claim_reply, encode_claim

if TYPE_CHECKING:
    from taskherd.broker.command_client import CommandClient
    from taskherd.domain.claims import ClaimDecision
    from taskherd.messages.work import WorkspaceStart

log = structlog.get_logger(__name__)

MAX_CLAIMS: Final = 200
"""Maximum number of claims of a runner that wait for the worker's decision; further ones wait until one is made."""


class Claim(Enum):
    """The result of a claim. All values but that of ``WON`` are outcomes in ``runner_requests_total``."""

    WON = "won"
    """This runner may start the build. Not counted: the request is counted when it has been executed."""
    LOST = "lost"
    """Another runner claimed the build."""
    SKIPPED = "left"
    """The build is gone, or no worker answered: do not start this copy of the request."""
    REFUSED = "refused"
    """A worker answered, but not with a decision: it does not trust this runner, or could not process the claim."""


class Claims:
    """The claims of one runner."""

    def __init__(self, client: CommandClient, runner: str) -> None:
        self._client = client
        self._runner = runner
        self._room = asyncio.Semaphore(MAX_CLAIMS)

    async def claim(self, request: WorkspaceStart, *, only_copy: bool) -> Claim:
        """Claim a build. Idempotent.

        If the worker does not answer in time, a request that is certainly the ``only_copy`` is still won: its
        claim is in the worker's queue, ahead of the claim of any later copy. Other copies are dropped, and so is this
        one if its claim is in no queue, or had to wait before; the worker sends the request again. A runner that is
        refused never starts the build, because the worker would refuse its reports too.
        """
        claim = BuildClaim(request.task_id, request.build_number, self._runner)
        is_ahead = only_copy and not self._room.locked()
        try:
            async with self._room:
                decision = await self._ask(claim)
        except Unavailable as error:
            is_won = is_ahead and not isinstance(error, NotPublished)
            log.warning("claim unanswered", task_id=str(request.task_id), started=is_won, reason=str(error))
            return Claim.WON if is_won else Claim.SKIPPED
        except Malformed as error:
            log.warning("claim refused", task_id=str(request.task_id), reason=str(error))
            return Claim.REFUSED
        match decision.outcome:
            case ClaimOutcome.GRANTED | ClaimOutcome.REPEATED:
                return Claim.WON
            case ClaimOutcome.TAKEN:
                log.info("build claimed by another runner", task_id=str(request.task_id), by=decision.by)
                return Claim.LOST
            case ClaimOutcome.GONE:
                return Claim.SKIPPED
            case _:
                assert_never(decision.outcome)

    async def _ask(self, claim: BuildClaim) -> ClaimDecision:
        """Return the worker's decision, which it makes even after this runner has stopped waiting for the reply."""
        reply = await self._client.call(BUILD_CLAIM, encode_claim(claim), no_expiry=True)
        return decode_claim_reply(reply.body)
