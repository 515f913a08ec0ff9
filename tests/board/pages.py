"""What tests of the board do in a browser: sign in, open a page, look at it, and find what makes it hard to use."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.harness.api import ApiHarness
from tests.harness.browser import Browser, Tab

SIGN_IN = "document.getElementById('token')"


@dataclass
class Board:
    """An API with a worker, and a browser."""

    harness: ApiHarness
    browser: Browser

    async def open(self, path: str, user: str = "alice", *, private: bool = True) -> Page:
        """Open a page in a new tab, sign in, and wait until the page is there."""
        tab = await self.browser.new_tab(private=private)
        page = Page(tab, self.harness.base)
        await page.go(path)
        await tab.until(f"{SIGN_IN} || document.querySelector('.page:not(.sign-in)')")
        if await tab.evaluate(f"{SIGN_IN} !== null"):
            await page.sign_in(self.harness.tokens[user])
        return page


@dataclass
class Page:
    """A page of the board in a tab."""

    tab: Tab
    base: str

    async def go(self, path: str) -> None:
        """Load a page by its address."""
        await self.tab.open(self.base + path)

    async def sign_in(self, token: str) -> None:
        """Enter a token, and wait until the page is there."""
        await self.tab.until("document.activeElement?.id === 'token'")
        await self.tab.type(token)
        await self.tab.until("document.querySelector('.page:not(.sign-in)')")

    async def sees(self, text: str, within: str = "#main") -> None:
        """Wait until an element shows a text."""
        await self.tab.until(f"document.querySelector({json.dumps(within)})?.innerText.includes({json.dumps(text)})")

    async def text(self, within: str = "#main") -> str:
        """Return what an element shows."""
        shown = await self.tab.evaluate(f"document.querySelector({json.dumps(within)})?.innerText ?? ''")
        return str(shown)

    async def click(self, selector: str, text: str = "") -> None:
        """Wait for an element, with this text if one is given, and click on it."""
        found = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => each.innerText.trim().startsWith({json.dumps(text)}) && !each.disabled)"
        )
        await self.tab.until(found)
        await self.tab.evaluate(f"{found}.click()")
