"""How long ``taskherd doctor`` waits for a channel to be opened and closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskherd.broker import diagnostics
from taskherd.errors import Unavailable


class FakeChannel:
    """A channel that is closed as soon as that is allowed, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.is_closed = False
        self.may_close = asyncio.Event()

    async def close(self) -> None:
        """Close it."""
        if self.failure is not None:
            raise self.failure
        await self.may_close.wait()


class FakeConnection:
    """A connection that opens this channel, fails, or never answers."""

    def __init__(self, opened: FakeChannel | Exception | None) -> None:
        self.opened = opened

    async def channel(self) -> FakeChannel:
        """Open a channel."""
        if isinstance(self.opened, Exception):
            raise self.opened
        if self.opened is None:
            await asyncio.Event().wait()
        assert self.opened is not None
        return self.opened


@pytest.mark.parametrize(
    ("opened", "words"),
    [
        (ConnectionResetError("reset"), "opening a channel: reset"),
        (None, "opening a channel: no answer in time"),
        ("fails", "closing a channel: reset"),
        ("hangs", "closing a channel: no answer in time"),
    ],
)
async def test_a_channel_that_is_not_opened_or_closed_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, opened: Exception | str | None, words: str
) -> None:
    """Doctor ends although the broker hangs, and says at what."""
    monkeypatch.setattr(diagnostics, "REQUEST_TIMEOUT", 0.01)
    failure = ConnectionResetError("reset") if opened == "fails" else None
    connection: Any = FakeConnection(FakeChannel(failure) if isinstance(opened, str) else opened)
    with pytest.raises(Unavailable, match=f"^{words}$"):
        async with asyncio.timeout(30), diagnostics.open_channel(connection):
            pass
