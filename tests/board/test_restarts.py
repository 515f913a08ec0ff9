"""Restarts and kills of the API under an open page: the banner comes and goes by itself, and nothing is missed."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.board.pages import Board
from tests.harness.api import TIMEOUT, ApiHarness, open_api_harness, running_api
from tests.harness.browser import find_chromium, run_browser
from tests.harness.chaos import WorkerProcess
from tests.harness.conversation import said
from tests.harness.worker import SECRET, make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start
RESTARTS = 3
SAID = "[...document.querySelectorAll('.log .entry .prose')].map((each) => each.textContent)"
TOLD = "[...document.querySelectorAll('.timeline li')].map((each) => each.textContent).join()"


@dataclass
class Talk:
    """What the agent of a task says, line by line."""

    harness: ApiHarness
    task_id: uuid.UUID
    lines: list[str] = field(default_factory=list)

    async def say(self, line: str) -> None:
        """Report one more entry of the log."""
        number = len(self.lines)
        self.lines.append(line)
        entry = {"id": number, "time": f"2026-01-02T03:04:{number:02}Z", **said(line)}
        await self.harness.worker.report(
            make_report("task.log", self.task_id, build_number=1, seq=number, entries=[entry])
        )

    async def stored(self) -> None:
        """Wait until the worker has stored all of it."""
        statement = "SELECT count(*) FROM task_logs WHERE task_id = $1"
        await self.harness.worker.until_row(statement, self.task_id, is_=len(self.lines))


@asynccontextmanager
async def killed_api(database_url: str, amqp_url: str, prefix: str, *, api_port: int) -> AsyncIterator[None]:
    """Run an API in a process of its own while the block runs, and kill it then."""
    settings = {"database_url": database_url, "amqp_url": amqp_url, "amqp_prefix": prefix, "secret_key": SECRET}
    settings |= {"api_port": str(api_port), "ops_port": "0"}
    variables = {f"TASKHERD_{name.upper()}": value for name, value in settings.items()}
    process = await WorkerProcess.start({**os.environ, **variables}, Path(os.devnull), "api")
    try:
        yield
    finally:
        process.signal(signal.SIGKILL)
        assert await process.exit_code(TIMEOUT) == -signal.SIGKILL


@pytest.mark.parametrize("run", [running_api, killed_api])
async def test_nothing_is_missed_over_restarts(
    database_url: str, amqp_url: str, amqp_prefix: str, announce: Callable[[str], None], run: Callable[..., Any]
) -> None:
    """While the API is away, stopped or killed, the page says so; what happened meanwhile shows once it is back."""
    async with (
        open_api_harness(database_url, amqp_url, amqp_prefix, agent_lost_after=3_600) as harness,
        run_browser(find_chromium(announce)) as browser,
    ):
        task = await harness.active(name="steady", display_name="Steady")
        task_id, port = uuid.UUID(task["id"]), harness.api.port
        board = Board(harness, browser)
        page = await board.open("/tasks")
        home = await board.open("/")
        one = await board.open("/tasks/alice/steady")
        await page.sees("Steady", "tbody")
        await home.sees("Steady")
        talk = Talk(harness, task_id)
        await talk.say("Before")
        await one.tab.until(f"document.querySelector('.page.task[data-ready]') && {SAID}.join() === 'Before'")
        await talk.say("While it stops")
        harness.api.stop()  # the harness waits for its end later; the port is free once the banner is there
        for number in range(RESTARTS):
            for each in (page, home, one):
                await each.tab.until("document.querySelector('#offline:not([hidden])')")
            report = make_report("app.status", task_id, state="working", message=f"While away {number}", build_number=1)
            await harness.worker.report(report)
            await harness.worker.until(partial(_says, harness, task_id, report["message"]))
            await harness.worker.create(display_name=f"Missed {number}")
            for line in (f"First of {number}", f"Second of {number}"):
                await talk.say(line)
            await talk.stored()
            async with run(database_url, amqp_url, amqp_prefix, api_port=port):
                await talk.say(f"While it starts {number}")
                await page.sees(f"While away {number}", "tbody")
                await home.sees(f"While away {number}", "section[aria-labelledby=running]")
                await home.sees(f"Missed {number}", "section[aria-labelledby=running]")
                await page.sees("changed", ".list-head")
                await one.sees(f"While away {number}", ".now")
                await one.tab.until(f"{SAID}.join() === {json.dumps(','.join(talk.lines))}")
                await one.tab.until(f"{TOLD}.includes('While away {number}')")
                for each in (page, home, one):
                    await each.tab.until("document.querySelector('#offline[hidden]')")
                if number < RESTARTS - 1:
                    await talk.say(f"While it ends {number}")
        told = await one.tab.evaluate(TOLD)
        assert [told.count(f"While away {number}") for number in range(RESTARTS)] == [1] * RESTARTS
        assert await one.tab.evaluate(f"{SAID}.join()") == ",".join(talk.lines)
        assert page.tab.errors == home.tab.errors == one.tab.errors == []


def _says(harness: ApiHarness, task_id: uuid.UUID, message: str) -> bool:
    return harness.worker.state(task_id).get("message") == message
