"""Operators see whose connection it is, in RabbitMQ and in PostgreSQL."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from taskherd.broker import diagnostics
from taskherd.dev.services import Services
from tests.harness.api import running_api
from tests.harness.runner import runner_harness
from tests.harness.worker import WorkerHarness

pytestmark = [pytest.mark.timeout(240)]  # rabbitmqctl starts slowly on a busy machine


async def test_connections_have_the_names_of_their_processes(
    harness: WorkerHarness, services: Services, tmp_path: Path
) -> None:
    """They say to which process on which host they belong, also of several on one; a runner's have its name."""
    rabbit = services.rabbit
    assert rabbit is not None
    worker = f"taskherd worker {harness.worker._id}"
    async with (
        running_api(*harness.urls, harness.prefix) as first,
        running_api(*harness.urls, harness.prefix) as second,
        runner_harness(harness, tmp_path) as runners,
        diagnostics.connect(harness.urls[1]),
    ):
        await runners.start("r1")
        await harness.create()
        for process in (first, second):
            await process.change_feed.poll()
        apis = [f"taskherd api {process.id}" for process in (first, second)]
        assert len({*apis}) == 2
        assert all(socket.gethostname() in each for each in apis)
        await harness.until_metric(1, "taskherd_drained")
        named = await asyncio.to_thread(rabbit.ctl, "list_connections", "client_properties", within=90)
        purposes = ("consume", "publish", "reports", "unconfirmed", "work", "dead", "declare")
        of_apis = (f"{api} {purpose}" for api in apis for purpose in ("consume", "publish", "repeat"))
        of_runner = ("taskherd runner r1 consume", "taskherd runner r1 publish")
        of_worker = (f"{worker} {purpose}" for purpose in purposes)
        for name in (*of_worker, *of_apis, *of_runner, diagnostics.CONNECTION_NAME):
            assert f'"{name}"' in named, named
        rows = await harness.database.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        )
        assert {each[:63] for each in (worker, *apis)} <= {row["application_name"] for row in rows}
