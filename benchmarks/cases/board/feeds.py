"""Feeds as boards open them, in a process of their own, which says how long each change took to arrive."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass

import uvloop

READY = "open"
AT_ONCE = 50
"""Connections that are opened at the same time."""
QUIET = 5.0
"""Seconds without an event after which no more are expected."""
_STEP = b'"message":"step '
_EVENT = b"event: task.updated"
_RESET = b"event: reset"


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """The request of each feed, reports per second, how many events all feeds receive at most, and seconds for it."""

    port: int
    requests: list[str]
    rate: int
    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Received:
    """Events, resets, and how many events arrived how many milliseconds after their reports were due.

    The milliseconds are those of the monotonic clock, as if the first report had been due at 0.
    """

    events: int
    resets: int
    delays: dict[str, int]


class Arrivals:
    """What arrived at all feeds."""

    def __init__(self, expected: int, rate: int) -> None:
        self._expected = expected
        self._rate = rate
        self.delays: Counter[int] = Counter()
        self.events = 0
        self.resets = 0
        self.done = asyncio.Event()

    def take(self, frame: bytes, now: float) -> None:
        """Count a frame that arrived at this time, in seconds of the monotonic clock."""
        if _RESET in frame:
            self.resets += 1
        at = frame.find(_STEP)
        if at < 0 or _EVENT not in frame:
            return
        start = at + len(_STEP)
        step = int(frame[start : frame.index(b":", start)])
        self.delays[round((now - step / self._rate) * 1e3)] += 1
        self.events += 1

    def check(self) -> None:
        """Set ``done`` if everything arrived."""
        if self.events >= self._expected:
            self.done.set()


class _Feed(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: str, arrivals: Arrivals) -> None:
        self._request = request.encode()
        self._arrivals = arrivals
        self._buffer = b""
        self.live: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # the type for sockets
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        *frames, self._buffer = (self._buffer + data).split(b"\n\n")
        for frame in frames:
            self._arrivals.take(frame, now)
            if not self.live.done() and b"id: " in frame:
                self.live.set_result(None)
        self._arrivals.check()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.live.done():
            self.live.set_exception(RuntimeError(f"a feed was closed ({exc}): {self._buffer[:200]!r}"))


async def _connect(plan: FeedPlan, request: str, arrivals: Arrivals) -> _Feed:
    feed = _Feed(request, arrivals)
    await asyncio.get_running_loop().create_connection(lambda: feed, "127.0.0.1", plan.port)
    return feed


async def _follow(plan: FeedPlan) -> None:
    arrivals, feeds = Arrivals(plan.events, plan.rate), list[_Feed]()
    async with asyncio.timeout(plan.seconds):
        for start in range(0, len(plan.requests), AT_ONCE):
            some = [await _connect(plan, each, arrivals) for each in plan.requests[start : start + AT_ONCE]]
            await asyncio.gather(*(feed.live for feed in some))
            feeds += some
    print(READY, flush=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(plan.seconds):
            await _all(arrivals)
    delays = {str(delay): count for delay, count in arrivals.delays.items()}
    print(json.dumps(asdict(Received(arrivals.events, arrivals.resets, delays))), flush=True)


async def _all(arrivals: Arrivals) -> None:
    """Wait until everything arrived, or nothing more does: reports that shared a batch are one event."""
    before = 0
    while not arrivals.done.is_set() and (not before or arrivals.events > before):
        before = arrivals.events
        with suppress(TimeoutError):
            await asyncio.wait_for(arrivals.done.wait(), QUIET)


if __name__ == "__main__":
    uvloop.run(_follow(FeedPlan(**json.loads(sys.stdin.readline()))))
