"""Texts from right to left: each has its own direction, wherever it is shown or written."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.board.pages import Board
from tests.board.test_task import open_task, status
from tests.harness.asking import OPTIONS, approval, asked
from tests.harness.conversation import converse, said, tool
from tests.harness.worker import make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HEBREW = "תקן את הבדיקה"
MIXED = f"{HEBREW} checkout (1) `make test`."
WRONG = """[...document.querySelectorAll("main *, dialog *")].filter((each) => {
    const texts = [...each.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data);
    if (!/[\\u0590-\\u05ff]/.test(texts.join("")) || /^[^\\u0590-\\u05ff]*[a-z]/i.test(each.textContent)) return false;
    return getComputedStyle(each).direction !== "rtl";
}).map((each) => each.outerHTML.slice(0, 200))"""
"""Elements whose own text begins in Hebrew, and which are laid out from left to right."""
FIELDS = """[...document.querySelectorAll("main textarea:not(.mono), dialog textarea, #display_name, .find input")]
    .filter((each) => each.dir !== "auto").map((each) => each.outerHTML.slice(0, 200))"""
"""Fields for texts whose direction does not follow what is written."""


async def test_texts_have_their_own_direction(board: Board) -> None:
    """What people and agents write in Hebrew runs from right to left on every page, and the page itself does not."""
    harness = board.harness
    for name, state in (("works", "working"), ("rests", "idle"), ("done", "complete"), ("ended", "working")):
        task = await harness.active(name=name, display_name=f"{HEBREW} 1", input=MIXED)
        await status(board, task["id"], state, MIXED)
    ended = uuid.UUID((await harness.get("ended"))["id"])
    await harness.worker.report(make_report("agent.exit", ended, why="exited", status=3, words=MIXED, build_number=1))
    task_id = uuid.UUID((await harness.active(name="asks", display_name=HEBREW, input=f"{MIXED}\n{MIXED}"))["id"])
    labels = [{**each, "label": HEBREW} for each in OPTIONS[:1]]
    await approval(harness, task_id, title=MIXED, detail=MIXED, options=labels)
    await asked(harness, task_id, title=MIXED)
    plan = {**said(MIXED, "plan"), "data": {"entries": [{"content": MIXED, "status": "pending"}]}}
    spoken = [said(MIXED, kind) for kind in ("message", "thought", "notice")]
    call = tool(MIXED, "other", f"{MIXED}\n{MIXED}")
    await converse(harness, task_id, ({"type": "input", "content": MIXED}, *spoken, said("In English"), call, plan))
    assert (await harness.alice.post(f"/tasks/me/{task_id}/send", json={"input": MIXED})).status_code == 204
    gone = await harness.create(name="gone", display_name=HEBREW)
    assert (await harness.alice.delete(f"/tasks/me/{gone['id']}")).status_code == 202
    page = await open_task(board, "asks")
    for path in ("/tasks/alice/asks", "/tasks/alice/ended", "/tasks/alice/works", "/", "/tasks", "/deleted", "/new"):
        await page.go(path)
        await page.tab.until("document.querySelector('.page[data-ready]')")
        if path != "/new":
            await page.tab.until(f"document.getElementById('main').innerText.includes({json.dumps(HEBREW)})")
        await page.tab.evaluate("document.querySelectorAll('main details:not(.menu)').forEach((e) => (e.open = true))")
        await page.tab.until("[...document.querySelectorAll('.log details')].every((e) => e.children.length > 1)")
        assert await page.tab.evaluate(WRONG) == [], path
        assert await page.tab.evaluate(FIELDS) == [], path
        assert await page.tab.evaluate("getComputedStyle(document.querySelector('main')).direction") == "ltr"
    await page.go("/tasks/alice/asks")
    await page.sees("In English", ".log")
    english = "[...document.querySelectorAll('.said')].find((each) => each.innerText.includes('In English'))"
    assert await page.tab.evaluate(f"getComputedStyle({english}.querySelector('.prose > *')).direction") == "ltr"
    assert page.tab.errors == []
