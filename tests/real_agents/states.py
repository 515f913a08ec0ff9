"""Compare a task's state with what the protocol and the model server know: which samples of it are wrong.

The protocol is the truth: an agent is at work while a prompt is in flight and no request of it is open. The model
server is a second witness, which knows nothing of the protocol: while a turn's request is with it, and between two
of them, the agent is at work unless it asks. When a turn ends the model server cannot tell, because an agent goes on
by itself after the model's last byte; how long is printed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import NamedTuple, TypeAlias

from tests.real_agents.protocol import Change, turns_of

EVERY = 0.25
"""Seconds between two samples."""
LAG = 0.5
"""Seconds within which a state should show."""
LONGEST_LAG = 5.0
"""Seconds within which it must show, also on a busy machine."""
WORKING = "working"
_NOT = {True: "", False: "not "}

Sample: TypeAlias = tuple[float, str]
Span: TypeAlias = tuple[float, float]


class Judged(NamedTuple):
    """A sample beside what is known of its moment."""

    at: float
    """Seconds since the epoch."""
    shown: str
    works: bool
    """Whether the agent was at work, by the protocol."""
    lag: float
    """Seconds since that has changed."""
    at_model: bool
    """Whether a turn was between the beginning of its first request to the model and the end of its last one."""

    @property
    def is_wrong(self) -> bool:
        """Whether another state was shown than that of the protocol."""
        return (self.shown == WORKING) != self.works


class Verdict(NamedTuple):
    """What became of the samples of one task."""

    judged: list[Judged]
    afterwards: list[float]
    """Seconds from the model's last byte, or a later answer, to the end of each turn that the agent ended by itself."""

    def wrong(self, lag: float) -> list[Judged]:
        """Return the samples that are wrong more than ``lag`` seconds after the latest change."""
        return [each for each in self.judged if each.is_wrong and each.lag > lag]

    def describe(self) -> str:
        """Return the figures in words, then each wrong sample in a line."""
        late = [each for each in self.judged if each.lag > LAG]
        at_model = [each for each in late if each.at_model and each.works]
        missed = [each for each in at_model if each.shown != WORKING]
        figures = (
            f"{len(self.wrong(LAG))} of {len(late)} samples are wrong beyond {LAG} s of lag, {len(missed)} of the "
            f"{len(at_model)} with a turn at the model server; a turn ended at most {max(self.afterwards):.2f} s after "
            "the model's last byte"
        )
        start = self.judged[0].at
        lines = [
            f"  at {each.at - start:.2f} s: shown {each.shown!r}, {_NOT[each.works]}at work since {each.lag:.2f} s"
            for each in self.wrong(LAG)
        ]
        return "\n".join([figures, *lines])


@asynccontextmanager
async def sampled(read: Callable[[], str]) -> AsyncIterator[list[Sample]]:
    """Sample a state until the end of the block; yield the samples, each with its time in seconds since the epoch."""
    samples: list[Sample] = []

    async def sample() -> None:
        while True:
            samples.append((time.time(), read()))
            await asyncio.sleep(EVERY)

    task = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def judge(samples: Sequence[Sample], changes: Sequence[Change], spans: Sequence[Span]) -> Verdict:
    """Judge the samples from the first prompt on; ``spans``: from when to when each request was with the model."""
    at_model, afterwards = [], []
    for turn in turns_of(changes):
        if inside := [span for span in spans if turn.begin <= span[0] <= turn.end]:
            at_model.append((inside[0][0], inside[-1][1]))
            if turn.is_whole:
                afterwards.append(max(0.0, turn.end - max(turn.went_on, inside[-1][1])))
    known = [next(alike) for _, alike in groupby(changes, lambda change: change.works)]
    judged = []
    for at, shown in samples:
        if before := [change for change in known if change.at <= at]:
            has_turn = any(begin <= at <= end for begin, end in at_model)
            judged.append(Judged(at, shown, before[-1].works, at - before[-1].at, has_turn))
    return Verdict(judged, afterwards)
