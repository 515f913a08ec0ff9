"""The page of deleted tasks in a real browser: its pages, and what is deleted while it is open."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from taskherd.store import deleted_tasks
from tests.board.pages import Board

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
NAMES = "[...document.querySelectorAll('.deleted .name')].map((name) => name.title)"
VERSION = "00000000-0000-4000-8000-0000000000c1"


async def create(board: Board, names: list[str], client: httpx.AsyncClient | None = None) -> list[dict[str, Any]]:
    """Create tasks at once, of alice if no other client is given, and return them."""
    tasks = [{"template_version_id": VERSION, "input": each, "name": each} for each in names]
    created = (await (client or board.harness.alice).post("/task-batches", json={"tasks": tasks})).json()
    assert created["created"] == len(names), created
    return [each["task"] for each in created["results"]]


async def test_the_page_is_kept_up_to_date_and_its_rows_stay(board: Board) -> None:
    """An empty list takes what is deleted; one with rows counts it until somebody asks for it, of others' tasks not."""
    harness = board.harness
    await create(board, ["first-gone", "second-gone", "stays"])
    page = await board.open("/deleted?q=owner:me")
    await page.sees("No deleted tasks")
    await harness.alice.delete("/tasks/me/first-gone")
    await page.tab.until(f"{NAMES}.join() === 'first-gone'")
    await harness.create(harness.bob, name="of-bob")
    await harness.bob.delete("/tasks/me/of-bob")
    await harness.carol.delete("/tasks/alice/second-gone")
    await page.sees("1 deleted since", ".head")
    assert await page.tab.evaluate(NAMES) == ["first-gone"]
    await page.tab.press(".")
    await page.tab.until(f"{NAMES}.join() === 'second-gone,first-gone'")
    await page.sees("Deleted by carol", ".deleted")
    await page.tab.until("document.querySelector('.head .pill').hidden")
    assert await page.violations() == []
    assert page.tab.errors == []


async def test_pages_follow_each_other(board: Board) -> None:
    """More deleted tasks than one page shows are on the next, whose address can be shared; going back leads back."""
    harness = board.harness
    names = [f"paged-{number:02}" for number in range(60)]
    ids = [each["id"] for each in await create(board, names)]
    assert (await harness.alice.post("/task-actions", json={"action": "delete", "ids": ids})).status_code == 202
    deleted = "SELECT count(*) FROM tasks WHERE deleted_at IS NOT NULL AND name LIKE 'paged-%'"
    await harness.worker.until_row(deleted, is_=60)
    page = await board.open("/deleted?q=name:paged")
    await page.tab.until(f"{NAMES}.length === 50")
    first = await page.tab.evaluate(NAMES)
    await page.click(".pages button", "Next 50")
    await page.tab.until(f"location.search.includes('after=') && {NAMES}.length === 10")
    address = await page.tab.evaluate("location.pathname + location.search")
    assert sorted([*first, *await page.tab.evaluate(NAMES)]) == names
    await page.go(address)
    await page.tab.until(f"{NAMES}.length === 10")
    await page.click(".pages button", "First page")
    await page.tab.until(f"{NAMES}.join() === {first!r}.join() && !location.search.includes('after')")
    await page.tab.evaluate("history.back()")
    await page.tab.until(f"{NAMES}.length === 10")
    assert page.tab.errors == []


async def test_what_others_have_deleted_since_is_passed_over(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pages without a row as are read at once; the page says that there may be more, and leads to them."""
    monkeypatch.setattr(deleted_tasks, "MAX_SCANNED", 3)
    harness = board.harness
    await create(board, ["passed-over"])
    await harness.alice.delete("/tasks/me/passed-over")
    ids = [each["id"] for each in await create(board, [f"of-bob-{number}" for number in range(30)], harness.bob)]
    assert (await harness.bob.post("/task-actions", json={"action": "delete", "ids": ids})).status_code == 202
    query = "SELECT count(*) FROM tasks WHERE deleted_at IS NOT NULL AND name LIKE 'of-bob-%'"
    await harness.worker.until_row(query, is_=30)
    page = await board.open("/deleted?q=owner:me+name:passed")
    await page.sees("No deleted tasks among the last ones")
    assert await page.violations() == []
    await page.click(".pages button", "Next 50")
    await page.tab.until(f"{NAMES}.join() === 'passed-over'")
    assert page.tab.errors == []


async def test_deletes_that_were_missed_move_no_row(board: Board) -> None:
    """When the API cannot tell what was deleted meanwhile, the rows stay until somebody asks for the list."""
    harness = board.harness
    await create(board, ["missed-first", "missed-second"])
    await harness.alice.delete("/tasks/me/missed-first")
    page = await board.open("/deleted?q=name:missed")
    await page.tab.until(f"{NAMES}.join() === 'missed-first'")
    await page.stop_following()
    await harness.alice.delete("/tasks/me/missed-second")
    await page.follow_after_the_history_was_pruned()
    await page.sees("May have changed", ".head .pill")
    assert await page.tab.evaluate(NAMES) == ["missed-first"]
    await page.tab.press(".")
    await page.tab.until(f"{NAMES}.join() === 'missed-second,missed-first'")
    await page.tab.until("document.querySelector('.head .pill').hidden")
    assert page.tab.errors == []
