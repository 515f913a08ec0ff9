"""A worker, and somewhere to run runners, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.runner import Ranch, ranch
from tests.harness.worker import herd


@pytest.fixture
async def own(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[Ranch]:
    """A worker on a database and queues of its own, and no runner yet."""
    soon = {"request_backoff_first": 0.5, "request_backoff_most": 1, "log_level": "warning"}
    async with herd(database_url, amqp_url, amqp_prefix, **soon) as flock, ranch(flock, tmp_path) as made:
        yield made
