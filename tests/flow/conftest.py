"""A worker with everything around it, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.flow.herd import Herd, herd


@pytest.fixture
async def flock(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[Herd]:
    """A worker on a database and queues of its own."""
    async with herd(database_url, amqp_url, amqp_prefix) as own:
        yield own
