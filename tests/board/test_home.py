"""Home in a real browser: what needs a person, what runs, what ended, and that it follows the API."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import NEXT_FRAME, Board, Page
from tests.harness.api import OTHER_VERSION
from tests.harness.asking import asked
from tests.harness.worker import VERSION, build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
READY = "document.querySelector('.page.home[data-ready]')"
SHIFTS = """new Promise((done) => {
    new PerformanceObserver((list) => done(list.getEntries().map(({value, sources}) => (
        {value, of: sources.map((each) => [each.node?.className, each.previousRect.y, each.currentRect.y])}))))
        .observe({type: "layout-shift", buffered: true});
    setTimeout(() => done([]), 500);
})"""
"""What moved on the page so far, and by how much: the sum is Chromium's cumulative layout shift."""
_RECORDING = """
    window.asked = [];
    const real = window.fetch;
    window.fetch = (path, options) => asked.push([new Error().stack.includes("/boot.js"), path]) && real(path, options);
"""
"""Records what a page asks for, and whether the first script of its document did."""
_ASKED = "asked.map(([, path]) => path.split('?')[0])"
_SCROLLED = """
    window.scrolled = [];
    window.scrollTo = (x, y) => scrolled.push(y);
    sessionStorage.setItem("taskherd-scrolls", '{"here": 7}');
    history.replaceState({ entry: "here" }, "");
"""
"""Lets a page believe that somebody comes back to it, and records where it scrolls to."""
HOSTILE = "<img src=x onerror=alert(1)> `code` </script>"


async def status(board: Board, task_id: str, state: str, message: str = "", uri: str = "") -> None:
    """Report what an agent says."""
    fields = {"state": state, "message": message, "uri": uri, "build_number": 1}
    await board.harness.worker.report(make_report("app.status", uuid.UUID(task_id), **fields))


async def test_an_empty_home_says_what_to_do_next(board: Board) -> None:
    """Without any task, the page leads to the form for a new one."""
    page = await board.open("/", "bob")
    await page.sees("You have no tasks yet")
    await page.click(".empty a", "New task")
    await page.tab.until("location.pathname === '/new' && document.querySelector('#prompt')")
    assert page.tab.errors == []


async def test_home_opens_with_one_answer(board: Board) -> None:
    """A page that opens reads one overview, and who looks at it; nothing else."""
    task = await board.harness.active(display_name="Read once")
    page = await board.open("/")
    await page.sees("Read once", "section[aria-labelledby=running]")
    await status(board, task["id"], "working", "Still reading")
    await page.sees("Still reading", "section[aria-labelledby=running]")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_RECORDING)
    await page.go("/")
    await page.becomes(f"{_ASKED}.length >= 3")
    asked = await page.tab.evaluate(_ASKED)
    assert sorted(asked) == ["/api/v2/task-overview", "/api/v2/tasks/watch", "/api/v2/users/me"]


@pytest.mark.parametrize("scope", ["mine", "everyone"])
async def test_what_is_asked_before_the_scripts_are_there_is_used(board: Board, scope: str) -> None:
    """What the document's first script asks for is what the page then needs, of either scope, and not asked again."""
    task = await board.harness.active(display_name="Asked early")
    await status(board, task["id"], "working", "Early")
    page = await board.open("/")
    await page.tab.evaluate(f"localStorage.setItem('taskherd-home-scope', '{scope}')")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_RECORDING)
    await page.go("/")
    await page.sees("Asked early", "section[aria-labelledby=running]")
    await page.becomes("asked.length >= 3")
    asked = [(early, path.partition("?")[0]) for early, path in await page.tab.evaluate("asked")]
    early = [path.removeprefix("/api/v2") for is_early, path in asked if is_early]
    assert early == ["/users/me", "/task-overview"]
    assert [path for is_early, path in asked if not is_early] == ["/api/v2/tasks/watch"]
    assert page.tab.errors == []


async def test_the_page_opens_though_the_api_does_not_answer(board: Board) -> None:
    """The frame waits for nothing, and Home says after a moment that it reads; its rows come with the answer."""
    task = await board.harness.active(display_name="Answered late")
    await status(board, task["id"], "working", "Late")
    page = await board.open("/")
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/task-overview*"}])  # held until disabled
    await page.go("/")
    await page.sees("New task", "#top")
    await page.sees("Needs you", "h1")
    await page.tab.until("document.querySelector('.needs [aria-busy=true]')")
    assert await page.violations() == []
    assert "Answered late" not in await page.text()
    await page.tab.call("Fetch.disable")
    await page.sees("Answered late", "section[aria-labelledby=running]")
    assert page.tab.errors == []


async def test_what_was_asked_early_is_dropped_with_its_scope(board: Board) -> None:
    """Somebody who changes the scope while the first answer is on its way, and back, sees what is true then."""
    task = await board.harness.active(display_name="Early, then late")
    await status(board, task["id"], "working", "Early")
    page = await board.open("/")
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/task-overview*owner*"}])  # held until disabled
    await page.go("/")
    await page.sees("Needs you", "h1")
    await page.tab.press("m")
    await page.sees("Early, then late", "section[aria-labelledby=running]")
    await page.tab.press("m")
    await page.tab.until("!document.querySelector('section[aria-labelledby=running] a.name')")
    await page.tab.call("Fetch.disable")
    await page.sees("Early, then late", "section[aria-labelledby=running]")
    assert page.tab.errors == []


async def test_home_restores_its_scroll_position_once(board: Board) -> None:
    """Reading again does not take somebody back who has scrolled on."""
    task = await board.harness.active(display_name="Scrolled")
    page = await board.open("/")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_SCROLLED)
    await page.go("/")
    await page.tab.until(READY)
    await status(board, task["id"], "working", "Going on")
    await page.sees("Going on", "section[aria-labelledby=running]")
    await page.until_reads("/task-totals")
    for _ in range(3):
        await page.tab.evaluate(NEXT_FRAME)
    assert await page.tab.evaluate("scrolled") == [7]


async def test_home_shows_its_lists_without_a_stream(board: Board) -> None:
    """Where no stream can be opened, as when too many are open, the page still shows what there is."""
    await board.harness.active(display_name="Without a stream")
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/tasks/watch*"])
    await page.go("/")
    await page.sees("Without a stream", "section[aria-labelledby=running]")
    assert page.tab.errors == []


async def test_an_agent_that_waits_is_answered_inline(board: Board) -> None:
    """An agent that waits comes to the top by itself, with what it says; a reply goes to it from there."""
    harness = board.harness
    page = await board.open("/")
    await page.tab.until("document.querySelector('.page[data-ready]')")
    task = await harness.active(display_name="Count <b>lines</b>")
    await status(board, task["id"], "working", "Counting")
    await page.sees("Counting", "section[aria-labelledby=running]")
    await status(board, task["id"], "idle", f"Which package? {HOSTILE}")
    await page.sees("1 needs you", "h1")
    await page.sees("Which package?", ".needs")
    await page.tab.until("document.title.startsWith('(1) ')")
    assert await page.tab.evaluate("document.querySelectorAll('.needs img, .needs script, .needs b').length") == 0
    await page.click(".need button", "Reply")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert("The domain")
    await page.click(".reply button", "Send")
    await page.sees("Sent", ".needs")
    (sent,) = await harness.worker.database.fetch(
        "SELECT content FROM inputs WHERE task_id = $1", uuid.UUID(task["id"])
    )
    assert sent["content"] == "The domain"
    await status(board, task["id"], "complete", "3,388 lines", "https://github.com/acme/app/pull/7")
    await page.sees("Nothing needs you", "h1")
    await page.sees("acme/app#7", "section[aria-labelledby=ended]")
    await page.tab.until("!document.title.startsWith('(')")
    assert page.tab.errors == []


async def write_to(page: Page, task: dict[str, Any], text: str) -> None:
    """Send a message to the task of a row, which has no open text field yet."""
    await begin_reply(page, task, text)
    await page.click(f".need[data-id='{task['id']}'] .reply button", "Send")


async def begin_reply(page: Page, task: dict[str, Any], text: str) -> None:
    """Write a message into the text field of a row, which has none yet, and leave the focus there."""
    await page.click(f".need[data-id='{task['id']}'] button", "Reply")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert(text)


CUT_OFF = """window.keys = [], window.real = fetch, window.cut = true;
window.fetch = async (path, options) => {
    const response = await real(path, options);
    if (!String(path).endsWith('/send')) return response;
    keys.push(options.headers['Idempotency-Key']);
    if (cut === 'unconfirmed') return new Response('{"message": "Not confirmed in time."}', {status: 503});
    if (cut) throw new TypeError('cut off');
    return response;
}, 0"""
"""Loses the answers to messages, which arrive, while ``cut`` is set, and keeps their keys in ``keys``."""


async def test_a_reply_without_an_answer_is_sent_once(board: Board) -> None:
    """What is sent again after its answer was lost has the same key; the same text to a later question has not."""
    task = await board.harness.active(display_name="Replied once")
    await status(board, task["id"], "idle", "Which branch?")
    page = await board.open("/")
    await page.sees("Which branch?", ".needs")
    await page.tab.evaluate(CUT_OFF)
    await write_to(page, task, "The main one")
    await page.sees("The server cannot be reached.", ".toast.bad")
    await page.tab.evaluate("cut = 'unconfirmed', 0")
    await page.click(".reply button", "Send")
    await page.sees("Not confirmed in time.", ".toast.bad")
    await page.tab.evaluate("cut = false")
    await page.click(".reply button", "Send")
    await page.sees("Sent", ".needs")
    keys = await page.tab.evaluate("keys")
    assert (len(keys), len(set(keys))) == (4, 1)
    actions = (await board.harness.alice.get(f"/tasks/me/{task['id']}/events")).json()["actions"]
    assert [each["input"] for each in actions] == ["The main one"]
    await status(board, task["id"], "working", "On the main one")
    await status(board, task["id"], "idle", "And which tag?")
    await page.tab.press("j")  # takes in what is held back while the row has the focus
    await page.sees("And which tag?", ".needs")
    await write_to(page, task, "The main one")
    await page.becomes("keys.length === 5")
    assert len(set(await page.tab.evaluate("keys"))) == 2
    assert (await board.harness.alice.delete(f"/tasks/me/{task['id']}")).status_code == 202
    assert page.tab.errors == []


async def test_a_reply_is_for_the_task_of_its_row(board: Board) -> None:
    """Another task that has taken the name of a deleted one gets no message that was written to that one."""
    harness = board.harness
    first = await harness.active(name="taken-over", display_name="The first")
    await status(board, first["id"], "idle", "What is the password?")
    page = await board.open("/")
    await page.sees("What is the password?", ".needs")
    await begin_reply(page, first, "It is a secret")  # before the page stops: a list that is on its way could come last
    await page.stop_following()
    assert (await harness.alice.delete("/tasks/me/taken-over")).status_code == 202
    second = await harness.active(name="taken-over", display_name="The second")
    await page.click(f".need[data-id='{first['id']}'] .reply button", "Send")
    await page.tab.until("document.querySelector('.toast.bad')")
    assert await harness.worker.database.fetchval("SELECT count(*) FROM inputs WHERE content = 'It is a secret'") == 0
    assert (await harness.alice.delete(f"/tasks/me/{second['id']}")).status_code == 202
    assert page.tab.errors == []


async def test_a_failure_says_why_and_is_resumed_with_one_click(board: Board) -> None:
    """An agent that failed is shown with how it ended and its last words, and with what can be done about it."""
    harness = board.harness
    task = await harness.active(display_name="Migrate")
    task_id = uuid.UUID(task["id"])
    await status(board, task["id"], "failed", "No space left")
    page = await board.open("/")
    await page.sees("Migrate failed", ".needs")
    await page.sees("“No space left”", ".needs")
    await page.click(".need button", "Reply")  # its agent still runs, so that there is nothing to resume
    await page.tab.press("Escape")
    exit_report = make_report("agent.exit", task_id, why="exited", status=3, words=f"oh\n{HOSTILE}", build_number=1)
    await harness.worker.report(exit_report)
    await page.sees("Migrate exited with status 3", ".needs")
    await page.sees("<img src=x onerror=alert(1)>", ".needs")
    await page.click(".need button", "Resume")
    await page.sees("Migrate", "section[aria-labelledby=running]")
    await harness.worker.report(build_report(task_id, 2, "start", "failed", error="quota"))
    await page.sees("quota", ".needs")
    assert page.tab.errors == []


async def test_rows_stay_while_somebody_points_at_them(board: Board) -> None:
    """While the pointer is on the list, a new row is held back, and one that is over stays; both when it leaves."""
    harness = board.harness
    first, second = await harness.active(display_name="First"), await harness.active(display_name="Second")
    await status(board, first["id"], "idle", "One?")
    page = await board.open("/")
    await page.sees("One?", ".needs")
    await page.point(".need button")
    await status(board, second["id"], "idle", "Two?")
    await page.sees("1 more when you leave this list", ".needs")
    await status(board, first["id"], "working", "Going on")
    await page.sees("No longer needs you", ".needs")
    assert "Two?" not in await page.text(".needs")
    await page.point(".brand")
    await page.sees("Two?", ".needs")
    assert "One?" not in await page.text(".needs")
    assert page.tab.errors == []


async def test_a_finger_holds_no_rows_back_for_ever(board: Board) -> None:
    """A touch screen points at nothing: what was tapped last does not keep new rows away once it is answered."""
    harness = board.harness
    task = await harness.create(harness.bob, name="tapped", display_name="Tapped")
    await harness.worker.make_active(uuid.UUID(task["id"]))
    await status(board, task["id"], "idle", "Which one?")
    page = await board.open("/", "bob")
    await page.tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    await page.tab.resize(390, 844, mobile=True)
    await page.tab.until("matchMedia('(hover: none)').matches")
    await page.sees("Which one?", ".needs")
    row = f".need[data-id='{task['id']}']"
    await page.tap(f"{row} .acts button")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert("The blue one")
    await page.tap(f"{row} .reply button")
    await page.sees("Sent", row)
    for domain in ("DOM", "CSS"):
        await page.tab.call(f"{domain}.enable")
    root = (await page.tab.call("DOM.getDocument"))["root"]["nodeId"]
    needs = await page.tab.call("DOM.querySelector", nodeId=root, selector=".needs")
    await page.tab.call("CSS.forcePseudoState", nodeId=needs["nodeId"], forcedPseudoClasses=["hover"])
    assert await page.tab.evaluate("document.querySelector('.needs').matches(':hover')")  # as on a phone, for ever
    other = await harness.create(harness.bob, display_name="Comes later")
    await harness.worker.make_active(uuid.UUID(other["id"]))
    await status(board, other["id"], "idle", "And now?")
    await page.sees("And now?", ".needs")
    for each in (task, other):
        await status(board, each["id"], "complete")
    assert page.tab.errors == []


async def test_nothing_moves_while_home_is_read(board: Board) -> None:
    """All sections come at once: nothing that is seen moves when they do."""
    harness = board.harness
    for number, state in enumerate(("idle", "failed", "working", "working", "complete")):
        task = await harness.create(harness.bob, display_name=f"Row {number}")
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await status(board, task["id"], state, "It goes on")
    page = await board.open("/new", "bob")
    for width, height in ((1280, 900), (390, 844)):
        await page.tab.resize(width, height)
        await page.go("/")
        await page.tab.until(READY)
        moved = await page.tab.evaluate(SHIFTS)
        assert sum(each["value"] for each in moved) < 0.05, moved


async def test_a_row_stays_under_the_pointer_in_every_list(board: Board) -> None:
    """While the pointer is on what runs, a new task is held back, until the pointer leaves."""
    harness = board.harness
    task = await harness.active(display_name="Pointed at")
    await status(board, task["id"], "working", "Here")
    page = await board.open("/")
    await page.sees("Pointed at", "section[aria-labelledby=running]")
    await page.point(".lines li")
    under = "document.querySelector('.lines li:hover a.name').textContent"
    pointed = await page.tab.evaluate(under)
    other = await harness.active(display_name="Newer than that")
    await status(board, other["id"], "working", "There")
    await status(board, task["id"], "working", "Here it goes on")
    await page.sees("Here it goes on", "section[aria-labelledby=running]")
    assert await page.tab.evaluate(under) == pointed
    assert "Newer than that" not in await page.text("section[aria-labelledby=running]")
    await page.point(".brand")
    await page.sees("Newer than that", "section[aria-labelledby=running]")
    assert page.tab.errors == []


_ROWS = """
    const set = Map.prototype.set;
    Map.prototype.set = function (id, row) {
        if (row?.task && row.since) window.needing = this;
        else if (row?.task && row.state) window.listed = this;
        return set.call(this, id, row);
    };
"""
"""Tells which rows Home knows, of its two kinds of lists."""


async def test_what_comes_and_goes_under_the_pointer_is_forgotten(board: Board) -> None:
    """A pointer that rests on a section for hours does not make the page grow with each task that comes meanwhile."""
    harness = board.harness
    pointed, waits = await harness.active(display_name="Rests here"), await harness.active(display_name="Waits on")
    await status(board, waits["id"], "idle", "Waits on")
    await status(board, pointed["id"], "working", "Here")
    page = await board.open("/")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_ROWS)
    await page.go("/")
    await page.sees("Rests here", "section[aria-labelledby=running]")
    await page.tab.evaluate("document.querySelector('.lines li').scrollIntoView({ block: 'center' })")
    await page.point(".lines li")
    await page.becomes("document.querySelector('.lines li:hover') !== null")
    passing = str((await harness.active(display_name="Comes and goes"))["id"])
    await status(board, passing, "working", "There")
    await page.becomes(f"listed.has('{passing}')")
    await status(board, passing, "idle", "Where to?")
    await page.becomes(f"needing.has('{passing}')")
    assert (await harness.alice.delete(f"/tasks/me/{passing}")).status_code == 202
    await page.becomes(f"!listed.has('{passing}') && !needing.has('{passing}')")
    assert await page.tab.evaluate("document.querySelector('.lines li:hover') !== null")
    assert page.tab.errors == []


async def test_more_than_fit_are_counted_and_the_oldest_is_shown(board: Board) -> None:
    """Of many agents that wait, those that wait for longest are shown, and the heading and the title count all."""
    harness = board.harness
    for number in range(15):
        task = await harness.create(harness.bob, display_name=f"Waits {number}")
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await status(board, task["id"], "idle", f"Waiting since minute {number}")
    page = await board.open("/", "bob")
    await page.sees("17 need you", "h1")  # with those of the test before: one is idle, one has failed
    await page.tab.until("document.title.startsWith('(17) ')")
    await page.sees("It goes on", ".needs")
    await page.sees("Waits 0", ".needs")
    assert "Waits 14" not in await page.text(".needs")
    assert await page.text(".more") == "5 more, of 16 idle 1 failed"
    await page.click(".more a")
    await page.tab.until("location.pathname === '/tasks' && document.querySelector('tbody tr')")
    await page.tab.until("document.title.startsWith('(17) ')")
    assert page.tab.errors == []


async def test_each_number_leads_to_the_list_that_it_counts(board: Board) -> None:
    """What is not shown has one link for each kind, with the number of its list, or at least that."""
    harness = board.harness
    version = str(OTHER_VERSION)
    tasks = []
    for number in range(13):
        task = await harness.create(harness.mallory, display_name=f"Silent {number}", template_version_id=version)
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await harness.worker.report(make_report("agent.disconnected", uuid.UUID(task["id"]), build_number=1))
        tasks.append(task)
    page = await board.open("/", "mallory")
    await page.sees("12+ need you", "h1")
    assert await page.text(".more") == "12+ lost"
    assert await page.violations() == []
    await page.click(".more a")
    await page.tab.until(f"location.search.endsWith('health:lost+changed:%3C1d') && {_LISTED} === 13")
    for index, state in enumerate(("idle", "idle", "failed", "failed", "failed")):
        await harness.worker.make_active(uuid.UUID(tasks[index]["id"]))
        await status(board, tasks[index]["id"], state, "Here again")
    await page.go("/")
    await page.sees("13 need you", "h1")
    await page.tab.until("document.querySelector('.more').innerText === '1 more, of 8 lost'")
    for state in ("failed", "idle"):
        task = await harness.create(harness.mallory, template_version_id=version)
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await status(board, task["id"], state, "No way")
    await page.sees("15 need you", "h1")
    await page.tab.until("document.querySelector('.more').innerText === '3 more, of 8 lost'")
    await page.click(".more a")
    await page.tab.until(f"location.search.endsWith('health:lost+changed:%3C1d') && {_LISTED} === 8")
    assert page.tab.errors == []


_LISTED = "document.querySelectorAll('tbody tr').length"


async def test_the_next_ones_come_when_those_shown_are_done(board: Board) -> None:
    """Of more agents that wait than are read, the others come as soon as some of the first go on."""
    harness, tasks = board.harness, []
    for number in range(20):
        task = await harness.create(harness.carol, display_name=f"Line {number}")
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await status(board, task["id"], "idle", f"In line as {number:02}")
        tasks.append(task)
    page = await board.open("/", "carol")
    await page.sees("20 need you", "h1")
    for task in tasks[:12]:
        await status(board, task["id"], "working", "Going on")
    await page.sees("8 need you", "h1")
    await page.sees("In line as 19", ".needs")
    await page.tab.until("!document.querySelector('.more')")
    for task in tasks[12:]:
        await status(board, task["id"], "working", "Going on")
    await page.sees("Nothing needs you", "h1")
    assert page.tab.errors == []


async def test_an_overview_that_cannot_be_read_is_not_an_empty_one(board: Board) -> None:
    """Home says so, does not say that nothing needs anybody, and reads it again by itself."""
    harness = board.harness
    task = await harness.create(harness.carol, display_name="Broken")
    await harness.worker.make_active(uuid.UUID(task["id"]))
    await status(board, task["id"], "failed", "No space left")
    page = await board.open("/new", "carol")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/task-overview*"])
    await page.go("/")
    await page.sees("The server cannot be reached.", ".needs .notice")
    assert "Nothing needs you" not in await page.text("h1")
    assert await page.violations() == []
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.sees("No space left", ".needs")
    await page.tab.until("!document.querySelector('.needs .notice')")
    assert page.tab.errors == []


_IMPATIENT = """
    const real = AbortSignal.timeout.bind(AbortSignal);
    AbortSignal.timeout = (ms) => real(ms === 20_000 ? 500 : ms);
"""
"""Has a page give up an answer much sooner."""


async def test_an_answer_that_never_comes_is_given_up(board: Board) -> None:
    """A server that hangs does not keep Home from asking again."""
    task = await board.harness.active(display_name="Asked again")
    await status(board, task["id"], "working", "At last")
    page = await board.open("/new")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_IMPATIENT)
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/task-overview*"}])  # held until disabled
    await page.go("/")
    await page.sees("The server cannot be reached.", ".needs .notice")
    await page.tab.call("Fetch.disable")
    await page.sees("Asked again", "section[aria-labelledby=running]")
    await page.tab.until("!document.querySelector('.needs .notice')")
    assert page.tab.errors == []


async def test_what_was_deleted_while_home_was_read_stays_away(board: Board) -> None:
    """An overview that is older than a deletion brings nothing back."""
    harness, tasks = board.harness, []
    for number in range(14):
        task = await harness.create(harness.carol, display_name=f"Queue {number:02}")
        await harness.worker.make_active(uuid.UUID(task["id"]))
        await status(board, task["id"], "idle", f"Queue as {number:02}")
        tasks.append(task)
    page = await board.open("/new", "carol")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_RECORDING)
    await page.go("/")
    await page.sees("Queue as 00", ".needs")
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/task-overview*", "requestStage": "Response"}])
    for task in tasks[:2]:  # so that there are too few rows, and all is read again
        await status(board, task["id"], "working", "Going on")
    await page.becomes(f"{_ASKED}.filter((each) => each === '/api/v2/task-overview').length >= 2")
    assert (await harness.carol.delete(f"/tasks/me/{tasks[2]['id']}")).status_code == 202
    await page.tab.until("!document.querySelector('.needs').innerText.includes('Queue as 02')")
    await page.tab.call("Fetch.disable")  # an answer of before the deletion
    await page.sees("Queue as 13", ".needs")
    assert "Queue as 02" not in await page.text(".needs")
    for task in tasks[3:]:
        await status(board, task["id"], "working", "Going on")
    assert page.tab.errors == []


async def test_what_needs_a_person_stays_however_much_else_changes(board: Board) -> None:
    """Home keeps a bounded number of tasks, and those that wait for somebody are not what it forgets."""
    harness = board.harness
    task = await harness.create(harness.carol, display_name="Waits for long")
    await harness.worker.make_active(uuid.UUID(task["id"]))
    await status(board, task["id"], "idle", "Still here?")
    page = await board.open("/", "carol")
    await page.sees("Still here?", ".needs")
    new = [{"template_version_id": str(VERSION), "input": f"Number {number}"} for number in range(450)]
    created = await harness.carol.post("/task-batches", json={"tasks": new})
    assert created.json()["created"] == len(new)
    await page.tab.until(f"document.querySelector('.totals a[href$=\"status:pending\"] b').innerText === '{len(new)}'")
    assert "Still here?" in await page.text(".needs")
    assert page.tab.errors == []


async def test_every_tab_counts_what_home_counts(board: Board) -> None:
    """A tab that was opened on another page knows what had ended badly before, too, and counts down.

    Tasks are counted, however much they ask, also those whose agent waits and is not well.
    """
    harness = board.harness
    ids = []
    for name in ("Bad 0", "Bad 1", "Unwell", "Asks twice"):
        task = await harness.create(harness.carol, display_name=name)
        ids.append(uuid.UUID(task["id"]))
        await harness.worker.make_active(ids[-1])
    for task_id, state in zip(ids, ("failed", "failed", "idle"), strict=False):
        await status(board, str(task_id), state, "No way")
    await harness.worker.report(make_report("agent.lifecycle", ids[2], lifecycle="start_error", build_number=1))
    for title in ("This?", "And that?"):
        await asked(harness, ids[3], title=title)
    page = await board.open("/", "carol")
    await page.sees("And that?", ".needs")
    await page.sees("No way", f".need[data-id='{ids[2]}']")
    await page.tab.until(READY)
    needs = int((await page.text("h1")).split()[0])
    assert needs >= 4
    assert await page.tab.evaluate("document.querySelectorAll('.need').length") == needs + 1
    await page.tab.until(f"document.title.startsWith('({needs}) ')")
    other = await board.open("/fleet", "carol")
    await other.tab.until(f"document.title.startsWith('({needs}) ')")
    await page.go("/tasks")
    await page.tab.until(f"document.title.startsWith('({needs}) ')")
    await status(board, str(ids[0]), "working", "Again")
    await page.tab.until(f"document.title.startsWith('({needs - 1}) ')")
    assert page.tab.errors == other.tab.errors == []


_HIDING = """
    let isHidden = false;
    Object.defineProperty(document, "hidden", { get: () => isHidden });
    window.hide = () => { isHidden = true; document.dispatchEvent(new Event("visibilitychange")); };
    const real = window.setTimeout;
    window.setTimeout = (run, ms, ...rest) => real(run, ms === 30_000 ? 300 : ms, ...rest);
"""
"""Lets a page believe that its tab is hidden, and look for what needs a person more often."""


async def test_a_hidden_tab_says_what_needs_a_person(board: Board) -> None:
    """The title goes on to count: that is what somebody sees of a tab in the background."""
    harness = board.harness
    first, second = await harness.active(display_name="Quiet"), await harness.active(display_name="Loud")
    page = await board.open("/")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_HIDING)
    await page.go("/")
    await page.tab.until(READY)
    before = int(await page.tab.evaluate("document.title.match(/^[(]([0-9]+)[)] /)?.[1] ?? 0"))
    await page.tab.evaluate("hide()")
    await status(board, first["id"], "idle", "Which way?")
    await page.tab.until(f"document.title.startsWith('({before + 1}) ')")
    await status(board, second["id"], "failed", "No way")
    await page.tab.until(f"document.title.startsWith('({before + 2}) ')")
    await page.tab.until("document.querySelector('#favicon').href.endsWith('/icon-needs.svg')")
    assert page.tab.errors == []


async def test_paused_tasks_have_a_number_and_their_list(board: Board) -> None:
    """Each number of the totals leads to the tasks that it counts, those that somebody has paused too."""
    task = await board.harness.active(name="set-aside", display_name="Set aside")
    page = await board.open("/")
    paused = "document.querySelector('.totals a[href$=\"status:paused\"]')?.innerText"
    await page.tab.until(f"{paused}?.endsWith('paused')")
    before = int((await page.tab.evaluate(paused)).split()[0])
    assert (await board.harness.alice.post(f"/tasks/me/{task['id']}/pause")).status_code == 202
    await board.harness.worker.report(build_report(uuid.UUID(task["id"]), 2, "stop", "succeeded"))
    await page.tab.until(f"{paused}.startsWith('{before + 1}')")
    await page.click(".totals a[href$='status:paused']")
    await page.tab.until("location.pathname === '/tasks'")
    await page.sees("Set aside", "tbody")
    assert page.tab.errors == []


async def test_home_reads_everything_again_after_changes_were_missed(board: Board) -> None:
    """When the API cannot tell what has changed, what is gone goes and what came comes, except under the pointer."""
    harness = board.harness
    gone, kept = await harness.active(display_name="Gone meanwhile"), await harness.active(display_name="Waits still")
    for task in (gone, kept):
        await status(board, task["id"], "idle", f"Was {task['display_name']}")
    page = await board.open("/")
    for task in (gone, kept):
        await page.sees(f"Was {task['display_name']}", ".needs")
    pointed = f".need[data-id='{kept['id']}']"
    await page.point(pointed)
    place = f"document.querySelector({json.dumps(pointed)}).getBoundingClientRect().y"
    before = await page.tab.evaluate(place)
    await page.stop_following()
    await harness.alice.delete(f"/tasks/me/{gone['id']}")
    new = await harness.active(display_name="Came meanwhile")
    await status(board, new["id"], "idle", "Was not there")
    await harness.worker.until(lambda: harness.worker.state(uuid.UUID(new["id"])).get("state") == "idle")
    await page.follow_after_the_history_was_pruned()
    running = await harness.active(display_name="Runs now")
    await status(board, running["id"], "working", "Shown by the stream")
    await page.tab.until("document.title.startsWith('(')")
    assert await page.tab.evaluate(place) == before
    await page.point(".brand")
    await page.sees("Was not there", ".needs")
    await page.sees("Shown by the stream", "section[aria-labelledby=running]")
    assert "Gone meanwhile" not in await page.text("#main")
    assert page.tab.errors == []
