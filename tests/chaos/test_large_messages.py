"""Large messages that waited for a worker: its memory is bounded, and all of them are processed."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage
from tests.chaos import workload
from tests.harness.chaos import ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

MEBIBYTE = 1024 * 1024
TOO_LARGE, TOO_LARGE_BYTES = 16, 10 * MEBIBYTE
LOGS, ENTRIES, ENTRY_CHARACTERS = 500, 6, 60_000
MAX_RESIDENT = 256 * MEBIBYTE
"""Half of a worker's memory in the Helm chart, and less than the messages have together."""


def _log(harness: ChaosHarness, task_id: UUID, number: int) -> OutgoingMessage:
    """Return a report with log entries of 360 KB together."""
    entries: list[dict[str, Any]] = [
        {
            "id": number * ENTRIES + index,
            "type": "output",
            "content": f"{number} {index} ".ljust(ENTRY_CHARACTERS, "x"),
            "time": "2026-01-01T10:00:00Z",
        }
        for index in range(ENTRIES)
    ]
    report = {"type": "task.log", "task_id": str(task_id), "build_number": 1, "seq": number, "entries": entries}
    return workload.message(harness.names, json.dumps(report).encode())


async def test_messages_that_waited_do_not_exhaust_the_memory(harness: ChaosHarness) -> None:
    """Neither bodies of 10 MiB nor many valid logs do, and what was delivered to a worker is not delivered again."""
    random = Random(6)
    work = workload.build(harness.names, random, tasks=8, adversarial=False)
    tasks = [*work.reports]
    creates = [message for message in work.messages if message.exchange == harness.names.commands]
    messages = [_log(harness, tasks[number % 8], number) for number in range(LOGS)]
    messages += [workload.message(harness.names, bytes([65 + n]) * TOO_LARGE_BYTES) for n in range(TOO_LARGE)]
    assert sum(len(message.body) for message in messages) > 1.2 * MAX_RESIDENT
    random.shuffle(messages)
    for start in range(0, len(messages), 20):
        await harness.send(messages[start : start + 20])
    await harness.send(creates)
    worker = await harness.start()

    async def processed() -> tuple[int, float]:
        return await harness.committed_entries(), await worker.metric("taskherd_dead_lettered_total")

    await until(processed, lambda counts: counts == (LOGS * ENTRIES, TOO_LARGE), within=120)
    assert worker.peak_resident < MAX_RESIDENT
    assert await worker.metric("taskherd_redeliveries_total") == 0
    assert await worker.metric("taskherd_reconnects_total") == 0
    await harness.stop_worker(worker)
    await harness.ledger.violations()
    letters = Counter((letter.reason, letter.length, len(letter.body)) for letter in harness.ledger.dead_letters)
    assert letters == {("too_large", TOO_LARGE_BYTES, 64 * 1024): TOO_LARGE}
