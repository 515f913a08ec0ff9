"""Restarts of the API under an open page: the banner comes and goes by itself, and nothing is missed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

import pytest

from tests.board.pages import Board
from tests.harness.api import ApiHarness, open_api_harness, running_api
from tests.harness.browser import find_chromium, run_browser
from tests.harness.worker import make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start
RESTARTS = 3


async def test_nothing_is_missed_over_restarts(
    database_url: str, amqp_url: str, amqp_prefix: str, announce: Callable[[str], None]
) -> None:
    """While the API is away the page says so; what happened meanwhile shows once it is back, and the banner goes."""
    async with (
        open_api_harness(database_url, amqp_url, amqp_prefix, agent_lost_after=3_600) as harness,
        run_browser(find_chromium(announce)) as browser,
    ):
        task = await harness.active(display_name="Steady")
        task_id, port = uuid.UUID(task["id"]), harness.api.port
        board = Board(harness, browser)
        page = await board.open("/tasks")
        home = await board.open("/")
        await page.sees("Steady", "tbody")
        await home.sees("Steady")
        harness.api.stop()  # the harness waits for its end later; the port is free once the banner is there
        for number in range(RESTARTS):
            for each in (page, home):
                await each.tab.until("document.querySelector('#offline:not([hidden])')")
            report = make_report("app.status", task_id, state="working", message=f"While away {number}", build_number=1)
            await harness.worker.report(report)
            await harness.worker.until(partial(_says, harness, task_id, report["message"]))
            await harness.worker.create(display_name=f"Missed {number}")
            async with running_api(database_url, amqp_url, amqp_prefix, api_port=port):
                await page.sees(f"While away {number}", "tbody")
                await home.sees(f"While away {number}", "section[aria-labelledby=running]")
                await home.sees(f"Missed {number}", "section[aria-labelledby=running]")
                await page.sees("changed", ".list-head")
                for each in (page, home):
                    await each.tab.until("document.querySelector('#offline[hidden]')")
        assert page.tab.errors == home.tab.errors == []


def _says(harness: ApiHarness, task_id: uuid.UUID, message: str) -> bool:
    return harness.worker.state(task_id).get("message") == message
