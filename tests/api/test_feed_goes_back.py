"""The shared change feed after a failover that lost its last changes: its positions are given out again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from taskherd.api import change_feed
from taskherd.api.change_feed import ChangeFeed
from taskherd.api.changes import ChangeFilter
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.observability.metrics import Metrics
from taskherd.store.read_pool import ReadPool
from tests.harness.databases import connected


@pytest.fixture
async def feed(database_url: str) -> AsyncIterator[ChangeFeed]:
    """Yield a feed of this database that only the test polls."""
    reader = ReadPool(database_url, size=1, application_name="taskherd-tests")
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    yield ChangeFeed(connection, TopologyNames("p"), reader, Metrics(), nullable_ids_as_objects=False, most_of_user=500)
    await reader.close()


async def test_subscribers_end_when_the_feed_has_gone_back(feed: ChangeFeed, database_url: str) -> None:
    """They begin again after the positions that there are; of lower ones than before they would miss the changes."""
    insert = "INSERT INTO task_feed (position, task_id, version, occurred_at) VALUES ($1, gen_random_uuid(), 1, now())"
    async with connected(database_url) as server, feed.subscription(None):
        for position in (7, 100):
            await server.execute(insert, position)
        await feed.poll()
        subscriber = feed.subscribe(ChangeFilter(uuid4()), await feed.position())
        assert subscriber is not None
        for _ in range(change_feed.POLLS_PER_CHECK + 1):
            await feed.poll()
        assert (subscriber.ended, await feed.position()) == (False, 100)
        await server.execute("DELETE FROM task_feed WHERE position = 100")
        await server.execute(insert, 8)
        for _ in range(change_feed.POLLS_PER_CHECK + 1):
            await feed.poll()
        assert (subscriber.ended, await feed.position()) == (True, 8)
