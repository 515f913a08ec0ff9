"""Log entries that come late: readers see them in their place, and followers do not miss them."""

from __future__ import annotations

import uuid
from typing import Any

from tests.api.conftest import StartApi
from tests.harness.worker import make_report

TIME = "2026-03-01T12:00:00Z"


def log(task: str, number: int) -> dict[str, Any]:
    """Return a report with one entry, as a runner would make it as its ``number``-th."""
    entry = {"id": number, "type": "output", "content": f"line {number}", "time": TIME}
    return make_report("task.log", uuid.UUID(task), build_number=1, seq=number, entries=[entry])


async def test_late_entries_are_in_their_place(start_api: StartApi) -> None:
    """Reports that wait with a hung node arrive after their successors, in other batches."""
    async with start_api() as harness:
        task = (await harness.create())["id"]
        for count, number in enumerate((0, 3, 2, 5, 1), start=1):
            await harness.worker.report(log(task, number))
            await harness.worker.until_processed(count)
        everything = (await harness.alice.get(f"/tasks/me/{task}/logs")).json()["logs"]
        assert [each["content"] for each in everything] == [f"line {number}" for number in (0, 1, 2, 3, 5)]
        greatest = max(each["id"] for each in everything)
        await harness.worker.report(log(task, 6), log(task, 4))
        await harness.worker.until_processed(7)
        followed = (await harness.alice.get(f"/tasks/me/{task}/logs", params={"after": greatest})).json()["logs"]
        assert [each["content"] for each in followed] == ["line 4", "line 6"]
        everything = (await harness.alice.get(f"/tasks/me/{task}/logs")).json()["logs"]
        assert [each["content"] for each in everything] == [f"line {number}" for number in range(7)]
