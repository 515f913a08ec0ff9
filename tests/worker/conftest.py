"""A worker with everything around it, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.worker import Herd, herd, outside

Herding: TypeAlias = Callable[..., AbstractAsyncContextManager[Herd]]


@pytest.fixture
async def flock(herding: Herding) -> AsyncIterator[Herd]:
    """A worker on a database and queues of its own."""
    async with herding() as own:
        yield own


@pytest.fixture
def herding(database_url: str, amqp_url: str, amqp_prefix: str) -> Herding:
    """What starts such a worker with settings of the test's choice."""
    return partial(herd, database_url, amqp_url, amqp_prefix)


@pytest.fixture
async def alone(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[Herd]:
    """Everything but a worker; the test starts those."""
    async with outside(database_url, amqp_url, amqp_prefix) as own:
        yield own
