"""The conversation on a task's page: a bounded part of it, older entries, and what arrives meanwhile."""

from __future__ import annotations

import uuid

import pytest

from tests.board.pages import Board
from tests.board.test_task import open_task, status, with_module
from tests.harness.conversation import PLAN, Entry, converse, said, tool
from tests.harness.worker import build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
MAX_KEPT = 600
"""As in ``static/task/log.js``."""


async def test_a_long_conversation_keeps_a_bounded_part(board: Board) -> None:
    """The page begins at the end, reads older entries when somebody scrolls up, and never keeps more than its limit."""
    harness = board.harness
    task = await harness.active(name="long-talk", display_name="A long talk")
    task_id = uuid.UUID(task["id"])
    lines = tuple(said(f"Line {number} of a long talk") for number in range(1_000))
    await converse(harness, task_id, lines)
    await status(board, task["id"], "working", "Talking")
    page = await open_task(board, "long-talk")
    await page.sees("Line 999 of a long talk", ".log")
    entries = "document.querySelectorAll('.log .entry').length"
    await page.tab.until("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
    assert await page.tab.evaluate(entries) <= 200
    scroll_up = "document.querySelector('.log-more:not(.newer)') && (scrollTo(0, 0), false)"
    await page.tab.until(f"{scroll_up} || document.querySelector('.log').textContent.includes('Line 0 of')")
    assert await page.tab.evaluate(entries) <= MAX_KEPT
    await page.sees("newer entries · go to the end", ".log-more.newer")
    await converse_more(board, task_id, 1_000, "Said meanwhile")
    await page.click(".log-more.newer button")
    await page.sees("Said meanwhile", ".log")
    assert await page.tab.evaluate(entries) <= MAX_KEPT
    await converse_more(board, task_id, 1_001, "And at the end")
    await page.sees("And at the end", ".log")
    await page.tab.until("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
    assert page.tab.errors == []


async def test_going_to_the_top_reads_older_entries_once(board: Board) -> None:
    """Who goes to the top of a long conversation reads the next page, and stays where the first entry was."""
    task = await board.harness.active(name="at-the-top", display_name="At the top")
    task_id, older = uuid.UUID(task["id"]), f"/tasks/{task['owner_id']}/{task['id']}/logs?before"
    await converse(board.harness, task_id, tuple(said(f"Line {number} at the top") for number in range(2_000)))
    page = await open_task(board, "at-the-top")
    await page.sees("Line 1999 at the top", ".log")
    entries = "document.querySelectorAll('.log .entry').length"
    while (kept := await page.tab.evaluate(entries)) < MAX_KEPT:
        await page.click(".log-more button", "Earlier entries")
        await page.tab.until(f"{entries} > {kept}")
    reads = len(await page.reads(older))
    assert reads
    await page.tab.evaluate("window.first = document.querySelector('.log .entry'), scrollTo(0, 0)")
    await page.tab.until("first !== document.querySelector('.log .entry')")
    # a while after entries were added last:
    await page.tab.until("document.querySelector('.log').ariaLive === 'polite'")
    assert len(await page.reads(older)) == reads + 1
    assert await page.tab.evaluate("first.isConnected && 0 <= first.getBoundingClientRect().y")
    assert await page.tab.evaluate("first.getBoundingClientRect().bottom <= innerHeight")
    assert await page.tab.evaluate(entries) == MAX_KEPT
    assert page.tab.errors == []


FAILING = """window.asked = 0, window.real = fetch, window.fetch = (...given) => {
    if (!String(given[0]).includes('logs?before')) return real(...given);
    asked += 1;
    return Promise.resolve(new Response('{"message": "Not now."}', {status: 503}));
}, 0"""
"""Lets each read of older entries fail, and counts them in ``asked``."""
HOLDING = """window.held = new Promise((go) => (window.release = go)), window.real = fetch;
window.fetch = async (...given) => {
    const response = await real(...given);
    if (!String(given[0]).includes('logs?limit')) return response;
    document.body.dataset.read = '';
    await held;
    return response;
}, 0"""
"""Holds back the newest entries after they were read, until ``release`` is called."""


async def test_a_plan_stays_as_somebody_left_it(board: Board) -> None:
    """A plan that was folded or unfolded by hand stays so when the next one comes; the last one is else unfolded."""
    task_id = uuid.UUID((await board.harness.active(name="plans", display_name="Plans"))["id"])
    await converse(board.harness, task_id, (said("I look"), PLAN, tool("Read a.py", "read", "x = 1")))
    page = await open_task(board, "plans")
    opened = "[...document.querySelectorAll('.plan')].map((each) => each.open)"
    await page.becomes(f"`${{{opened}}}` === 'true'")
    await page.click(".plan summary")
    await page.becomes(f"`${{{opened}}}` === 'false'")
    for state in ("true", "false"):
        await page.tab.press("x")
        await page.becomes(f"`${{document.querySelector('.tool:not(.plan)').open}}` === '{state}'")
        assert await page.tab.evaluate(opened) == [False]
    for number, expected in ((3, "false,true"), (4, "false,false,true")):
        await log_more(board, task_id, number, PLAN)
        await page.becomes(f"`${{{opened}}}` === '{expected}'")
    await page.tab.evaluate("document.querySelector('.plan summary').click()")
    await page.becomes(f"`${{{opened}}}` === 'true,false,true'")
    await log_more(board, task_id, 5, PLAN)
    await page.becomes(f"`${{{opened}}}` === 'true,false,false,true'")
    await log_more(board, task_id, 6, said("That is all"))
    await page.sees("That is all", ".log")
    assert await page.tab.evaluate(opened) == [True, False, False, True]
    assert page.tab.errors == []


async def test_what_is_left_out_is_there_by_button(board: Board) -> None:
    """The rest of a long text, earlier entries, earlier builds, and what stands beside the conversation on a phone."""
    task_id = uuid.UUID((await board.harness.active(name="by-button", display_name="By button"))["id"])
    lines = tuple(said(f"Line {number} by button") for number in range(120))
    await converse(board.harness, task_id, (*lines, said(f"{'Long and longer. ' * 400}That is all.")))
    builds = [
        build_report(task_id, number, "start" if number % 2 else "stop", "succeeded", runner="r1")
        for number in range(2, 24)
    ]
    await board.harness.worker.report(*builds)
    page = await open_task(board, "by-button")
    assert "That is all." not in await page.text(".log")
    await page.click(".log .entry button", "Show all of it")
    await page.sees("That is all.", ".log")
    await page.click(".log-more button", "Earlier entries")
    await page.tab.until("document.querySelector('.log').textContent.includes('Line 0 by')")
    await page.tab.until("document.querySelectorAll('.builds > li').length === 20")
    await page.click(".side button", "Earlier ones")
    await page.sees("Start 1", ".builds li:last-child")
    assert await page.tab.evaluate("document.querySelectorAll('.builds > li').length") == 23
    await page.tab.resize(390, 844)
    await page.tab.until("document.querySelector('.side') && !document.querySelector('.side').open")
    await page.click(".side > summary", "About this task")
    await page.sees("alice/by-button", ".facts")
    assert await page.violations() == []
    assert page.tab.errors == []


async def test_older_entries_that_cannot_be_read_are_asked_for_once(board: Board) -> None:
    """The page says so and waits for the person, who stays where they read; what works again takes the notice away."""
    task_id = uuid.UUID((await board.harness.active(name="no-past", display_name="No past"))["id"])
    await converse(board.harness, task_id, tuple(said(f"Line {number} of the past") for number in range(300)))
    page = await open_task(board, "no-past")
    await page.sees("Line 299 of the past", ".log")
    await page.tab.evaluate(FAILING)
    notice = "document.querySelector('.conversation .notice')"
    await page.tab.until(f"(scrollTo(0, 0), {notice}?.innerText.includes('Not now.'))")
    asked = await page.tab.evaluate("asked")
    await converse_more(board, task_id, 300, "And one more")
    await page.tab.until("document.querySelector('.log').textContent.includes('And one more')")
    await status(board, str(task_id), "working", "Going on")
    await page.sees("Going on", ".now")
    assert await page.tab.evaluate("asked") == asked == 1
    assert await page.tab.evaluate("scrollY") == 0
    await page.tab.evaluate("window.fetch = real, 0")
    entries = "document.querySelectorAll('.log .entry').length"
    before = await page.tab.evaluate(entries)
    await page.click(".conversation .notice button", "Try again")
    await page.tab.until(f"{entries} > {before} && !{notice}")
    assert await page.tab.evaluate("innerHeight + scrollY < document.documentElement.scrollHeight - 500")
    assert page.tab.errors == []


async def test_what_arrives_while_the_end_is_read_is_shown(board: Board) -> None:
    """The stream may be ahead of the page of entries that was asked for; both are shown."""
    task_id = uuid.UUID((await board.harness.active(name="both-ends", display_name="Both ends"))["id"])
    await converse(board.harness, task_id, tuple(said(f"Line {number} of both") for number in range(150)))
    page = await open_task(board, "both-ends")
    await page.sees("Line 149 of both", ".log")
    await page.tab.evaluate(HOLDING)
    await page.tab.press("G")
    await page.tab.until("'read' in document.body.dataset")
    await converse_more(board, task_id, 150, "Said while it was read")
    await page.sees("Said while it was read", ".log")
    await page.tab.evaluate("release(), 0")
    await page.tab.until("document.querySelector('.log').innerText.includes('Said while')")
    await converse_more(board, task_id, 151, "And afterwards")
    await page.sees("And afterwards", ".log")
    assert "Said while it was read" in await page.text(".log")
    await page.tab.until("innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
    assert page.tab.errors == []


async def test_what_is_not_shown_is_counted_once(board: Board) -> None:
    """An entry that replaces one that nobody has seen is no further one, and a gap leaves who reads where they are."""
    await board.harness.active(name="counted", display_name="Counted")
    page = await open_task(board, "counted")
    entry = "const entry = (id) => ({id, type: 'output', content: `${id}`, time: '', place: [0, 1, id]})"
    many = "Array.from({length: 600}, (_, id) => entry(id + 100))"
    log = f"""(() => {{ {entry}; const log = new module.Log(); log.reset({many}, true);
        for (const id of [700, 700, 701, 700, 5]) log.apply([entry(id)], false);
        return [log.newer, log.entries.length, log.lowest]; }})()"""
    assert await with_module(page, "task/log.js", log) == [2, 600, 100]
    few = f"""(() => {{ {entry}; const log = new module.Log(); log.reset([entry(7), entry(8)], true);
        log.apply([entry(5), entry(9)], false); return log.entries.map((each) => each.id); }})()"""
    assert await with_module(page, "task/log.js", few) == [7, 8, 9]
    gap = f"""(() => {{ {entry}; const root = document.createElement('div'); document.body.append(root);
        const {{ signal }} = new AbortController();
        const shown = new module.Conversation(root, {{path: () => '/none', signal, onRead() {{}}}});
        shown.receive({{logs: {many}, truncated: false}}); scrollTo(0, 0);
        shown.receive({{logs: [entry(1800)], truncated: true}});
        return [shown.arrived, root.querySelector('.newer')?.innerText, root.innerText.includes('1800')]; }})()"""
    newer = "1 newer entry · go to the end"
    assert await with_module(page, "task/conversation.js", gap) == [None, newer, False]
    assert page.tab.errors == []


async def converse_more(board: Board, task: uuid.UUID, number: int, text: str) -> None:
    """Report that the agent said something more."""
    await log_more(board, task, number, said(text))


async def log_more(board: Board, task: uuid.UUID, number: int, entry: Entry) -> None:
    """Report one more entry."""
    logged = {"id": number, "time": "2030-01-02T03:04:05Z", **entry}
    await board.harness.worker.report(make_report("task.log", task, build_number=1, seq=number, entries=[logged]))
