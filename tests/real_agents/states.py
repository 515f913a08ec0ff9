"""Compare a task's state with what the model server knows: which samples of it are wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

EVERY = 0.25
"""Seconds between two samples."""

Sample: TypeAlias = tuple[float, str]
Span: TypeAlias = tuple[float, float]


class Verdict(NamedTuple):
    """How many samples could be judged, and how many of them are wrong."""

    judged: int
    wrong: int


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


def turns_of(spans: Sequence[Span], sent: float) -> tuple[Span, Span]:
    """Return from when to when two turns called the model, or ran a tool in between; ``sent``: the second's input."""
    first, second = [span for span in spans if span[0] < sent], [span for span in spans if span[0] >= sent]
    return (first[0][0], first[-1][1]), (second[0][0], second[-1][1])


def judge(samples: Sequence[Sample], turns: tuple[Span, Span], sent: float, lag: float) -> Verdict:
    """Judge the samples that are more than ``lag`` seconds after the last change."""
    judged = [(state, expected) for at, state in samples if (expected := _expected(at, turns, sent, lag)) is not None]
    return Verdict(len(judged), sum((state == "working") != expected for state, expected in judged))


def _expected(at: float, turns: tuple[Span, Span], sent: float, lag: float) -> bool | None:
    """Return whether the agent is at work at a time, or None if the model server cannot tell."""
    if any(begin + lag < at < end for begin, end in turns):
        return True
    if turns[0][1] + lag < at < sent or turns[1][1] + lag < at:
        return False
    return None
