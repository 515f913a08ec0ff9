"""Which builds a runner starts, by what the worker answers to its claims."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.command_client import NotPublished, Reply
from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome
from taskherd.errors import Unavailable
from taskherd.messages.claims import claim_reply, encode_claim
from taskherd.messages.work import WorkspaceStart
from taskherd.runner.claims import MAX_CLAIMS, Claim, Claims
from tests.pure.runner.test_journal import TASK, request


class Worker:
    """A client whose calls are answered as a test says."""

    def __init__(self, answer: bytes | Exception = b"") -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def call(self, kind: str, body: bytes, **options: Any) -> Reply:
        """Answer a claim, which stays in its queue."""
        assert (kind, options) == ("build.claim", {"no_expiry": True})
        self.asked.append(body)
        await self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return Reply(self.answer, {})


def a_start() -> WorkspaceStart:
    """Return a request to start the first build."""
    found = request("start", 1)
    assert isinstance(found, WorkspaceStart)
    return found


async def claim(worker: Worker, *, only_copy: bool = False) -> Claim:
    """Claim a build."""
    claims = Claims(worker, "r")  # type: ignore[arg-type]
    return await claims.claim(a_start(), only_copy=only_copy)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ClaimOutcome.GRANTED, Claim.WON),
        (ClaimOutcome.REPEATED, Claim.WON),
        (ClaimOutcome.TAKEN, Claim.LOST),
        (ClaimOutcome.GONE, Claim.SKIPPED),
    ],
)
async def test_the_worker_decides(outcome: ClaimOutcome, expected: Claim) -> None:
    """A grant that is repeated counts as one."""
    worker = Worker(claim_reply(ClaimDecision(outcome, "other" if outcome is ClaimOutcome.TAKEN else "r")))
    assert await claim(worker, only_copy=True) is expected
    assert worker.asked == [encode_claim(BuildClaim(TASK, 1, "r"))]


@pytest.mark.parametrize(
    ("error", "only_copy", "expected"),
    [
        (Unavailable("silence"), True, Claim.WON),
        (Unavailable("silence"), False, Claim.SKIPPED),
        (NotPublished("no broker"), True, Claim.SKIPPED),
        (NotPublished("no broker"), False, Claim.SKIPPED),
    ],
)
async def test_without_an_answer_only_a_claim_that_waits_is_won(
    error: Unavailable, expected: Claim, *, only_copy: bool
) -> None:
    """That of a later copy is behind it; a claim that is in no queue keeps no other runner from starting."""
    assert await claim(Worker(error), only_copy=only_copy) is expected


async def test_an_answer_that_is_no_decision_starts_nothing() -> None:
    """Such as a refusal of a sender that is not trusted."""
    assert await claim(Worker(b'{"error": {"status": 403}}'), only_copy=True) is Claim.REFUSED


async def test_more_claims_than_may_wait_are_made_one_after_the_other() -> None:
    """None fails for want of room."""
    worker = Worker(claim_reply(ClaimDecision(ClaimOutcome.GRANTED, "r")))
    worker.may_answer.clear()
    claims = Claims(worker, "r")  # type: ignore[arg-type]
    starts = [a_start().model_copy(update={"task_id": UUID(int=number)}) for number in range(2 * MAX_CLAIMS)]
    waiting = [asyncio.create_task(claims.claim(each, only_copy=True)) for each in starts]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(worker.asked) == MAX_CLAIMS
    worker.may_answer.set()
    assert set(await asyncio.gather(*waiting)) == {Claim.WON}
    assert len(set(worker.asked)) == len(starts)


async def test_a_claim_that_had_to_wait_is_not_won_by_silence() -> None:
    """That of a later copy may be ahead of it."""
    worker = Worker(Unavailable("silence"))
    worker.may_answer.clear()
    claims = Claims(worker, "r")  # type: ignore[arg-type]
    starts = [a_start().model_copy(update={"task_id": UUID(int=number)}) for number in range(MAX_CLAIMS + 1)]
    waiting = [asyncio.create_task(claims.claim(each, only_copy=True)) for each in starts]
    for _ in range(5):
        await asyncio.sleep(0)
    worker.may_answer.set()
    assert await asyncio.gather(*waiting) == [Claim.WON] * MAX_CLAIMS + [Claim.SKIPPED]
