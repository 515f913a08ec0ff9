"""What tests of the board do in a browser: sign in, open a page, look at it, and find what makes it hard to use."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.harness.api import TIMEOUT, ApiHarness, token_for
from tests.harness.browser import Browser, Tab

AXE = Path(__file__).parent / "axe" / "axe.min.js.gz"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
SIGN_IN = "document.getElementById('token')"
NEXT_FRAME = "new Promise((done) => requestAnimationFrame(() => done()))"
_TOO_LATE = """
    const real = window.fetch;
    window.fetch = (path, options) => real(path, !String(path).includes("/tasks/watch") ? options
        : { ...options, headers: { ...options.headers, "Last-Event-ID": "999999999" } });
    dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
"""
MAX_STOPS = 60
"""Maximum number of times that Tab is pressed to reach something."""


@cache
def axe() -> str:
    """Return the source of axe-core."""
    source = gzip.decompress(AXE.read_bytes())
    assert sha256(source).hexdigest() == AXE_SHA256
    return source.decode()


@dataclass
class Board:
    """An API with a worker, and a browser."""

    harness: ApiHarness
    browser: Browser

    async def token(self, user: str = "alice") -> str:
        """Create a token, which a test can revoke."""
        return await token_for(self.harness.worker.urls[0], user)

    async def revoke(self, token: str) -> None:
        """Revoke a token, and wait until the API refuses it."""
        await self.harness.worker.database.execute(
            "UPDATE api_tokens SET revoked_at = now() WHERE id = $1", token.partition("-")[0]
        )
        address, headers = f"{self.harness.base}/api/v2/users/me", {"Coder-Session-Token": token}
        async with asyncio.timeout(TIMEOUT):
            while (await self.harness.anonymous.get(address, headers=headers)).status_code != 401:
                continue

    async def open(self, path: str, user: str = "alice", *, private: bool = True, token: str = "") -> Page:
        """Open a page in a new tab, sign in, with this token if one is given, and wait until the page is there."""
        tab = await self.browser.new_tab(private=private)
        await tab.prefer("light")
        page = Page(tab, self.harness.base)
        await page.go(path)
        await tab.until(f"{SIGN_IN} || document.querySelector('.page:not(.sign-in)')")
        if await tab.evaluate(f"{SIGN_IN} !== null"):
            await page.sign_in(token or self.harness.tokens[user])
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
        """Wait until an element shows a text, and fail with what the page shows instead."""
        shown = f"document.querySelector({json.dumps(within)})?.innerText.includes({json.dumps(text)})"
        try:
            await self.tab.until(shown)
        except TimeoutError:
            raise AssertionError(f"no {text!r} within {within}: {await self.text('body')}") from None

    async def stop_following(self) -> None:
        """Have the page follow no changes until it is told to: a tab that becomes visible would follow again."""
        await self._block("*/watch*")
        await self.tab.evaluate("dispatchEvent(new PageTransitionEvent('pagehide')), 0")

    async def follow_again(self) -> None:
        """Have the page follow from where it stopped."""
        await self._block()
        await self.tab.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })), 0")

    async def follow_after_the_history_was_pruned(self) -> None:
        """Have the page follow again, from a position that the API does not know."""
        await self._block()
        await self.tab.evaluate(_TOO_LATE)

    async def _block(self, *urls: str) -> None:
        await self.tab.call("Network.enable")
        await self.tab.call("Network.setBlockedURLs", urls=[*urls])

    async def text(self, within: str = "#main") -> str:
        """Return what an element shows."""
        shown = await self.tab.evaluate(f"document.querySelector({json.dumps(within)})?.innerText ?? ''")
        return str(shown)

    async def reads(self, path: str) -> list[str]:
        """Return the search terms of each request to the API since the page was loaded whose path begins like this."""
        script = f"""performance.getEntriesByType("resource").map((each) => new URL(each.name))
            .filter((each) => (each.pathname + each.search).startsWith({json.dumps("/api/v2" + path)}))
            .map((each) => each.searchParams.get("q") ?? "")"""
        found: list[str] = await self.tab.evaluate(script)
        return found

    async def until_reads(self, path: str, times: int = 1) -> None:
        """Wait until the page has made so many requests as ``reads`` returns."""
        async with asyncio.timeout(TIMEOUT):
            while len(await self.reads(path)) < times:
                await self.tab.evaluate(NEXT_FRAME)

    async def violations(self, *rules: str) -> list[str]:
        """Return what axe-core finds on the page, by these rules or all: each with the elements that break it."""
        if not await self.tab.evaluate("'axe' in window"):
            await self.tab.evaluate(f"{axe()};0")
        run = f"axe.run(document, {{runOnly: {json.dumps(rules or _RULES)}}}).then((found) => found.violations)"
        found: list[dict[str, Any]] = await self.tab.evaluate(run)
        return [f"{each['id']}: {node['html']} {node['failureSummary']}" for each in found for node in each["nodes"]]

    async def tab_to(self, selector: str, text: str = "") -> None:
        """Press Tab until the focus is on an element with this text, as somebody without a mouse does."""
        on_it = (
            f"document.activeElement.matches({json.dumps(selector)})"
            f" && document.activeElement.textContent.includes({json.dumps(text)})"
        )
        for _ in range(MAX_STOPS):
            await self.tab.press("Tab")
            if await self.tab.evaluate(on_it):
                return
        raise AssertionError(f"no Tab leads to {selector} {text!r}")

    async def becomes(self, condition: str) -> None:
        """Wait until something is true that no change of the document tells, such as where the page is scrolled to."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.tab.evaluate(f"new Promise((done) => setTimeout(() => done({condition})))"):
                continue

    async def click(self, selector: str, text: str = "") -> None:
        """Wait for an element, with this text if one is given, and click on it."""
        found = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => each.innerText.trim().startsWith({json.dumps(text)}) && !each.disabled)"
        )
        async with asyncio.timeout(TIMEOUT):
            while True:
                await self.tab.until(found)
                if await self.tab.evaluate(f"((each) => each !== undefined && (each.click(), true))({found})"):
                    return  # else it was drawn again in between

    async def tap(self, selector: str) -> None:
        """Touch the middle of an element, which is on the screen, with a finger."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.tab.evaluate(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place})")
        await self.tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        await self.tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    async def point(self, selector: str, *, press: bool = False) -> None:
        """Move the pointer onto an element, and press its button there if asked to."""
        place = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        found = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.tab.evaluate(f"{place}({found})")
        await self.tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if press else ():
            await self.tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
