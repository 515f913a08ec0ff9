"""The page of a task, in a real browser: it asks for a token once, shows the task, and changes by itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.api.browser import browsing, chromium
from tests.harness.api import Stage
from tests.harness.worker import build, said

POLICY = "default-src 'none'"


async def test_what_is_served(house: Stage) -> None:
    """The page is the same for who may see the task and who may not, and may load nothing from elsewhere."""
    task = await house.create()
    page = await house.nobody.get(f"{house.base}/tasks/alice/{task['id']}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for url in (page.url, f"{house.base}/assets/task.js", f"{house.base}/assets/task.css"):
        answer = await house.nobody.get(url)
        assert answer.status_code == 200
        assert POLICY in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "Fix the flaky test" not in page.text
    evil = await house.nobody.get(f"{house.base}/tasks/alice/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert "<script>alert" not in evil.text
    assert (await house.nobody.post(f"{house.base}/tasks/alice/x")).status_code == 405


@pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
async def test_it_changes_by_itself(house: Stage, announce: Callable[[str], None]) -> None:
    """After the token was typed in once, the status, the state, the log and the timeline follow what is reported."""
    task = await house.active(display_name="Mend <b>it</b>")
    task_id = uuid.UUID(task["id"])
    async with browsing(chromium(announce)) as tab:
        await tab.open(f"{house.base}/tasks/alice/{task_id}")
        await tab.until("document.activeElement.id === 'token'")
        await tab.type("wrong-token")
        await tab.until("document.getElementById('note').textContent.includes('does not hold')")
        await tab.type(house.tokens["alice"])
        await tab.until("document.getElementById('status').textContent === 'active'")
        await tab.until("document.getElementById('because').textContent.includes('agent is ready')")
        assert await tab.evaluate("document.getElementById('name').textContent") == "Mend <b>it</b>"
        assert house.tokens["alice"] not in await tab.evaluate("location.href + document.documentElement.outerHTML")
        await house.herd.report(
            said("app.status", task_id, state="working", message="Reading the code", build_number=1, seq=1)
        )
        await tab.until("document.getElementById('summary').textContent === 'working: Reading the code'")
        await tab.until("document.getElementById('timeline').textContent.includes('working (Reading the code)')")
        entry = {"id": 0, "type": "output", "content": "Found <it>", "time": "2026-01-01T00:00:00Z"}
        await house.herd.report(said("task.log", task_id, entries=[entry], build_number=1, seq=1))
        await tab.until("document.getElementById('log').textContent.includes('Found <it>')")
        await house.alice.post(f"/tasks/me/{task_id}/pause")
        await house.herd.report(build(task_id, 2, "stop", "succeeded"))
        await tab.until("document.getElementById('status').textContent === 'paused'")
        await tab.until("document.getElementById('because').textContent.includes('Resume the task')")
        assert await tab.evaluate("document.title") == "paused: Mend <b>it</b>"
        await tab.call("Page.reload")
        await tab.until("document.getElementById('status')?.textContent === 'paused'")
        light = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        await tab.call("Emulation.setEmulatedMedia", features=dark)
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
        tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node}
        assert {("main", ""), ("heading", "Mend <b>it</b>"), ("log", "Log"), ("list", "Timeline")} <= named
        assert {role for role, _ in named} >= {"banner", "status", "button"}
        await house.alice.delete(f"/tasks/me/{task_id}")
        await tab.until("document.getElementById('note').textContent.includes('deleted')")
        assert tab.complaints == []
