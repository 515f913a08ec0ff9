"""The page of a task, in a real browser: it asks for a token once, shows the task, and changes by itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.api.browser import browsing, chromium
from tests.harness.api import ApiHarness
from tests.harness.worker import build_report, make_report

POLICY = "default-src 'none'"


async def test_what_is_served(api_harness: ApiHarness) -> None:
    """The page is the same for who may see the task and who may not, and may load nothing from elsewhere."""
    task = await api_harness.create()
    page = await api_harness.anonymous.get(f"{api_harness.base}/tasks/alice/{task['id']}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for url in (page.url, f"{api_harness.base}/assets/task.js", f"{api_harness.base}/assets/task.css"):
        answer = await api_harness.anonymous.get(url)
        assert answer.status_code == 200
        assert POLICY in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "Fix the flaky test" not in page.text
    evil = await api_harness.anonymous.get(f"{api_harness.base}/tasks/alice/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert "<script>alert" not in evil.text
    assert (await api_harness.anonymous.post(f"{api_harness.base}/tasks/alice/x")).status_code == 405


@pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
async def test_it_changes_by_itself(api_harness: ApiHarness, announce: Callable[[str], None]) -> None:
    """After the token was typed in once, the status, the state, the log and the timeline follow what is reported."""
    task = await api_harness.active(display_name="Mend <b>it</b>")
    task_id = uuid.UUID(task["id"])
    async with browsing(chromium(announce)) as tab:
        await tab.open(f"{api_harness.base}/tasks/alice/{task_id}")
        await tab.until("document.activeElement.id === 'token'")
        await tab.type("wrong-token")
        await tab.until("document.getElementById('note').textContent.includes('not valid')")
        await tab.type(api_harness.tokens["alice"])
        await tab.until("document.getElementById('status').textContent === 'active'")
        await tab.until("document.getElementById('because').textContent.includes('agent is ready')")
        assert await tab.evaluate("document.getElementById('name').textContent") == "Mend <b>it</b>"
        assert api_harness.tokens["alice"] not in await tab.evaluate(
            "location.href + document.documentElement.outerHTML"
        )
        await api_harness.worker.report(
            make_report("app.status", task_id, state="working", message="Reading the code", build_number=1, seq=1)
        )
        await tab.until("document.getElementById('summary').textContent === 'working: Reading the code'")
        await tab.until("document.getElementById('timeline').textContent.includes('working (Reading the code)')")
        entry = {"id": 0, "type": "output", "content": "Found <it>", "time": "2026-01-01T00:00:00Z"}
        await api_harness.worker.report(make_report("task.log", task_id, entries=[entry], build_number=1, seq=1))
        await tab.until("document.getElementById('log').textContent.includes('Found <it>')")
        await api_harness.alice.post(f"/tasks/me/{task_id}/pause")
        await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
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
        await api_harness.alice.delete(f"/tasks/me/{task_id}")
        await tab.until("document.getElementById('note').textContent.includes('deleted')")
        assert tab.complaints == []
