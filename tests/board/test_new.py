"""The form for a new task in a real browser: launch links, the keyboard, and what goes wrong."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.board.pages import Board

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HOSTILE = "</textarea><script>alert(1)</script>\n`x` \u202e"
PROMPT = "document.querySelector('#prompt').value"


async def test_a_link_fills_the_form_and_starts_nothing(board: Board) -> None:
    """A launch link fills every field, says so, and leaves it to the person to start the task."""
    page = await board.open(f"/new?template=claude&name=from-link&prompt={quote(HOSTILE)}&autosubmit=1")
    await page.sees("A link has filled this form")
    assert await page.tab.evaluate(PROMPT) == HOSTILE
    assert await page.tab.evaluate("document.querySelector('[name=template]:checked').value") == "claude"
    assert (await board.harness.alice.get("/tasks")).json()["count"] == 0
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.click("button", "Start task")
    await page.tab.until("location.pathname === '/tasks/alice/from-link'")
    created = await board.harness.get("from-link")
    assert created["initial_prompt"] == HOSTILE
    again = await board.open("/new?from=alice/from-link")
    await again.sees("A link has filled this form")
    assert await again.tab.evaluate(PROMPT) == created["initial_prompt"]
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.press("c")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT}")
    assert await page.tab.evaluate(PROMPT) == created["initial_prompt"]
    assert "A link has filled" not in await page.text()  # it was not a link of somebody else
    missing = await board.open("/new?template=%3Cb%3Enone&prompt=Hello")
    await missing.sees("There is no template <b>none that you may use")
    assert await missing.tab.evaluate("document.querySelector('form button.go').disabled") is True
    assert page.tab.errors == again.tab.errors == missing.tab.errors == []


async def test_a_link_to_a_task_that_is_gone_leaves_the_form_empty(board: Board) -> None:
    """The form says that there is no such task, or that one may not see it, and can be used as without a link."""
    page = await board.open("/new?from=alice/no-such")
    await page.sees("There is no task alice/no-such any more, or you may not see it.")
    assert "A link has filled" not in await page.text()
    assert await page.tab.evaluate(PROMPT) == ""
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.tab.insert("By hand")
    assert await page.tab.evaluate("document.querySelector('form button.go').disabled") is False
    assert page.tab.errors == []


async def test_problems_stand_beside_their_fields_and_nothing_is_lost(board: Board) -> None:
    """What the API refuses is said where it is wrong; the text stays, also when the page is opened again."""
    page = await board.open("/new")
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.click("button", "Start task")
    await page.sees("Say what the agent is to do.")
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.tab.insert("Mend it")
    await page.click("summary", "Name and labels")
    await page.tab.evaluate("document.querySelector('#name').focus()")
    await page.tab.insert("not a name")
    await page.click("button", "Start task")
    await page.tab.until("document.querySelector('#name[aria-invalid=true], .notice.bad')")
    assert await page.tab.evaluate(PROMPT) == "Mend it"
    await page.go("/tasks")
    await page.go("/new")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT} === 'Mend it'")
    assert page.tab.errors == []


async def test_a_task_is_started_with_the_keyboard_alone(board: Board) -> None:
    """From any page: n, the prompt, Ctrl-Enter; the help names the keys."""
    page = await board.open("/tasks")
    await page.tab.until("document.querySelector('.page[data-ready]')")
    await page.tab.press("?")
    await page.sees("Find or filter tasks", "dialog")
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.tab.press("n")
    await page.tab.until("document.activeElement?.id === 'prompt'")
    await page.tab.insert("Only by keyboard")
    await page.tab.press("Enter", ctrl=True)
    await page.tab.until("location.pathname.startsWith('/tasks/alice/')")
    assert page.tab.errors == []
