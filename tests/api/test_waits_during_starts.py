"""``taskherd task wait`` for a task that starts although its agent has reported a failure."""

from __future__ import annotations

import asyncio
import uuid

from taskherd.client import tasks
from taskherd.client.http import Client
from tests.api.test_sse import until_subscribers
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.worker import bring_to_status, make_report


async def test_a_failure_during_a_start_is_not_asked_for_again_and_again(api_harness: ApiHarness) -> None:
    """The wait has one long poll for the end of the start, or for what is awaited, instead of many short ones."""
    task = uuid.UUID((await api_harness.create(name="w"))["id"])
    worker, client = api_harness.worker, Client(api_harness.base, api_harness.tokens["alice"])
    await bring_to_status(worker, "initializing", task)
    await worker.report(make_report("app.status", task, state="failure", message="No model", uri=""))
    await worker.until(lambda: worker.state(task).get("state") == "failed")
    assert worker.document(task)["status"] == "initializing"
    waiting = asyncio.create_task(asyncio.to_thread(tasks.wait, client, "w", ["idle"], 2 * TIMEOUT))
    await until_subscribers(api_harness, 1)
    await worker.report(
        make_report("agent.lifecycle", task, lifecycle="ready"),
        make_report("app.status", task, state="idle", message="There it is", uri=""),
    )
    document, is_reached = await waiting
    assert (tasks.status_and_state(document), is_reached) == (("active", "idle"), True)
