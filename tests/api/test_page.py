"""The page of a task in a real browser: it asks for a token once, shows the task, and follows its changes."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.api.conftest import StartApi
from tests.harness.api import ApiHarness
from tests.harness.browser import find_chromium, open_browser
from tests.harness.worker import bring_to_status, build_report, make_report

POLICY = "default-src 'none'"


async def test_the_page_contains_no_data(api_harness: ApiHarness) -> None:
    """The page contains nothing about the task, escapes its path, and may load nothing from other hosts."""
    task = await api_harness.create()
    page = await api_harness.anonymous.get(f"{api_harness.base}/tasks/alice/{task['id']}")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for url in (page.url, f"{api_harness.base}/assets/task.js", f"{api_harness.base}/assets/task.css"):
        response = await api_harness.anonymous.get(url)
        assert response.status_code == 200
        assert POLICY in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert task["initial_prompt"] not in page.text
    injected = await api_harness.anonymous.get(f"{api_harness.base}/tasks/alice/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert "<script>alert" not in injected.text
    assert (await api_harness.anonymous.post(f"{api_harness.base}/tasks/alice/x")).status_code == 405


@pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
async def test_the_page_follows_its_task(api_harness: ApiHarness, announce: Callable[[str], None]) -> None:
    """Once the token is entered, status, state, log and timeline follow the reports."""
    task = await api_harness.active(display_name="Mend <b>it</b>")
    task_id = uuid.UUID(task["id"])
    async with open_browser(find_chromium(announce)) as tab:
        await tab.open(f"{api_harness.base}/tasks/alice/{task_id}")
        await tab.until("document.activeElement.id === 'token'")
        await tab.type("wrong-token")
        await tab.until("document.getElementById('note').textContent.includes('not valid')")
        await tab.type(api_harness.tokens["alice"])
        await tab.until("document.getElementById('status').textContent === 'active'")
        await tab.until("document.getElementById('because').textContent.includes('agent is running')")
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
        light_background = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        dark_mode = [{"name": "prefers-color-scheme", "value": "dark"}]
        await tab.call("Emulation.setEmulatedMedia", features=dark_mode)
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") != light_background
        tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
        named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node}
        assert {("main", ""), ("heading", "Mend <b>it</b>"), ("log", "Log"), ("list", "Timeline")} <= named
        assert {role for role, _ in named} >= {"banner", "status", "button"}
        await api_harness.alice.delete(f"/tasks/me/{task_id}")
        await tab.until("document.getElementById('note').textContent.includes('deleted')")
        assert tab.errors == []


RESUME_SHOWN = "!document.getElementById('resume').hidden"
TIMELINE = "[...document.querySelectorAll('#timeline li')].map((item) => item.textContent)"
TIMES = "[...document.querySelectorAll('#timeline time')].map((time) => time.dateTime)"


@pytest.mark.timeout(180)  # as above
async def test_the_page_shows_how_an_agent_ended_and_resumes_it(
    start_api: StartApi, announce: Callable[[str], None]
) -> None:
    """The button is there exactly when a resume is accepted; the timeline says in words who did what, by time."""
    async with start_api(stalled_after=1) as api_harness:
        worker = api_harness.worker
        task_id = uuid.UUID((await api_harness.active(display_name="Mend it"))["id"])
        async with open_browser(find_chromium(announce)) as tab:
            await tab.open(f"{api_harness.base}/tasks/alice/{task_id}")
            await tab.until("document.activeElement.id === 'token'")
            await tab.type(api_harness.tokens["alice"])
            await tab.until("document.getElementById('because').textContent.includes('agent is running')")
            assert await tab.evaluate(RESUME_SHOWN) is False
            sent = await api_harness.carol.post(f"/tasks/alice/{task_id}/send", json={"input": "<b>Hurry</b>"})
            assert sent.status_code == 204
            await worker.report(make_report("app.status", task_id, state="working", message="Compiling"))
            await tab.until("document.getElementById('agent').textContent.includes('nothing but heartbeats since')")
            await tab.until("document.getElementById('facts').textContent.includes('Stalled since')")
            assert await tab.evaluate(RESUME_SHOWN) is False
            await worker.report(
                make_report("agent.exit", task_id, why="exited", status=3, words="<img src=x onerror=alert(1)>")
            )
            await tab.until("document.getElementById('because').textContent.includes('exited with status 3')")
            assert "<img src=x" in await tab.evaluate("document.getElementById('because').textContent")
            assert await tab.evaluate("document.querySelectorAll('main img, main b').length") == 0
            await tab.until(RESUME_SHOWN)
            await tab.until("document.getElementById('facts').textContent.includes('Agent ended')")
            assert await tab.evaluate("document.getElementById('facts').textContent.includes('Stalled since')") is False
            tree = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
            named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node}
            assert ("button", "Resume") in named
            assert (await api_harness.bob.post(f"/tasks/alice/{task_id}/resume")).status_code == 404
            await tab.evaluate("document.getElementById('resume').click()")
            await tab.until("document.getElementById('status').textContent === 'pending'")
            await tab.until(f"!({RESUME_SHOWN})")
            await tab.until("document.getElementById('timeline').textContent.includes('alice resumed the task')")
            await worker.make_active(task_id, 2)
            await tab.until("document.getElementById('status').textContent === 'active'")
            assert (await api_harness.carol.post(f"/tasks/alice/{task_id}/pause")).status_code == 202
            await worker.report(build_report(task_id, 3, "stop", "succeeded"))
            await tab.until(f"document.getElementById('status').textContent === 'paused' && {RESUME_SHOWN}")
            await worker.until_row("SELECT count(*) FROM outbox", is_=0)
            await tab.until("document.getElementById('timeline').textContent.includes('carol paused the task')")
            times, items = await tab.evaluate(TIMES), await tab.evaluate(TIMELINE)
            assert times == sorted(times, reverse=True)
            said = "".join(reversed(items))
            for words in (
                "alice created the task",
                "carol sent an input<b>Hurry</b> (",
                "the agent stalled",
                "the agent exited with status 3",
                "alice resumed the task",
                "carol paused the task",
            ):
                assert words in said, said
                said = said[said.index(words) :]
            assert tab.errors == []


@pytest.mark.timeout(180)  # as above
async def test_a_resume_that_is_refused_is_explained_on_the_page(
    api_harness: ApiHarness, announce: Callable[[str], None]
) -> None:
    """If somebody else was faster, the page shows the server's message."""
    task_id = await bring_to_status(api_harness.worker, "paused")
    async with open_browser(find_chromium(announce)) as tab:
        await tab.open(f"{api_harness.base}/tasks/alice/{task_id}")
        await tab.until("document.activeElement.id === 'token'")
        await tab.type(api_harness.tokens["alice"])
        await tab.until(RESUME_SHOWN)
        click = "document.getElementById('resume').click()"
        assert (await api_harness.carol.post(f"/tasks/alice/{task_id}/resume")).status_code == 202
        await tab.evaluate(click)
        await tab.until("document.getElementById('note').textContent.includes('build is already active')")
        await tab.until(f"!({RESUME_SHOWN})")
        await api_harness.alice.delete(f"/tasks/me/{task_id}")
        await tab.until("document.getElementById('note').textContent.includes('was deleted')")
        assert tab.errors == []
