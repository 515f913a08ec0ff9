"""The page of a task in a real browser: the conversation as it happens, what people do, and how it ended."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import Board, Page
from tests.harness.conversation import CONVERSATION, converse, said, tool
from tests.harness.worker import build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HOSTILE = "<img src=x onerror=alert(1)> <b>bold</b> `code` </script><script>alert(2)</script>"
READY = "document.querySelector('.page.task[data-ready]')"
PLACEHOLDER = "document.querySelector('.composer textarea').placeholder"


async def open_task(board: Board, task: str, user: str = "alice", owner: str = "alice") -> Page:
    """Open the page of a task and wait until all of it was read."""
    page = await board.open(f"/tasks/{owner}/{task}", user)
    await page.tab.resize(1280, 900)
    await page.tab.until(READY)
    return page


async def prefer(page: Page, scheme: str) -> None:
    """Make the page believe that the person prefers these colours, and no motion: what moves has no contrast yet."""
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    await page.tab.call("Emulation.setEmulatedMedia", features=features)


async def with_module(page: Page, path: str, expression: str) -> Any:
    """Return the value of an expression about a module of the board, which it calls ``module``."""
    assets = "document.querySelector('link[href$=\"task.css\"]').href"
    return await page.tab.evaluate(f"import(new URL({json.dumps(path)}, {assets})).then((module) => {expression})")


async def status(board: Board, task: str, state: str, message: str = "", **fields: Any) -> None:
    """Report what an agent says."""
    report = make_report(
        "app.status", uuid.UUID(task), state=state, message=message, **{"uri": "", "build_number": 1, **fields}
    )
    await board.harness.worker.report(report)


async def test_a_build_that_is_canceled_has_not_failed_by_itself(board: Board) -> None:
    """The page says that a build is being canceled, and then that it was."""
    task_id = uuid.UUID((await board.harness.create(name="canceled", display_name="Canceled"))["id"])
    page = await open_task(board, "canceled")
    await board.harness.worker.report(build_report(task_id, 1, "start", "canceling"))
    await page.sees("Its build is being canceled", ".now")
    assert (await page.text(".task-title .state")).startswith("canceling")
    await board.harness.worker.report(build_report(task_id, 1, "start", "canceled"))
    await page.sees("Its build was canceled", ".now")
    assert page.tab.errors == []


async def test_the_page_follows_its_task(board: Board) -> None:
    """State, conversation, timeline and actions follow the reports, without anybody touching the page."""
    harness = board.harness
    task = await harness.active(name="follow-me", display_name="Mend the build")
    page = await open_task(board, "follow-me")
    await page.sees("Nothing has been said yet.")
    await status(board, task["id"], "working", "Reading the code", uri="https://github.com/acme/app/pull/7")
    await page.sees("Reading the code", ".now")
    await page.sees("working", ".task-title .state")
    await page.sees("acme/app#7", ".task-title .pill")
    await page.sees("“Reading the code”", ".timeline")
    await page.sees("Interrupt", ".task-actions")
    running = tool("make test", "execute", status="in_progress")
    await converse(harness, uuid.UUID(task["id"]), (said("I'll run the tests."), running))
    await page.sees("I'll run the tests.", ".log")
    await page.tab.until("document.querySelector('.log .mark.busy')")
    entry = {"id": 1, "time": "2026-01-02T03:04:05Z", **tool("make test", "execute", "14 passed in 3.1 s")}
    await harness.worker.report(make_report("task.log", uuid.UUID(task["id"]), build_number=1, seq=2, entries=[entry]))
    await page.sees("14 passed in 3.1 s", ".log")
    await page.tab.until("!document.querySelector('.log .mark.busy')")
    assert await page.tab.evaluate("document.querySelectorAll('.log .entry').length") == 2
    assert "Mend the build" in await page.tab.evaluate("document.title")
    await page.tab.call("Page.reload")
    await page.tab.until(f"{READY} && document.querySelector('.log').innerText.includes('14 passed')")
    assert page.tab.errors == []


async def test_what_agents_and_people_write_stays_text(board: Board) -> None:
    """Nothing that comes from outside becomes an element, a link that runs a script, or a style of the page."""
    harness = board.harness
    task = await harness.active(name="hostile", display_name=HOSTILE[:64], input=f"Prompt {HOSTILE}")
    task_id = uuid.UUID(task["id"])
    await status(board, task["id"], "working", f"Message {HOSTILE}", uri="javascript:alert(1)")
    edit = tool(
        f"Title {HOSTILE}",
        "edit",
        f"Text {HOSTILE}",
        diff={"path": HOSTILE, "old": HOSTILE, "new": f"{HOSTILE}\n{HOSTILE}"},
    )
    plan = {
        **said(HOSTILE, "plan"),
        "data": {"entries": [{"content": f"Step {HOSTILE}", "status": HOSTILE, "priority": "low"}]},
    }
    places = tool(HOSTILE, HOSTILE, HOSTILE, locations=[{"path": HOSTILE, "line": 3}], also_changes=[HOSTILE])
    fenced = said(f"Said {HOSTILE}\n```html\n{HOSTILE}\n```\n[x](javascript:alert(3)) **{HOSTILE}**")
    entries = ({"type": "input", "content": f"Input {HOSTILE}"}, fenced, said(HOSTILE, "thought"))
    await converse(harness, task_id, (*entries, edit, plan, places, said(HOSTILE, "notice")))
    assert (await harness.carol.post(f"/tasks/alice/{task_id}/send", json={"input": HOSTILE})).status_code == 204
    await harness.worker.report(
        make_report("agent.exit", task_id, why="exited", status=3, words=f"Words {HOSTILE}", build_number=1)
    )
    page = await open_task(board, "hostile")
    await page.sees("Exited with status 3", ".ended")
    await page.tab.press("x")
    await page.tab.until("document.querySelectorAll('.log details.tool[open] .diff').length === 1")
    for text in ("Said", "Input", "Title", "Text", "Step", "Words"):
        await page.sees(f"{text} <img src=x onerror=alert(1)>")
    made = "#main :is(img, script, iframe, style, object), #main b:not(.timeline b, .prose b)"
    assert await page.tab.evaluate(f"document.querySelectorAll({json.dumps(made)}).length") == 0
    assert await page.tab.evaluate("[...document.querySelectorAll('a')].every((a) => /^https?:/.test(a.href))")
    assert await page.tab.evaluate("document.querySelector('.prose b').textContent") == HOSTILE
    await page.tab.press("y")
    await page.sees("onerror=alert(1)", "dialog .raw")
    assert await page.tab.evaluate("document.querySelectorAll('dialog :is(img, script)').length") == 0
    assert page.tab.errors == []


async def offered(page: Page) -> list[str]:
    """Return what the buttons for a task's state say."""
    found: list[str] = await page.tab.evaluate(
        "[...document.querySelectorAll('.task-actions > button')].map((each) => each.innerText)"
    )
    return found


async def test_what_could_not_be_read_is_read_again(board: Board) -> None:
    """The page becomes whole by itself, without any change of its task, when it begins and later."""
    harness = board.harness
    task_id = uuid.UUID((await harness.active(name="outage", display_name="Outage"))["id"])
    await status(board, str(task_id), "idle", "Before it")
    page = await board.open("/new")
    await page.tab.resize(1280, 900)
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/explain", "*/durations"])
    await page.go("/tasks/alice/outage")
    await page.sees("Before it", ".now")
    await page.sees("The agent is ready", ".timeline")
    assert not await page.tab.evaluate(f"{READY} !== null")
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.tab.until(READY)
    await page.sees("In ", ".side")
    await page.tab.call("Network.setBlockedURLs", urls=["*/explain"])
    await harness.worker.report(make_report("agent.exit", task_id, why="exited", status=3, build_number=1))
    await page.sees("Exited with status 3", ".ended")
    await page.sees("exited", ".timeline")
    assert await offered(page) == ["Pause"]
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.tab.until("document.querySelector('.task-actions').innerText.includes('Resume')")
    assert page.tab.errors == []


async def test_a_task_that_is_gone_stays_so(board: Board) -> None:
    """Its page says that it was deleted, follows nothing any more, and its shortcuts are gone with it."""
    await board.harness.active(name="to-go", display_name="To go")
    page = await open_task(board, "to-go")
    assert (await board.harness.alice.delete("/tasks/me/to-go")).status_code == 202
    await page.sees("The task was deleted.")
    await page.tab.press("p", "?")
    await page.sees("Everywhere", "dialog")
    assert "This task" not in await page.text("dialog")
    assert "The task was deleted." in await page.text()
    assert "There is no such task" not in await page.text()
    assert page.tab.errors == []


async def test_a_page_stays_with_its_task_when_another_one_takes_the_name(board: Board) -> None:
    """It says that its own was deleted, also if it followed nothing meanwhile, and the other one gets no message."""
    harness = board.harness
    first = await harness.active(name="reused", display_name="The first")
    await status(board, first["id"], "idle", "Ready")
    page = await open_task(board, "reused")
    await page.stop_following()
    assert (await harness.alice.delete("/tasks/me/reused")).status_code == 202
    second = await harness.active(name="reused", display_name="The second")
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.type("For the first one")
    await page.sees("Resource not found", ".toast.bad")
    await page.follow_again()
    await page.sees("The task was deleted.")
    assert await page.tab.evaluate("document.querySelector('.composer')") is None
    assert (await harness.alice.get(f"/tasks/me/{second['id']}/events")).json()["actions"] == []
    assert "The second" not in await page.text()
    assert page.tab.errors == []


async def test_what_the_page_shows_can_be_had_elsewhere(board: Board) -> None:
    """Each part has its raw JSON, its curl and its command: what is asked, the time, builds and their logs."""
    task_id = uuid.UUID((await board.harness.active(name="sources", display_name="Sources"))["id"])
    report = {"request_id": str(uuid.uuid4()), "kind": "question", "title": "Which?", "state": "open"}
    await board.harness.worker.report(make_report("agent.request", task_id, build_number=1, **report))
    page = await open_task(board, "sources")
    shown = {
        "What it asks": ("taskherd task requests alice/sources", "/requests"),
        "Time": ("taskherd task durations alice/sources", "/durations"),
        "Starts and stops": ("taskherd task builds alice/sources", f"/workspaces/{task_id}/builds"),
        "Start 1, log": (
            "taskherd task builds alice/sources --log 1",
            "/workspacebuilds/",
            "/workspaceagents/",
            "Agent is r",
        ),
    }
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/watch?*"}])  # held until disabled
    await page.go(f"/tasks/alice/{task_id}")  # commands have the name, also where the address has the id
    await page.tab.until("document.title.startsWith('Task ·')")
    await page.tab.call("Fetch.disable")
    await page.tab.until("document.title.includes('Sources')")
    await page.sees("Which?", ".agent-asks")
    await page.click(".builds summary", "Start 1")
    await page.sees("The workspace is running.", ".build-log")
    for name, texts in shown.items():
        await page.tab.evaluate(f"document.querySelector('[aria-label=\"Commands and raw JSON: {name}\"]').click()")
        await page.tab.until("document.querySelector('dialog .raw')")
        for text in texts:
            await page.sees(text, "dialog")
        await page.tab.press("Escape")
        await page.tab.until("!document.querySelector('dialog')")
    assert page.tab.errors == []


async def test_the_log_of_a_build_goes_on(board: Board) -> None:
    """What is unfolded follows its build; what cannot be read says so, and is read with the next change."""
    harness = board.harness
    task_id = uuid.UUID((await harness.create(name="follows", display_name="Follows"))["id"])
    await harness.worker.report(build_report(task_id, 1, "start", "running", runner="r1"))
    page = await open_task(board, "follows")
    await page.tab.until("document.querySelector('.builds')?.innerText.includes('running')")
    await page.tab.evaluate(HOLDING_LOGS)
    await page.click(".builds summary", "Start 1")
    await page.sees("Reading its log…", ".builds")
    await page.tab.evaluate("release(), 0")
    await page.tab.until("document.querySelector('.build-log, .builds details p')?.innerText !== 'Reading its log…'")
    assert "The workspace is running." not in await page.text(".builds")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/workspaceagents/*"])
    await harness.worker.make_active(task_id)
    await page.sees("The workspace is running.", ".build-log")
    await page.sees("The server cannot be reached.", ".builds .problem")
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await status(board, str(task_id), "idle", "Here")
    await page.sees("Agent is ready", ".build-log")
    await page.tab.until("!document.querySelector('.builds .problem')")
    lines = (await page.text(".build-log")).splitlines()
    assert len(lines) == len(set(lines))
    assert page.tab.errors == []


async def test_an_unfolded_log_stays_with_its_build(board: Board) -> None:
    """When another build begins, the log that somebody reads neither moves to it nor folds."""
    harness = board.harness
    task_id = uuid.UUID((await harness.active(name="two-builds", display_name="Two builds"))["id"])
    page = await open_task(board, "two-builds")
    await page.click(".builds summary", "Start 1")
    await page.sees("The workspace is running.", ".build-log")
    await harness.worker.report(build_report(task_id, 2, "stop", "running", runner="r1"))
    await page.sees("Stop 2", ".builds")
    opened = "[...document.querySelectorAll('.builds details')].map((each) => [each.open, each.innerText.slice(0, 7)])"
    assert await page.tab.evaluate(opened) == [[False, "Stop 2\n"], [True, "Start 1"]]
    await page.sees("The workspace is running.", ".builds li:last-child .build-log")
    assert page.tab.errors == []


HOLDING_LOGS = """window.held = new Promise((go) => (window.release = go)), window.real = fetch;
window.fetch = async (...given) => {
    if (String(given[0]).includes('/workspacebuilds/')) await held;
    return real(...given);
}, 0"""
"""Holds the logs of builds back until ``release`` is called."""


async def test_the_time_in_each_state_is_read_when_the_state_changes(board: Board) -> None:
    """For it the API goes through thousands of changes: what an agent says meanwhile does not make a page read it."""
    task = await board.harness.active(name="chatty", display_name="Chatty")
    path = f"/tasks/{task['owner_id']}/{task['id']}/durations"
    await status(board, task["id"], "working", "Step 0")
    page = await open_task(board, "chatty")
    await page.sees("working", ".legend")
    read = await page.reads(path)
    assert read
    for step in range(1, 4):
        await status(board, task["id"], "working", f"Step {step}")
        await page.sees(f"Step {step}", ".timeline")
    assert await page.reads(path) == read
    await status(board, task["id"], "idle", "Your turn")
    await page.sees("idle", ".legend")
    assert page.tab.errors == []


async def test_the_exact_time_is_there_for_who_looks_closer(board: Board) -> None:
    """Times get their title only when the pointer or the focus reaches them: formatting all of a page takes long."""
    task = await board.harness.active(name="timed", display_name="On time")
    await status(board, task["id"], "working", "Counting")
    page = await open_task(board, "timed")
    await page.tab.until("document.querySelector('.builds summary time-ago') && document.querySelector('.age')")
    assert await page.tab.evaluate("document.querySelectorAll('time-ago[title]').length") == 0
    exact = "(each) => /20[0-9]{2}/.test(document.querySelector(each + ' time-ago').title)"
    await page.tab.resize(1280, 2_000)  # all of the page
    await page.point(".task-title time-ago")
    await page.tab.until(f"({exact})('.task-title')")
    await page.tab.evaluate("document.querySelector('.builds summary').focus()")
    await page.tab.until(f"({exact})('.builds')")
    assert await page.tab.evaluate("document.querySelectorAll('time-ago[title]').length") == 2
    assert page.tab.errors == []


async def test_what_is_in_titles_is_there_for_a_finger_too(board: Board) -> None:
    """The parts of the usage are shown, and a tap on a time shows the exact one; a silent machine has its name."""
    harness = board.harness
    task_id = uuid.UUID((await harness.active(name="fingers", display_name="Fingers"))["id"])
    used = {
        "input_tokens": 1_200,
        "output_tokens": 300,
        "cache_read_tokens": 50,
        "cost": {"amount": "0.1", "currency": "USD"},
    }
    await harness.worker.report(make_report("agent.usage", task_id, build_number=1, **used))
    await status(board, str(task_id), "working", "Tapping")
    page = await open_task(board, "fingers")
    await page.sees("1.2K in, 300 out, 50 cached", ".facts")
    await page.sees("ago", ".facts")
    await page.tab.evaluate("[...document.querySelectorAll('.facts time-ago')].forEach((each) => each.click())")
    await page.tab.until(
        "[...document.querySelectorAll('.facts time-ago')].every((each) => /20[0-9]{2}/.test(each.innerText))"
    )
    await page.tab.evaluate("document.querySelector('.facts time-ago').click()")
    await page.tab.until("document.querySelector('.facts time-ago').innerText.includes('ago')")
    await harness.worker.report(make_report("agent.disconnected", task_id, build_number=1))
    await page.sees("Its machine, r1, is silent. Last: Tapping", ".now")
    assert page.tab.errors == []


async def test_the_bar_of_time_goes_on(board: Board) -> None:
    """Between two reads the state that goes on grows as the whole does, also if the task was in it before."""
    await board.harness.active(name="grows", display_name="Grows")
    page = await open_task(board, "grows")
    shown = """(async () => {
        const at = (seconds) => new Date(Date.now() - 1000 * seconds).toISOString();
        const vendored = new URL('vendor/lit-html/lit-html.js', document.querySelector('link[href$="task.css"]').href);
        const { render } = await import(vendored);
        const spans = [['working', 930, 600], ['idle', 600, 500], ['working', 500, 0]].map(([state, from, to]) => (
            {state, since: at(from), until: to ? at(to) : null}));
        const totals = [{state: 'working', seconds: 700}, {state: 'idle', seconds: 100}];
        const root = document.createElement('div');
        render(module.spentView({since: at(930), now: at(100), totals, spans}), root);
        return root.textContent;
    })()"""
    text = await with_module(page, "task/spent.js", shown)
    assert "In 15 min" in text  # and some, since the page reads the server's clock
    assert "13 min working" in text
    assert "1 min idle" in text
    assert page.tab.errors == []


async def test_the_timeline_says_in_plain_words_what_happened(board: Board) -> None:
    """Who did what to what; the type of the message and the state of an input are there for who looks closer."""
    task_id = uuid.UUID((await board.harness.create(name="plainly", display_name="Plainly told"))["id"])
    page = await open_task(board, "plainly")
    await page.sees("to start, asked", ".side")  # it is asked again after five seconds
    assert await page.tab.evaluate("document.querySelector('.waiting-for span').title") == "workspace.start"
    await board.harness.worker.report(build_report(task_id, 1, "start", "succeeded", runner="r1"))
    await page.sees("Its workspace runs", ".timeline")
    await board.harness.worker.make_active(task_id)
    await page.sees("The agent is ready", ".timeline")
    assert "was reported" not in await page.text(".timeline")
    titled = (
        "[...document.querySelectorAll('.timeline b')].find((each) => each.innerText === 'Its workspace runs').title"
    )
    assert await page.tab.evaluate(titled) == "workspace.build"
    await page.tab.press("m")
    await page.tab.insert("Go on")
    await page.tab.press("Enter")
    await page.sees("alice sent an input", ".timeline")
    await page.tab.until("document.querySelector('.timeline .quote + p span').title === 'sent'")
    await page.sees("On its way to the agent", ".timeline")
    assert page.tab.errors == []


async def test_the_facts_lead_to_the_tasks_of_the_same_machine(board: Board) -> None:
    """Runner and pool are links to the lists that they select."""
    await board.harness.active(name="on-a-machine", display_name="On a machine")
    page = await open_task(board, "on-a-machine")
    for term, value in (("pool", "default"), ("runner", "r1")):
        address = f"/tasks?q={term}:{value}"
        await page.tab.until(f"document.querySelector('.facts a[href={json.dumps(address)}]')?.innerText === '{value}'")
    await page.click(".facts a", "r1")
    await page.tab.until("location.search === '?q=runner:r1'")
    await page.sees("On a machine", "tbody")
    assert page.tab.errors == []


async def test_two_people_see_what_the_other_does(board: Board) -> None:
    """Who did what is told by name on both pages at once; a refusal says why, and a deleted task says so."""
    harness = board.harness
    task_id = uuid.UUID((await harness.active(name="shared", display_name="Ours"))["id"])
    alices, carols = await open_task(board, "shared"), await open_task(board, "shared", "carol")
    await harness.worker.report(make_report("agent.exit", task_id, why="exited", status=3, words="No space left"))
    for page in (alices, carols):
        await page.sees("Exited with status 3", ".ended")
        await page.sees("No space left", ".ended pre")
        await page.sees("Resume", ".task-actions")
        await page.sees("Resume the task", ".side")
    await carols.click(".task-actions button", "Resume")
    await alices.sees("carol resumed the task", ".timeline")
    await carols.sees("carol resumed the task", ".timeline")
    await harness.worker.make_active(task_id, 2)
    await alices.tab.until(
        "![...document.querySelectorAll('.task-actions button')].some((b) => b.innerText === 'Resume')"
    )
    await harness.worker.report(make_report("app.status", task_id, state="working", message="At it", build_number=2))
    await alices.sees("At it", ".now")
    assert (await harness.carol.post("/tasks/alice/shared/send", json={"input": "Mind the disk"})).status_code == 204
    await alices.sees("Mind the disk", ".conversation")  # which waits, as the agent is at work: no change of the task
    await alices.click(".builds summary", "Start 2")
    await alices.sees("The workspace is running.", ".build-log")
    await carols.tab.press("#")
    await carols.click("dialog button", "Delete")
    await alices.sees("The task was deleted.")
    await carols.tab.until("location.pathname === '/tasks'")
    unknown = await board.open("/tasks/alice/no-such-task")
    await unknown.sees("There is no such task, or you may not see it.")
    foreign = await board.open("/tasks/alice/follow-me", "mallory")
    await foreign.sees("There is no such task, or you may not see it.")
    for page in (alices, carols, unknown, foreign):
        assert page.tab.errors == []


async def test_the_page_is_usable_by_everybody(board: Board) -> None:
    """Axe finds nothing: light and dark, phone and 200 % zoom, with everything unfolded and a dialog open."""
    harness = board.harness
    task = await harness.active(name="usable", display_name="For everybody")
    await converse(harness, uuid.UUID(task["id"]), CONVERSATION)
    await status(board, task["id"], "working", "Pinning the clock", uri="https://github.com/acme/shop/pull/7")
    page = await open_task(board, "usable")
    await page.sees("All pass", ".log")
    await page.tab.press("x")
    await page.tab.until("document.querySelector('.diff')")
    for width, height, scale in ((1280, 900, 1), (390, 844, 2), (640, 450, 2)):
        await page.tab.resize(width, height, scale=scale)
        for scheme in ("light", "dark"):
            await prefer(page, scheme)
            assert await page.violations() == [], (width, scheme)
            assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
    await page.tab.press("y")
    await page.tab.until("document.querySelector('dialog .raw')")
    assert await page.violations() == []
    assert page.tab.errors == []


_IMPATIENT = """
    const real = AbortSignal.timeout.bind(AbortSignal);
    AbortSignal.timeout = (ms) => real(ms === 20_000 ? 500 : ms);
"""
"""Has a page give up an answer much sooner."""


async def test_an_answer_that_never_comes_does_not_freeze_a_page(board: Board) -> None:
    """What is beside the conversation is read without the answer that is lost, and that again; so is the fleet."""
    await board.harness.active(name="hangs")
    page = await board.open("/new")
    await page.tab.resize(1280, 900)
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_IMPATIENT)
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/explain"}])  # held until disabled
    await page.go("/tasks/alice/hangs")
    await page.tab.until("document.querySelector('.task-side')?.textContent.includes('Starts and stops')")
    assert await page.tab.evaluate(f"{READY} === null")
    await page.tab.call("Fetch.disable")
    await page.tab.until(READY)
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/api/v2/fleet"}])
    await page.go("/fleet")
    await page.tab.until("document.querySelector('#offline')?.hidden === false")
    await page.tab.call("Fetch.disable")
    await page.tab.until(
        "document.querySelector('.page.fleet[data-ready]') && document.querySelector('#offline').hidden"
    )
    assert page.tab.errors == []
