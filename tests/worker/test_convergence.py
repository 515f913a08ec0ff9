"""Law 1 through a real queue and database: the same reports give the same document in any order of delivery."""

from __future__ import annotations

import asyncio
import json
import uuid
from random import Random
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from taskherd.domain import fold
from taskherd.domain.reports import AgentExit, AppStatus, WorkspaceBuild
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.messages.document import core_document
from tests.harness.histories import NOON, history, report_fields, shuffled_batches
from tests.harness.task_index import index_violations
from tests.harness.tasks import make_task
from tests.harness.worker import ALICE, ORGANIZATION, TEMPLATE, VERSION, WorkerHarness
from tests.worker.conftest import StartWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.domain.reports import Report

from taskherd.domain.task import Task

HISTORIES = 70
PUBLISH_TIMEOUT = 120.0
"""Seconds until the broker has confirmed a message, of thousands at once."""
PATIENT = {"agent_lost_after": 3600, "agent_connect_timeout": 3600, "stalled_after": 3600, "build_timeout": 3600}
"""Timeouts that do not pass during the test: what happens then is no part of a history."""
TWINS = 3
"""Number of tasks that get the same history, each in another order and with ids and texts of its own."""


def expected(task: Task, reports: Sequence[Report]) -> dict[str, Any]:
    """Return the document of the pure fold of a history, one report after the other."""
    state = task.state
    for report in reports:
        state = fold.fold(state, report, NOON).state
    return without_timestamp(core_document(derive_view(state, task.name), task))


def without_timestamp(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without the times at which its current state and the end of its agent were received."""
    state, ended = document["current_state"], document["agent_exit"]
    return {
        **document,
        "current_state": state and {**state, "timestamp": None},
        "agent_exit": ended and {**ended, "at": None},
    }


def created_task(task_id: uuid.UUID, row: Any) -> Task:
    """Return the task as its create left it."""
    return make_task(
        task_id,
        owner_id=ALICE,
        organization_id=ORGANIZATION,
        template_id=TEMPLATE,
        template_version_id=VERSION,
        name=row["name"],
        display_name=row["display_name"],
        created_at=row["created_at"],
        updated_at=row["created_at"],
    )


def own_report(report: Report) -> Report:
    """Return the report with ids and texts that it has for no other task."""
    task_id = report.task_id

    def own_id(of: uuid.UUID) -> uuid.UUID:
        return uuid.uuid5(task_id, str(of))

    def own(text: str) -> str:
        return text and f"{text} of {task_id}"

    if report.agent_id is not None:
        report = replace(report, agent_id=own_id(report.agent_id))
    match report:
        case WorkspaceBuild(workspace=workspace, app=app, error=error, reason=reason):
            report = replace(
                report,
                workspace=workspace and replace(workspace, id=own_id(workspace.id), name=own(workspace.name)),
                app=app and replace(app, id=own_id(app.id), url=app.url and f"{app.url}/{task_id}"),
                error=error and own(error),
                reason=reason and own(reason),
            )
        case AppStatus(message=message, uri=uri):
            report = replace(report, message=own(message), uri=uri and f"{uri}/{task_id}")
        case AgentExit(words=words):
            report = replace(report, words=words and own(words))
        case _:
            pass
    return report


def messages(random: Random, histories: dict[uuid.UUID, list[Report]]) -> list[list[Report]]:
    """Return all histories as a broker may deliver them: permuted, repeated, in arrays that tasks share."""
    pieces = [batch for reports in histories.values() for batch in shuffled_batches(random, reports)]
    random.shuffle(pieces)
    joined: list[list[Report]] = []
    for piece in pieces:
        if joined and random.random() < 0.4 and len(joined[-1]) + len(piece) <= 1000:
            joined[-1] += piece
        else:
            joined.append([*piece])
    return joined


async def publish(harness: WorkerHarness, batches: list[list[Report]]) -> None:
    """Publish each batch in one message, all at the same time."""
    exchange = await harness.channel.get_exchange(f"{harness.prefix}.reports", ensure=False)
    bodies = [[report_fields(report) for report in batch] for batch in batches]
    texts = [json.dumps(each[0] if len(each) == 1 else each).encode() for each in bodies]
    await asyncio.gather(*(exchange.publish(aio_pika.Message(text), "any", timeout=PUBLISH_TIMEOUT) for text in texts))


async def create_all(harness: WorkerHarness, ids: Sequence[uuid.UUID]) -> None:
    """Create tasks, eight at a time: on a busy machine the reply to the last of a hundred would take too long."""
    slots = asyncio.Semaphore(8)

    async def create(task_id: uuid.UUID) -> None:
        async with slots:
            await harness.create(task_id)

    await asyncio.gather(*map(create, ids))


@pytest.mark.timeout(300)
async def test_any_delivery_ends_in_the_document_of_the_pure_fold(start_worker: StartWorker) -> None:
    """Many tasks at once, some created after their reports arrived: each document equals the fold's, byte for byte.

    Except ``updated_at``, ``version`` and the state's timestamp, which depend on when the reports arrived.
    """
    async with start_worker(**PATIENT) as harness:
        await check_convergence(harness)


async def check_convergence(harness: WorkerHarness) -> None:
    """Deliver many histories, and compare each task's document with that of the fold."""
    random = Random(8)
    histories: dict[uuid.UUID, list[Report]] = {}
    for seed in range(HISTORIES):
        for _ in range(TWINS):
            task_id = uuid.uuid4()
            histories[task_id] = [own_report(each) for each in history(Random(seed), task_id)]
    ids = list(histories)
    random.shuffle(ids)
    early, late = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    await create_all(harness, early)
    batches = messages(random, histories)
    half = len(batches) // 2
    await asyncio.gather(publish(harness, batches[:half]), create_all(harness, late[: len(late) // 2]))
    await publish(harness, batches[half:])
    await harness.until_processed(sum(map(len, batches)))
    await create_all(harness, late[len(late) // 2 :])
    await harness.until_row("SELECT count(*) FROM outbox", is_=0)
    await harness.until(lambda: all(harness.document(task_id) for task_id in ids))
    rows = await harness.database.fetch("SELECT id, version, name, display_name, created_at, document::text FROM tasks")
    assert len(rows) == len(ids)
    versions = {uuid.UUID(str(row["id"])): row["version"] for row in rows}
    await harness.until(lambda: {task_id: max(harness.versions(task_id), default=0) for task_id in ids} == versions)
    for row in rows:
        task_id = uuid.UUID(str(row["id"]))
        expected_document = expected(created_task(task_id, row), histories[task_id])
        document, published = json.loads(row["document"]), harness.document(task_id)
        assert json.dumps(without_timestamp(document)) == json.dumps(expected_document)
        assert {**published, **document} == published
    assert await index_violations(harness.database) == []
