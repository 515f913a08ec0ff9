"""The loops of the change feed, without a broker and a database."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from taskherd.api.change_feed import ChangeFeed
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.observability.metrics import Metrics
from taskherd.store.read_pool import ReadPool


@pytest.mark.parametrize("loop", ["_consume_wakeups", "_read"])
async def test_an_unexpected_error_of_either_loop_ends_the_feed(monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    """It ends the API with that error. Without wakeups, changes would be late, and nothing would say so."""

    async def fail(_: ChangeFeed) -> NoReturn:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(ChangeFeed, loop, fail)
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    reader: ReadPool = object()  # type: ignore[assignment]
    feed = ChangeFeed(connection, TopologyNames("p"), reader, Metrics(), nullable_ids_as_objects=False)
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="unexpected"):
            await feed.run()
