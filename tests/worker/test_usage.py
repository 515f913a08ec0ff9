"""Usage through a real queue and database: law 10 with two workers, bookings by day, and a quiet hot path."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from tests.harness.histories import report_fields, shuffled_batches
from tests.harness.usage import expected_usage, usage_report
from tests.harness.worker import ALICE, ORGANIZATION, TEMPLATE, WorkerHarness, make_report, running_worker

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.worker.app import Worker

NUMBERS = "sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens)"
TASKS = 24


async def publish(harness: WorkerHarness, batches: list[list[Report]]) -> None:
    """Publish each batch in one message, all at the same time."""
    exchange = await harness.channel.get_exchange(f"{harness.prefix}.reports", ensure=False)
    bodies = [json.dumps([report_fields(report) for report in batch]).encode() for batch in batches]
    await asyncio.gather(*(exchange.publish(aio_pika.Message(body), "any", timeout=60) for body in bodies))


async def sums(harness: WorkerHarness, table: str, where: str = "true") -> dict[str, Any]:
    """Return what the rows of a table add up to, as in a document."""
    row = await harness.database.fetchrow(f"SELECT {NUMBERS} FROM {table} WHERE {where}")
    costs = await harness.database.fetch(
        f"SELECT trim_scale(sum(amount))::text AS amount, currency FROM {table} WHERE currency <> '' AND {where}"
        " GROUP BY currency ORDER BY currency"
    )
    assert row is not None
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    tokens = {name: int(number or 0) for name, number in zip(names, row, strict=True)}
    return {**tokens, "cost": [dict(cost) for cost in costs]}


def added(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of the usage in documents, exactly: amounts in units of their ninth digit."""
    total: dict[str, Any] = {}
    cost: dict[str, int] = {}
    for usage in documents:
        for name, number in usage.items():
            if name.endswith("_tokens"):
                total[name] = total.get(name, 0) + number
        for each in usage["cost"]:
            whole, _, fraction = each["amount"].partition(".")
            cost[each["currency"]] = cost.get(each["currency"], 0) + int(whole + fraction.ljust(9, "0"))
    return {**total, "cost": cost}


def processed(*workers: Worker) -> float:
    """Return the number of reports that the workers have processed, with any outcome."""
    families = [family for worker in workers for family in worker.metrics.reports.collect()]
    return sum(sample.value for family in families for sample in family.samples)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_usage_adds_up_with_two_workers(external: WorkerHarness, seed: int) -> None:
    """Two workers take the same reports, permuted and repeated: document, rows and bookings are the greatest reported.

    Some reports arrive before their task is created, and some after it was deleted.
    """
    harness, rng = external, Random(seed)
    ids = [uuid.uuid4() for _ in range(TASKS)]
    reports: dict[uuid.UUID, list[Report]] = {
        task_id: [usage_report(rng, task_id) for _ in range(rng.randrange(1, 25))] for task_id in ids
    }
    batches = [batch for told in reports.values() for batch in shuffled_batches(rng, told)]
    rng.shuffle(batches)
    half, count = len(batches) // 2, sum(map(len, batches))
    async with running_worker(harness) as one, running_worker(harness) as two:
        await publish(harness, batches[:half])
        for task_id in ids:
            await harness.create(task_id)
        for task_id in ids[: TASKS // 3]:
            assert (await harness.command("task.delete", task_id))["ok"]
        await publish(harness, batches[half:])
        async with asyncio.timeout(120):
            while processed(one, two) < count:  # noqa: ASYNC110 - a counter sends no notification
                await asyncio.sleep(0.05)
        assert processed(one) * processed(two) > 0
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0
    rows = await harness.database.fetch("SELECT id, document::text FROM tasks")
    documents = {uuid.UUID(str(row["id"])): json.loads(row["document"])["usage"] for row in rows}
    for task_id in ids:
        assert documents[task_id] == expected_usage(reports[task_id])
        if documents[task_id] is not None:
            of_task = await sums(harness, "task_usage", f"task_id = '{task_id}'")
            assert documents[task_id] == {**documents[task_id], **of_task}
    booked = await sums(harness, "daily_usage")
    assert booked == await sums(harness, "task_usage")
    assert added([booked]) == added([usage for usage in documents.values() if usage is not None])
    assert harness.reasons() == []


async def test_new_usage_is_booked_on_the_day_it_came(harness: WorkerHarness) -> None:
    """What is new is booked by day, organization, user, template, model and currency, in the same transaction."""
    task_id = await harness.create()
    cost = {"amount": "0.25", "currency": "EUR"}
    await harness.report(make_report("agent.usage", task_id, model="opus", input_tokens=3, cost=cost))
    await harness.until(lambda: harness.document(task_id).get("usage"))
    await harness.database.execute("UPDATE daily_usage SET day = day - 1")
    await harness.report(make_report("agent.usage", task_id, model="opus", input_tokens=5, cost=cost))
    await harness.until(lambda: harness.document(task_id)["usage"]["input_tokens"] == 5)
    rows = await harness.database.fetch("SELECT * FROM daily_usage ORDER BY day, currency")
    today = await harness.database.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    days = [today - timedelta(days=1), today - timedelta(days=1), today]
    assert [row["day"] for row in rows] == days
    accounts = {(row["organization_id"], row["user_id"], row["template_id"], row["model"]) for row in rows}
    assert accounts == {(ORGANIZATION, ALICE, TEMPLATE, "opus")}
    numbers = [(row["currency"], int(row["input_tokens"]), row["amount"]) for row in rows]
    assert numbers == [("", 3, 0), ("EUR", 0, Decimal("0.25")), ("", 2, 0)]
    await harness.until_metric(5, "taskherd_usage_tokens_total", type="input", template="claude")
    await harness.until_metric(0.25, "taskherd_usage_cost_total", currency="EUR", template="claude")


async def test_the_state_of_an_earlier_release_is_completed(harness: WorkerHarness) -> None:
    """A worker of an earlier release saves a state without usage; the next report of usage restores the total."""
    task_id = await harness.create()
    await harness.report(make_report("agent.usage", task_id, build_number=1, model="opus", input_tokens=3))
    await harness.until(lambda: harness.document(task_id).get("usage"))
    await harness.database.execute("UPDATE tasks SET state = (state::jsonb - 'usage')::json")
    await harness.report(make_report("agent.usage", task_id, build_number=2, input_tokens=4))
    await harness.until(lambda: harness.document(task_id)["usage"]["input_tokens"] == 7)
    assert (await sums(harness, "daily_usage"))["input_tokens"] == 7


async def test_a_17th_model_is_a_dead_letter(harness: WorkerHarness) -> None:
    """The usage of a 17th model of a build becomes a dead letter with a reason of its own; the others count."""
    task_id = await harness.create()
    told = [make_report("agent.usage", task_id, build_number=1, model=f"m{n}", output_tokens=1) for n in range(17)]
    await harness.report(*told)
    await harness.until(lambda: harness.dead_letters)
    assert harness.reasons() == ["usage_overflow"]
    await harness.until(lambda: harness.document(task_id).get("usage"))
    assert harness.document(task_id)["usage"]["output_tokens"] == 16
    assert (await sums(harness, "daily_usage"))["output_tokens"] == 16


async def test_other_reports_run_no_statement_about_usage(harness: WorkerHarness) -> None:
    """Reports of other types neither read nor write usage, also of a task that has some: its total is in its state."""
    task_id = await harness.make_active()
    await harness.report(make_report("agent.usage", task_id, input_tokens=3))
    await harness.until(lambda: harness.document(task_id).get("usage"))
    locked = harness.database.transaction()
    await locked.start()
    await harness.database.execute("LOCK TABLE task_usage, daily_usage IN ACCESS EXCLUSIVE MODE")
    await harness.report(make_report("app.status", task_id, state="idle", message="Which one?"))
    await harness.until(lambda: harness.state(task_id).get("message") == "Which one?")
    assert harness.document(task_id)["usage"]["input_tokens"] == 3
    await locked.rollback()
