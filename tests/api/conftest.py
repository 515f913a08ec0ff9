"""Fixtures: an API with a worker, on a new database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.api import ApiHarness, open_api_harness

StartApi: TypeAlias = Callable[..., AbstractAsyncContextManager[ApiHarness]]


@pytest.fixture
def start_api(database_url: str, amqp_url: str, amqp_prefix: str) -> StartApi:
    """Return a function that starts an API with the given settings."""
    return partial(open_api_harness, database_url, amqp_url, amqp_prefix)


@pytest.fixture
async def api_harness(start_api: StartApi) -> AsyncIterator[ApiHarness]:
    """Run a worker and an API on their own database and queues."""
    async with start_api() as harness:
        yield harness
