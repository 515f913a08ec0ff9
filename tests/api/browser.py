"""A real headless Chromium, driven over its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
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

from taskherd.dev import apt
from tests.harness.api import TIMEOUT

START_WITHIN = 60.0
_ADDRESS = re.compile(rb"DevTools listening on (ws://\S+)")


def chromium(announce: Callable[[str], None]) -> str:
    """The program, installed if it is not there."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = apt.install("chromium", announce)
        assert missing is None, f"the page can't be shown without chromium: {missing}"
        found = shutil.which("chromium")
    assert found is not None
    return found


@dataclass
class Tab:
    """One tab. What it complains of is kept."""

    socket: ClientConnection
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    _count: int = 0
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._count += 1
        self._answers[self._count] = answer = asyncio.get_running_loop().create_future()
        session = {"sessionId": self.session} if self.session else {}
        await self.socket.send(json.dumps({"id": self._count, "method": method, "params": params, **session}))
        async with asyncio.timeout(TIMEOUT):
            told = await answer
        assert "error" not in told, (method, told)
        result: dict[str, Any] = told["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, of what it promises if it is a promise."""
        told = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until the page has changed such that a condition holds; the page itself says when."""
        await self.evaluate(f"""new Promise((done) => {{
            const look = () => {{ if ({condition}) {{ watch.disconnect(); done(true); }} }};
            const watch = new MutationObserver(look);
            const all = {{subtree: true, childList: true, attributes: true, characterData: true}};
            watch.observe(document, all);
            look();
        }})""")

    async def open(self, url: str) -> None:
        """Go to an address and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        loaded = "new Promise((d) => document.readyState === 'complete' ? d() : addEventListener('load', () => d()))"
        async with asyncio.timeout(TIMEOUT):
            while await self.evaluate("location.href") != url:
                continue
        await self.evaluate(loaded)

    async def type(self, text: str) -> None:
        """Type into what has the focus, and press Enter."""
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
            await self.call("Input.dispatchKeyEvent", type=kind, text="\r" if kind == "keyDown" else "", **enter)

    async def listen(self) -> None:
        """Take what the browser says."""
        async for text in self.socket:
            told = json.loads(text)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["source"] != "network":
                self.complaints.append(str(told["params"]["entry"]))


@asynccontextmanager
async def browsing(program: str) -> AsyncIterator[Tab]:
    """A browser with one tab and nothing remembered, until the block is left."""
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
            async with asyncio.timeout(START_WITHIN):
                while (found := _ADDRESS.search(line := await process.stderr.readline())) is None:
                    assert line, "chromium ended"
            draining = asyncio.create_task(_drain(process.stderr))
            async with connect(found[1].decode(), max_size=None, open_timeout=TIMEOUT) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                try:
                    await _attach(tab)
                    yield tab
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


async def _attach(tab: Tab) -> None:
    target = await tab.call("Target.createTarget", url="about:blank")
    attached = await tab.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
    tab.session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Accessibility"):
        await tab.call(f"{domain}.enable")


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65_536):
        continue
