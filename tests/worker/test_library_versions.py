"""The worker works with library versions that the patches do not support."""

from __future__ import annotations

import uuid

import pytest

from tests.harness.worker import ALICE, VERSION
from tests.library_versions import UNSUPPORTED, unsupported
from tests.worker.conftest import StartWorker


@pytest.mark.parametrize("library", UNSUPPORTED)
async def test_a_worker_works_without_a_patch(start_worker: StartWorker, library: str) -> None:
    """Commands are replied to, reports are applied, events and requests are sent."""
    with unsupported(library):
        async with start_worker() as harness:
            task_id = uuid.uuid4()
            reply = await harness.command(
                "task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input="Fix the build"
            )
            assert reply["ok"] is True
            await harness.make_active(await harness.create())
            await harness.until(lambda: harness.document(task_id) == reply["task"] and harness.requests)
