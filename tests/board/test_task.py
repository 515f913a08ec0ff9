"""The page of a task in a real browser: the conversation as it happens, what people do, and how it ended."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import Board, Page
from tests.harness.conversation import CONVERSATION, converse, said, tool
from tests.harness.worker import bring_to_status, build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HOSTILE = "<img src=x onerror=alert(1)> <b>bold</b> `code` </script><script>alert(2)</script>"
READY = "document.querySelector('.page.task[data-ready]')"
PLACEHOLDER = "document.querySelector('.composer textarea').placeholder"
MAX_KEPT = 600
"""As in ``static/task/log.js``."""


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


async def test_everything_can_be_done_with_the_keyboard(board: Board) -> None:
    """Send, pause, edit the prompt, resume and delete by keys; what destroys something asks first."""
    harness = board.harness
    task = await harness.active(name="keyboard", display_name="Only keys")
    task_id = uuid.UUID(task["id"])
    await status(board, task["id"], "working", "Typing")
    page = await open_task(board, "keyboard")
    tab = page.tab
    await tab.press("m")
    await tab.until("document.activeElement.name === 'input'")
    await tab.type("Mind the tests")
    await page.sees("Queued", ".toast")
    await page.sees("Mind the tests", ".said.queued")
    await page.sees("alice sent an input", ".timeline")
    await tab.press("Escape")
    await tab.press("e", "p")  # e does nothing: only the prompt of a paused task can be changed
    await tab.until("document.querySelector('dialog[open]')")
    await page.sees("Pause Only keys?", "dialog")
    assert "Edit the prompt" not in await tab.evaluate("document.querySelector('.task-actions').textContent")
    await tab.press("Escape")
    await tab.until("!document.querySelector('dialog')")
    assert (await harness.get("keyboard"))["status"] == "active"
    await tab.press("p")
    await page.sees("Pause Only keys?", "dialog")
    await tab.press("Enter")
    await harness.worker.until(lambda: harness.worker.document(task_id).get("workspace_build_number") == 2)
    await harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await page.sees("paused", ".task-title .state")
    await tab.press("e")
    await tab.until("document.activeElement?.name === 'text'")
    await tab.call("Input.insertText", text=" And be quick.")
    await tab.press("Enter", ctrl=True)
    await page.sees("The prompt was changed.", ".toast")
    assert (await harness.get("keyboard"))["initial_prompt"].endswith("And be quick.")
    await page.sees("Resume", ".task-actions")
    await tab.press("r")
    await page.sees("queued", ".task-title .state")
    await tab.press("#")
    await page.sees("Delete Only keys?", "dialog")
    await tab.press("Enter")  # the focus is not on what destroys
    await tab.until("!document.querySelector('dialog')")
    await harness.get("keyboard")
    await tab.press("#")
    await tab.until("document.querySelector('dialog')")
    await tab.until("[...document.querySelectorAll('dialog button')].some((each) => each.matches('.danger'))")
    while await tab.evaluate("!document.activeElement.matches('.danger')"):
        await tab.press("Tab")
    await tab.press("Enter")
    await tab.until("location.pathname === '/tasks'")
    assert (await harness.alice.get("/tasks/me/keyboard")).status_code == 404
    assert tab.errors == []


async def test_a_message_is_taken_only_where_an_agent_gets_it(board: Board) -> None:
    """Steering is offered while the agent works; one that has ended gets nothing, and the text stays in the field."""
    harness = board.harness
    task = await harness.active(name="to-tell", display_name="To tell")
    task_id = uuid.UUID(task["id"])
    await status(board, task["id"], "working", "Listening")
    page = await open_task(board, "to-tell")
    await page.sees("steer now", ".composer-keys")
    await status(board, task["id"], "complete", "Heard")
    await page.tab.until("!document.querySelector('.composer-keys').innerText.includes('steer')")
    assert await page.tab.evaluate(PLACEHOLDER) == "Say something to the agent…"
    await harness.worker.report(make_report("agent.exit", task_id, why="exited", status=0, build_number=1))
    await page.tab.until(f"{PLACEHOLDER} === 'Its agent has ended: resume the task to say something'")
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.insert("Once more")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Its agent has ended. Resume the task, then send this.", ".toast")
    assert await page.tab.evaluate("document.activeElement.value") == "Once more"
    assert (await harness.alice.get("/tasks/me/to-tell/explain")).json()["inbox"] == []
    await page.click(".task-actions button", "Resume")
    await harness.worker.make_active(task_id, 2)
    await page.tab.until(f"{PLACEHOLDER} === 'Say something to the agent…'")
    await page.click(".composer button", "Send")
    await page.sees("Once more", ".said.queued")
    await harness.worker.report(make_report("agent.exit", task_id, why="interrupted", build_number=2))
    await page.tab.until(f"{PLACEHOLDER} === 'Its agent was interrupted: a message waits until the task is resumed'")
    assert page.tab.errors == []


async def test_only_what_the_api_accepts_is_offered(board: Board) -> None:
    """Before a build has ended there is neither pause nor resume; an agent that takes no messages can be paused."""
    harness = board.harness
    task_id = uuid.UUID((await harness.create(name="offered", display_name="Offered"))["id"])
    page = await open_task(board, "offered")
    not_ready = "Its agent is not ready yet: say something once it is ready"
    assert await offered(page) == []
    assert await page.tab.evaluate(PLACEHOLDER) == not_ready
    await page.tab.press("p", "m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.type("Too early")
    await page.sees("Send this once it is ready.", ".toast")
    assert await page.tab.evaluate("document.activeElement.value") == "Too early"
    assert (await harness.get("offered"))["workspace_build_number"] == 1
    await harness.worker.report(build_report(task_id, 1, "start", "failed", error="No space left"))
    await page.tab.until(f"{PLACEHOLDER} === 'Its last build failed: resume the task to say something'")
    await page.sees("Resume", ".task-actions")
    assert await offered(page) == ["Resume"]
    assert (await harness.alice.post("/tasks/me/offered/resume")).status_code == 202
    await page.tab.until(f"{PLACEHOLDER} === {json.dumps(not_ready)}")
    await harness.worker.make_active(task_id, 2)
    await page.tab.until(f"{PLACEHOLDER} === 'Say something to the agent…'")
    await harness.worker.report(make_report("app.health", task_id, health="unhealthy", build_number=2))
    await page.tab.until(f"{PLACEHOLDER} === 'Its agent takes no messages now'")
    assert await offered(page) == ["Pause"]
    document = json.dumps(await harness.get("offered"))
    assert (
        await with_module(page, "state.js", f"module.canResume({document})") is False
    )  # so that Home does not offer it
    assert (await harness.alice.post("/tasks/me/offered/resume")).status_code == 409
    await page.click(".task-actions button", "Pause")
    await page.sees("Pausing…", ".toast")
    await page.tab.until(f"{PLACEHOLDER} === 'It is being stopped: nothing can be said now'")
    assert page.tab.errors == []


async def offered(page: Page) -> list[str]:
    """Return what the buttons for a task's state say."""
    found: list[str] = await page.tab.evaluate(
        "[...document.querySelectorAll('.task-actions > button')].map((each) => each.innerText)"
    )
    return found


SENDING = """window.sent = 0, window.real = fetch, window.held = new Promise((go) => (window.release = go));
window.fetch = async (...given) => {
    if (String(given[0]).endsWith('/send')) { sent += 1; await held; }
    return real(...given);
}, 0"""
"""Holds messages back until ``release`` is called, and counts them in ``sent``."""


async def test_a_message_is_sent_once(board: Board) -> None:
    """Enter that is pressed twice, or held down, sends what is written once; on a phone Enter begins a line."""
    task_id = (await board.harness.active(name="once-only", display_name="Once only"))["id"]
    await status(board, task_id, "idle", "Ready")
    page = await open_task(board, "once-only")
    await page.tab.evaluate(SENDING)
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.insert("Only this once")
    held = {"key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r", "autoRepeat": True}
    await page.tab.call("Input.dispatchKeyEvent", type="keyDown", **held)
    assert await page.tab.evaluate("sent") == 0
    await page.tab.press("Enter", "Enter")
    await page.tab.until("document.querySelector('.composer[data-busy]')")
    await page.click(".composer button", "Send")
    assert await page.tab.evaluate("sent") == 1
    await page.tab.evaluate("release(), 0")
    await page.tab.until("document.querySelector('.composer textarea').value === ''")
    explained = (await board.harness.alice.get("/tasks/me/once-only/events")).json()
    assert [each["input"] for each in explained["actions"]] == ["Only this once"]
    await page.tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    await page.tab.resize(390, 844, mobile=True)
    await page.tab.until("matchMedia('(hover: none) and (pointer: coarse)').matches")
    await page.tab.insert("One line")
    await page.tab.press("Enter")
    await page.tab.insert("and another")
    assert await page.tab.evaluate("document.querySelector('.composer textarea').value") == "One line\nand another"
    assert await page.tab.evaluate("sent") == 1
    await page.click(".composer button", "Send")
    await page.tab.until("sent === 2 && document.querySelector('.composer textarea').value === ''")
    assert page.tab.errors == []


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


async def test_what_the_page_shows_can_be_had_elsewhere(board: Board) -> None:
    """Each part has its raw JSON, its curl and its command: what is asked, the time, builds and their logs."""
    task_id = uuid.UUID((await board.harness.active(name="sources", display_name="Sources"))["id"])
    report = {"request_id": str(uuid.uuid4()), "kind": "question", "title": "Which?", "state": "open"}
    await board.harness.worker.report(make_report("agent.request", task_id, build_number=1, **report))
    page = await open_task(board, "sources")
    await page.sees("Which?", ".agent-asks")
    await page.click(".builds summary", "Start 1")
    await page.sees("The workspace is running.", ".build-log")
    shown = {
        "What it asks": ("taskherd requests --query 'owner:alice name:sources'", "/tasks/alice/sources/requests"),
        "Time": ("taskherd task events alice/sources", "/tasks/alice/sources/durations"),
        "Starts and stops": ("taskherd task events alice/sources", f"/workspaces/{task_id}/builds"),
        "Start 1, log": ("/workspacebuilds/",),
    }
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


HOLDING_LOGS = """window.held = new Promise((go) => (window.release = go)), window.real = fetch;
window.fetch = async (...given) => {
    if (String(given[0]).includes('/workspacebuilds/')) await held;
    return real(...given);
}, 0"""
"""Holds the logs of builds back until ``release`` is called."""


async def test_interrupt_link_and_copies(board: Board) -> None:
    """`i` and the button interrupt an agent that works, `o` opens its link elsewhere, and a command can be copied."""
    harness = board.harness
    for name in ("by-key", "by-button"):
        task_id = (await harness.active(name=name, display_name=f"Interrupted {name}"))["id"]
        await status(board, task_id, "working", "Busy", uri="https://github.com/acme/app/pull/9")
    page = await open_task(board, "by-key")
    await page.sees("Interrupt", ".task-actions")
    await page.tab.press("i")
    await page.sees("interrupting", ".task-title .state")
    page = await open_task(board, "by-button")
    await page.click(".task-actions button", "Interrupt")
    await page.sees("interrupting", ".task-title .state")
    for name in ("by-key", "by-button"):
        assert (await harness.get(name))["interrupt"] is not None
    await page.tab.evaluate("window.open = (...given) => (window.opened = given, null), 0")
    await page.tab.press("o")
    opened = ["https://github.com/acme/app/pull/9", "_blank", "noopener,noreferrer"]
    assert await page.tab.evaluate("window.opened") == opened
    copying = "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: {writeText: async (text) => {"
    await page.tab.evaluate(f"{copying} window.copied = text; }}}}}}), 0")
    await page.tab.press("y")
    await page.click("dialog .command button", "Copy")
    await page.sees("Copied", "dialog .command")
    assert await page.tab.evaluate("copied") == "taskherd task show alice/by-button"
    await page.tab.evaluate(f"{copying} throw new Error('not allowed'); }}}}}}), 0")
    await page.click("dialog .command button", "Copy")
    await page.tab.until("getSelection().toString().includes('taskherd task watch alice/by-button')")
    assert page.tab.errors == []


async def test_keys_that_can_do_nothing_say_why(board: Board) -> None:
    """Each names its reason, instead of leaving open whether it was pressed; screen readers hear a new state."""
    task_id = uuid.UUID((await board.harness.create(name="idle-keys", display_name="Idle keys"))["id"])
    page = await open_task(board, "idle-keys")
    reasons = {
        "p": "Its workspace is being started or stopped",
        "r": "Its workspace is being started or stopped",
        "i": "There is nothing to interrupt",
        "e": "The prompt can be edited while the task is paused.",
        "o": "It has named no pull request",
        "a": "It asks nothing now.",
    }
    for key, reason in reasons.items():
        await page.tab.press(key)
        await page.sees(reason, ".toast")
    await board.harness.worker.make_active(task_id)
    await status(board, str(task_id), "working", "Typing")
    await page.tab.until("document.getElementById('live').textContent === 'working: Typing'")
    await page.tab.until("document.querySelector('.log').getAttribute('aria-live') === 'polite'")
    await page.tab.press("r")
    await page.sees("Its agent runs already.", ".toast")
    assert page.tab.errors == []


async def test_a_prompt_that_is_refused_is_not_lost(board: Board) -> None:
    """The dialog is there again with the reason and what was written, until it is saved or given up."""
    harness = board.harness
    task_id = await bring_to_status(harness.worker, "paused", uuid.UUID((await harness.create(name="edit-me"))["id"]))
    page = await open_task(board, "edit-me")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/input"])
    await page.tab.press("e")
    await page.tab.until("document.activeElement?.name === 'text'")
    await page.tab.insert(" Written with care")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("The server cannot be reached.", "dialog .problem")
    assert await page.violations() == []
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.tab.until("document.activeElement?.value?.endsWith('Written with care')")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("The prompt was changed.", ".toast")
    assert (await harness.get(str(task_id)))["initial_prompt"].endswith("Written with care")
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
        const spans = [['working', 900, 600], ['idle', 600, 500], ['working', 500, 0]].map(([state, from, to]) => (
            {state, since: at(from), until: to ? at(to) : null}));
        const totals = [{state: 'working', seconds: 700}, {state: 'idle', seconds: 100}];
        const root = document.createElement('div');
        render(module.spentView({since: at(900), now: at(100), totals, spans}), root);
        return root.textContent;
    })()"""
    text = await with_module(page, "task/spent.js", shown)
    assert "In 15 min" in text
    assert "13 min working" in text
    assert "1 min idle" in text
    assert page.tab.errors == []


async def test_the_timeline_says_in_plain_words_what_happened(board: Board) -> None:
    """Who did what to what; the type of the message and the state of an input are there for who looks closer."""
    task_id = uuid.UUID((await board.harness.create(name="plainly", display_name="Plainly told"))["id"])
    page = await open_task(board, "plainly")
    await page.sees("to start, asked 1 time", ".side")
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
    await page.tab.until(f"{scroll_up} || document.querySelector('.log').innerText.includes('Line 0 of')")
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
        const shown = new module.Conversation(root, {{path: '/none', signal, onRead() {{}}}});
        shown.receive({{logs: {many}, truncated: false}}); scrollTo(0, 0);
        shown.receive({{logs: [entry(1800)], truncated: true}});
        return [shown.arrived, root.querySelector('.newer')?.innerText, root.innerText.includes('1800')]; }})()"""
    newer = "1 newer entry · go to the end"
    assert await with_module(page, "task/conversation.js", gap) == [None, newer, False]
    assert page.tab.errors == []


async def converse_more(board: Board, task: uuid.UUID, number: int, text: str) -> None:
    """Report one more entry."""
    entry = {"id": number, "time": "2030-01-02T03:04:05Z", **said(text)}
    await board.harness.worker.report(make_report("task.log", task, build_number=1, seq=number, entries=[entry]))


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
