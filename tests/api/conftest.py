"""An API with everything around it, one for each test."""

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
    """What starts one with settings of the test's choice."""
    return partial(open_api_harness, database_url, amqp_url, amqp_prefix)


@pytest.fixture
async def api_harness(start_api: StartApi) -> AsyncIterator[ApiHarness]:
    """A worker and an API on a database and queues of their own."""
    async with start_api() as own:
        yield own
