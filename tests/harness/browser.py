"""A headless Chromium, controlled over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.harness.api import TIMEOUT
from tests.harness.programs import find_program

START_TIMEOUT = 60.0
_KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    " ": (32, " "),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
}
"""Code and text of keys that are no plain character."""
_NAVIGATED = "Inspected target navigated"
"""What the browser says of an expression whose page was left."""
_ADDRESS = re.compile(rb"DevTools listening on (ws://\S+)")


def find_chromium(announce: Callable[[str], None]) -> str:
    """Return the path of the program, and install it if it is missing."""
    return shutil.which("google-chrome") or find_program("chromium", "chromium", announce)


@dataclass
class Browser:
    """A running browser."""

    socket: ClientConnection
    tabs: dict[str, Tab] = field(default_factory=dict)
    """By their sessions."""
    _count: int = 0
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, for the whole browser or for one of its tabs."""
        self._count += 1
        self._answers[self._count] = answer = asyncio.get_running_loop().create_future()
        target = {"sessionId": session} if session else {}
        await self.socket.send(json.dumps({"id": self._count, "method": method, "params": params, **target}))
        async with asyncio.timeout(TIMEOUT):
            message = await answer
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    async def new_tab(self, *, private: bool = False) -> Tab:
        """Open a tab; a ``private`` one shares no session, storage or messages with others, like another browser."""
        context = {}
        if private:
            context = {"browserContextId": (await self.call("Target.createBrowserContext"))["browserContextId"]}
        target = await self.call("Target.createTarget", url="about:blank", **context)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = self.tabs[attached["sessionId"]] = Tab(self, attached["sessionId"], target["targetId"])
        for domain in ("Page", "Runtime", "Log"):
            await tab.call(f"{domain}.enable")
        return tab

    async def close_tabs(self) -> None:
        """Close all tabs that were opened."""
        while self.tabs:
            _, tab = self.tabs.popitem()
            await self.call("Target.closeTarget", targetId=tab.target)

    async def listen(self) -> None:
        """Receive responses and events."""
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if not answer.done():  # or whoever waited for it has given up
                    answer.set_result(message)
            elif message.get("sessionId") in self.tabs:
                self.tabs[message["sessionId"]].receive(message["method"], message["params"])


@dataclass
class Tab:
    """One tab, the errors that it has logged, and the dialogs that scripts have opened with ``alert`` and the like."""

    browser: Browser
    session: str
    target: str
    errors: list[str] = field(default_factory=list)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        return await self.browser.call(method, self.session, **params)

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression, or that of its promise."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition is true on the page, evaluated at each change of the page, also over navigations."""
        script = f"""new Promise((done) => {{
            const check = () => {{ if ({condition}) {{ observer.disconnect(); done(true); }} }};
            const observer = new MutationObserver(check);
            const all = {{subtree: true, childList: true, attributes: true, characterData: true}};
            observer.observe(document, all);
            check();
        }})"""
        async with asyncio.timeout(TIMEOUT):
            while True:
                try:
                    await self.evaluate(script)
                except AssertionError as error:
                    if _NAVIGATED not in str(error):
                        raise
                else:
                    return

    async def open(self, url: str) -> None:
        """Open a URL and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        loaded = "new Promise((d) => document.readyState === 'complete' ? d() : addEventListener('load', () => d()))"
        async with asyncio.timeout(TIMEOUT):
            while await self.evaluate("location.href") != url:
                continue
        await self.evaluate(loaded)

    async def insert(self, text: str) -> None:
        """Type into the focused element."""
        await self.call("Input.insertText", text=text)

    async def type(self, text: str) -> None:
        """Type into the focused element and press Enter."""
        await self.insert(text)
        await self.press("Enter")

    async def press(self, *keys: str, ctrl: bool = False) -> None:
        """Press keys one after the other: characters, or names such as ``Tab`` and ``ArrowDown``."""
        for key in keys:
            code, text = _KEYS.get(key, (ord(key.upper()) if len(key) == 1 else 0, key))
            shown = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shown)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **shown)

    async def resize(self, width: int, height: int, *, scale: float = 1, mobile: bool = False) -> None:
        """Give the page a size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        await self.call("Emulation.setDeviceMetricsOverride", **size)

    async def prefer(self, scheme: str) -> None:
        """Make the page believe that the person prefers ``dark`` or ``light`` colours, and no motion."""
        preferences = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in preferences.items()]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self) -> bytes:
        """Return a picture of the visible part of the page, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    def receive(self, method: str, params: dict[str, Any]) -> None:
        """Keep the errors among the events."""
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.errors.append(str(params["entry"]))
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(str(params))


@asynccontextmanager
async def run_browser(program: str) -> AsyncIterator[Browser]:
    """Run a browser with a new profile while the block runs."""
    with tempfile.TemporaryDirectory(prefix="taskherd-chromium-", ignore_cleanup_errors=True) as folder:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec(
            program,
            *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-extensions"),
            *("--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}", *sandbox),
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while (match := _ADDRESS.search(line := await process.stderr.readline())) is None:
                    assert line, "chromium exited"
            draining = asyncio.create_task(_drain(process.stderr))
            async with connect(match[1].decode(), max_size=None, open_timeout=TIMEOUT) as socket:
                browser = Browser(socket)
                listening = asyncio.create_task(browser.listen())
                try:
                    yield browser
                finally:
                    listening.cancel()
                    await asyncio.wait({listening})
            draining.cancel()
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), TIMEOUT)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        continue
