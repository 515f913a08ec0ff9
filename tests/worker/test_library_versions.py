"""The worker does its work with libraries that our patches do not support."""

from __future__ import annotations

import uuid

import pytest

from tests.harness.worker import ALICE, VERSION
from tests.library_versions import UNSUPPORTED, unsupported
from tests.worker.conftest import StartWorker


@pytest.mark.parametrize("library", UNSUPPORTED)
async def test_a_worker_works_without_a_patch(start_worker: StartWorker, library: str) -> None:
    """Commands are answered, reports are applied, events and requests go out."""
    with unsupported(library):
        async with start_worker() as herd:
            task_id = uuid.uuid4()
            reply = await herd.command(
                "task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input="Fix the build"
            )
            assert reply["ok"] is True
            await herd.active(await herd.create())
            await herd.until(lambda: herd.document(task_id) == reply["task"] and herd.requests)
