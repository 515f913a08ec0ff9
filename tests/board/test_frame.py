"""The frame of the board in a real browser: signing in, pages, shortcuts, colour schemes."""

from __future__ import annotations

import pytest

from tests.board.pages import SIGN_IN, Board, Page

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start


async def test_one_sign_in_is_enough_for_all_tabs_until_somebody_signs_out(board: Board) -> None:
    """The token is refused or taken, then handed to other tabs, never shown, and gone everywhere after signing out."""
    first = await board.open("/", private=False)
    second = Page(await board.browser.new_tab(), board.harness.base)
    await second.go("/tasks")
    await second.tab.until("document.querySelector('.page.tasks')")
    for page in (first, second):
        shown = await page.tab.evaluate("location.href + document.documentElement.outerHTML")
        assert board.harness.tokens["alice"] not in shown
        assert await page.tab.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    await second.click("summary")
    await second.click("button", "Sign out")
    for page in (first, second):
        await page.tab.until(SIGN_IN)
    await second.tab.until("document.activeElement?.id === 'token'")
    await second.tab.type("wrong-token")
    await second.sees("The token is not valid.")
    assert first.tab.errors == second.tab.errors == []
