"""An API with everything around it, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.api import Stage, stage

Staging: TypeAlias = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def staging(database_url: str, amqp_url: str, amqp_prefix: str) -> Staging:
    """What starts one with settings of the test's choice."""
    return partial(stage, database_url, amqp_url, amqp_prefix)


@pytest.fixture
async def house(staging: Staging) -> AsyncIterator[Stage]:
    """A worker and an API on a database and queues of their own."""
    async with staging() as own:
        yield own
