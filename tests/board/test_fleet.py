"""The page of the fleet in a real browser: what holds it up, pools and runners, rates, and what only operators see."""

from __future__ import annotations

import uuid

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.board.pages import Board
from tests.board.test_task import prefer
from tests.harness.api import OTHER
from tests.harness.worker import ALICE, ORGANIZATION

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
READY = "document.querySelector('.page.fleet[data-ready]')"


async def ack(message: AbstractIncomingMessage) -> None:
    """Take a work request, and do nothing about it."""
    await message.ack()


async def test_the_page_says_what_holds_the_fleet_up(board: Board) -> None:
    """The heading is the bottleneck; it changes by itself when a runner connects and when a task is taken up."""
    harness, worker = board.harness, board.harness.worker
    await worker.database.execute(
        f"""INSERT INTO task_rates (hour, organization_id, owner_id, created, completed, failed)
        VALUES (date_trunc('hour', now()) - interval '3 hours', '{ORGANIZATION}', '{ALICE}', 12, 9, 2)"""
    )
    assert (await worker.ask({"type": "runner.hello", "runner": "runner-3", "pool": "default"}))["ok"]
    task_id = uuid.UUID((await harness.create(name="waits-long"))["id"])
    page = await board.open("/fleet")
    await page.tab.until(READY)
    await page.sees("1 task waits: no runner of pool default is connected", "h1")
    await page.sees("not connected", ".runners")
    await page.sees("any runner of pool default", ".waits")
    await page.sees("13", ".chart-totals")
    assert await page.tab.evaluate("document.querySelectorAll('.chart-plot rect.failed').length") == 24
    queue = await worker.channel.get_queue(f"{worker.prefix}.work.runner-3", ensure=False)
    tag = await queue.consume(ack)
    await page.sees("1 task waits for pool default", "h1")
    await page.sees("connected", ".runners")
    claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "runner-3"}
    assert (await worker.ask(claim))["granted"]
    await worker.make_active(task_id)
    await page.sees("1 agent connected, nothing waits", "h1")
    assert await page.tab.evaluate("document.querySelector('.waits')") is None
    assert "Dead letters" not in await page.tab.evaluate("[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    await queue.cancel(tag)
    assert page.tab.errors == []


async def test_operators_see_workers_queues_and_dead_letters(board: Board) -> None:
    """Who is an admin of all organizations sees what no tenant does, and the commands that replay dead letters."""
    worker = board.harness.worker
    await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
    await worker.report({"type": "no.such.type"})
    await worker.until_row("SELECT sum(letters) FROM dead_letter_rates", is_=1)
    page = await board.open("/fleet", "carol")
    await page.tab.until(READY)
    await page.sees("The type is not one of this contract. unknown_type", ".dead-letters")
    await page.sees("taskherd dead replay", ".dead-letters")
    await page.sees(f"{worker.prefix}.reports", ".fleet-system")
    await page.sees("up to date", ".fleet-system")
    for width, scale in ((1280, 1), (390, 2), (640, 2)):
        await page.tab.resize(width, 900, scale=scale)
        for scheme in ("light", "dark"):
            await prefer(page, scheme)
            assert await page.violations() == [], (width, scheme)
            assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
    await page.tab.press("y")
    await page.sees('"sees_all": true', "dialog .raw")
    await page.sees("/api/v2/fleet", "dialog .command")
    assert page.tab.errors == []
