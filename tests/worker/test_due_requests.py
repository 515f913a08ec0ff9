"""Work requests that are due: what of them is read, and in memory at a time, however large their prompts are."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd import retry
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.errors import Unavailable
from taskherd.store import work_request_details, work_requests
from taskherd.worker import work_requests as sending
from taskherd.worker.context import WorkerContext
from taskherd.worker.request_sender import RequestSender
from taskherd.worker.work_requests import send_due
from tests.harness.contexts import Waits
from tests.harness.worker import ALICE, ORGANIZATION, TEMPLATE, TIMEOUT, VERSION, WorkerHarness
from tests.store.conftest import NOW

SIZE = 100_000
"""Bytes of each prompt and each input, in half as many characters."""

TASKS = f"""
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name,
                   created_at, version, updated_at, status, document, state, prompt_version)
    SELECT id, '{ALICE}', '{ORGANIZATION}', '{TEMPLATE}', '{VERSION}', 'task-' || id, '', $2, 1, $2,
           'pending', '{{}}', '{{}}', 1
    FROM unnest($1::uuid[]) AS id
"""
PROMPTS = "INSERT INTO task_prompts SELECT id, 1, repeat('é', $2 / 2) FROM unnest($1::uuid[]) AS id"
INPUTS = """
INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at)
    SELECT id, id, 1, repeat('é', $2 / 2), 'sent', now() FROM unnest($1::uuid[]) AS id
"""
REQUESTS = """
INSERT INTO work_requests (request_id, task_id, build_number, type, input_id, interrupt_id, agent_request_id,
                           target_runner, attempt, created_at, next_at)
    SELECT gen_random_uuid(), id, 1, $2, CASE $2 WHEN 'agent.input' THEN id END,
           CASE $2 WHEN 'agent.interrupt' THEN id END, CASE $2 WHEN 'agent.answer' THEN id END, $3, 0, $4, $4
    FROM unnest($1::uuid[]) AS id
"""


class Due:
    """Due requests of tasks with large prompts, a publisher that notes what is sent, and what was read of each task."""

    def __init__(self, harness: WorkerHarness) -> None:
        self._harness = harness
        publisher: Any = self
        self.context: WorkerContext = replace(harness.worker._context, work_publisher=publisher)
        self.sent: list[dict[str, Any]] = []
        self.groups: list[int] = []
        self.prompts: list[str] = []
        self.read = work_request_details.read
        self._ids = count(1)

    async def add(self, number: int, kind: str, runner: str | None = None) -> set[UUID]:
        """Add tasks, each with a request of this type that is due, and return their ids."""
        ids = [UUID(int=each) for each in islice(self._ids, number)]
        database = self._harness.database
        await database.execute(TASKS, ids, NOW)
        await database.execute(PROMPTS, ids, SIZE)
        await database.execute(INPUTS, ids, SIZE)
        await database.execute(REQUESTS, ids, kind, runner, NOW)
        return set(ids)

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Note a group of messages, and confirm them."""
        self.groups.append(len(messages))
        self.sent += [json.loads(message.body) for message in messages]
        self._harness.received.set()
        return [PublishOutcome.CONFIRMED] * len(messages)

    async def note_read(self, *arguments: Any, **options: Any) -> dict[UUID, work_request_details.WorkRequestDetails]:
        """Read the details of tasks, and note their prompts."""
        found = await self.read(*arguments, **options)
        self.prompts += [each.prompt for each in found.values()]
        return found

    @property
    def tasks(self) -> Counter[UUID]:
        """How many messages were sent about each task."""
        return Counter(UUID(each["task_id"]) for each in self.sent)


@pytest.fixture
def due(resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> Due:
    """Yield a worker without any due requests, which does nothing by itself."""
    due = Due(resting)
    monkeypatch.setattr(work_request_details, "read", due.note_read)
    return due


@pytest.mark.parametrize("kind", ["workspace.stop", "workspace.delete", "agent.interrupt", "agent.input"])
async def test_the_prompt_is_read_only_for_a_request_that_sends_it(due: Due, kind: str) -> None:
    """Other requests are sent without, and it stays in the database."""
    tasks = await due.add(3, kind, "r1")
    assert await send_due(due.context, NOW) == 3
    assert due.tasks.keys() == tasks
    assert {each["type"] for each in due.sent} == {kind}
    assert [len(each.get("input", "")) for each in due.sent] == [SIZE // 2 if kind == "agent.input" else 0] * 3
    assert due.prompts == [""] * 3


async def test_a_start_has_its_prompt(due: Due) -> None:
    """The same task may have other requests that are due."""
    tasks = await due.add(2, "workspace.start")
    await due._harness.database.execute(REQUESTS, list(tasks), "workspace.stop", None, NOW)
    assert await send_due(due.context, NOW) == 4
    sent = Counter((each["type"], len(each.get("prompt", ""))) for each in due.sent)
    assert sent == {("workspace.start", SIZE // 2): 2, ("workspace.stop", 0): 2}


@pytest.mark.parametrize("kind", ["workspace.start", "agent.input"])
async def test_as_much_is_sent_at_a_time_as_fits_in_memory(
    due: Due, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Once the prompts and inputs have so many bytes, the others wait, still due; each is sent once in the end."""
    monkeypatch.setattr(work_requests, "MAX_DUE_BYTES", 4 * SIZE + 1)
    tasks = await due.add(12, kind)
    sent = [await send_due(due.context, NOW) for _ in range(4)]
    assert sent == [5, 5, 2, 0]
    assert due.tasks == dict.fromkeys(tasks, 1)
    assert {len(each.get("prompt", each.get("input", ""))) for each in due.sent} == {SIZE // 2}


async def test_32_mib_are_sent_at_a_time(due: Due) -> None:
    """However many small requests there are beside them; the other ones come next."""
    tasks = await due.add(100, "workspace.stop") | await due.add(400, "workspace.start")
    assert await send_due(due.context, NOW) in range(336, 437)
    assert sum(2 * len(each.get("prompt", "")) for each in due.sent) == 336 * SIZE  # the first beyond 32 MiB, too
    while await send_due(due.context, NOW):
        pass
    assert due.tasks == dict.fromkeys(tasks, 1)


async def test_requests_that_take_too_long_to_read_are_read_in_smaller_parts(
    due: Due, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cancels the statement, no attempt counts, and half as many are tried next, until all are sent."""
    sizes: list[int] = []

    async def read(connection: AsyncConnection, ids: Sequence[UUID], **options: Any) -> Any:
        sizes.append(len(ids))
        await connection.execute(text("SET LOCAL statement_timeout = 500"))
        await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 60 if len(ids) > 2 else 0})
        return await due.read(connection, ids, **options)

    monkeypatch.setattr(work_request_details, "read", read)
    monkeypatch.setattr(retry, "delay", Waits().delay)
    monkeypatch.setattr(sending, "MAX_REQUESTS", 10)
    tasks = await due.add(10, "workspace.start")
    sender = RequestSender(due.context, every=0.01)
    running = asyncio.create_task(sender.run())
    await due._harness.until(lambda: due.tasks.keys() == tasks)
    sender.stop()
    await asyncio.wait_for(running, TIMEOUT)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert due.tasks == dict.fromkeys(tasks, 1)
    assert await due._harness.database.fetchval("SELECT sum(attempt) FROM work_requests") == 10
