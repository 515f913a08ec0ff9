"""What people do on a task's page: what is offered, by button and key, and what becomes of what they write."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.board.pages import Board, Page
from tests.board.test_task import PLACEHOLDER, offered, open_task, status, with_module
from tests.harness.asking import approval
from tests.harness.worker import bring_to_status, build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start


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
    for composing in ("isComposing: true", "keyCode: 229"):  # Enter takes what an input method offers
        pressed = f"new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {composing}}})"
        assert await page.tab.evaluate(f"document.activeElement.dispatchEvent({pressed})")
    assert await page.tab.evaluate("sent") == 0
    await page.tab.press("Enter", "Enter")
    await page.tab.until("document.querySelector('.composer[data-busy]')")
    await page.sees("Sending…", ".composer button[aria-disabled=true]")
    assert await page.violations() == []
    await page.click(".composer button", "Send")
    assert await page.tab.evaluate("sent") == 1
    await page.tab.evaluate("release(), 0")
    await page.tab.until("document.querySelector('.composer textarea').value === ''")
    await page.tab.until("document.querySelector('.composer button:not([aria-disabled])').innerText === 'Send'")
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


PORTAL = """window.keys = [], window.real = fetch, window.between = true;
window.fetch = (path, options) => {
    const isMessage = String(path).endsWith('/send');
    if (isMessage) keys.push(options.headers['Idempotency-Key']);
    if (!isMessage || !between) return real(path, options);
    return Promise.resolve(new Response('<h1>Sign in</h1>', { headers: { 'Content-Type': 'text/html' } }));
}, 0"""
"""Answers messages with a proxy's page and status 200 while ``between`` is true, and keeps their keys in ``keys``."""


async def test_a_message_that_a_proxy_has_answered_is_not_lost(board: Board) -> None:
    """A page with status 200 that is not from the API is no success: what was written stays, and is sent once later."""
    task_id = (await board.harness.active(name="portal", display_name="Behind a portal"))["id"]
    await status(board, task_id, "idle", "Ready")
    page = await open_task(board, "portal")
    await page.tab.evaluate(PORTAL)
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.type("Through the portal")
    await page.sees("The answer is not from taskherd.", ".toast.bad")
    assert await page.tab.evaluate("document.querySelector('.composer textarea').value") == "Through the portal"
    draft = f"sessionStorage.getItem('taskherd-draft:alice:to/{task_id}')"
    assert await page.tab.evaluate(draft) == "Through the portal"
    await page.tab.evaluate("between = false")
    await page.tab.press("Enter")
    await page.tab.until("document.querySelector('.composer textarea').value === ''")
    keys = await page.tab.evaluate("keys")
    assert (len(keys), len(set(keys))) == (3, 1)  # each attempt without an answer of the API is repeated once
    actions = (await board.harness.alice.get("/tasks/me/portal/events")).json()["actions"]
    assert [each["input"] for each in actions] == ["Through the portal"]
    assert page.tab.errors == []


_IMPATIENT = """
    const within = AbortSignal.timeout.bind(AbortSignal);
    window.impatient = true;
    AbortSignal.timeout = (ms) => within(impatient && ms === 30_000 ? 300 : ms);
    const real = fetch; window.keys = [];
    window.fetch = (path, options) => {
        if (String(path).endsWith('/send')) keys.push(options.headers['Idempotency-Key']);
        return real(path, options);
    }
"""
"""Has a page give up the answer to a write much sooner while ``impatient``; the keys of messages are in ``keys``."""


async def test_an_answer_to_a_message_that_never_comes_is_given_up(board: Board) -> None:
    """The page says so, what was written stays, and it is sent with the same key."""
    task_id = (await board.harness.active(name="silent", display_name="No answer"))["id"]
    await status(board, task_id, "idle", "Ready")
    page = await board.open("/new")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_IMPATIENT)
    await page.go("/tasks/alice/silent")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/send"}])  # held until disabled
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.type("Into the silence")
    await page.sees("The server cannot be reached.", ".toast.bad")
    assert await page.tab.evaluate("document.querySelector('.composer textarea').value") == "Into the silence"
    await page.tab.evaluate("impatient = false")
    await page.tab.call("Fetch.disable")
    await page.tab.press("Enter")
    await page.tab.until("document.querySelector('.composer textarea').value === ''")
    keys = await page.tab.evaluate("keys")
    assert (len(keys), len(set(keys))) == (3, 1)  # each attempt without an answer is repeated once
    actions = (await board.harness.alice.get("/tasks/me/silent/events")).json()["actions"]
    assert [each["input"] for each in actions] == ["Into the silence"]
    assert page.tab.errors == []


POSITIONS = """window.real = fetch, window.named = [];
window.fetch = async (path, options) => {
    named.push([options.method, options.headers['X-Taskherd-LSN'] || '']);
    const response = await real(path, options);
    if (options.method === 'GET') return response;
    const headers = new Headers([...response.headers, ['X-Taskherd-LSN', '16/B374D848']]);
    return new Response(response.status === 204 ? null : response.body, { status: response.status, headers });
}, 0"""
"""Names a position in the responses to writes, and keeps those that requests name in ``named``."""


async def test_reads_after_a_write_name_its_position(board: Board) -> None:
    """Behind a load balancer, another API process whose standby is late would show what was before the write."""
    task_id = (await board.harness.active(name="positions", display_name="Positions"))["id"]
    await status(board, task_id, "idle", "Ready")
    page = await open_task(board, "positions")
    await page.tab.evaluate(POSITIONS)
    await with_module(page, "api.js", "module.get('/users/me').then(() => 0)")
    await page.tab.press("m")
    await page.tab.until("document.activeElement.name === 'input'")
    await page.tab.type("Go on")
    await page.tab.until("document.querySelector('.composer textarea').value === ''")
    await with_module(page, "api.js", "module.get('/users/me').then(() => 0)")
    named = await page.tab.evaluate("named")
    assert named[0] == ["GET", ""]
    assert ["POST", ""] in named
    assert named[-1] == ["GET", "16/B374D848"]
    await page.go("/tasks/alice/positions")
    await page.sees("Positions", "h1")
    await page.tab.evaluate(POSITIONS)
    await with_module(page, "api.js", "module.get('/users/me').then(() => 0)")
    assert await page.tab.evaluate("named.at(-1)") == ["GET", "16/B374D848"]
    assert page.tab.errors == []


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


_COUNTING = """(() => {
    const real = window.fetch;
    window.posts = [];
    window.fetch = (url, options) => {
        if (options?.method === "POST") posts.push(String(url).split("/").at(-1));
        return real(url, options);
    };
})()"""
"""Has a page count what it sends."""


async def paused(board: Board, name: str) -> tuple[Page, uuid.UUID]:
    """Open the page of a paused task, which counts what it sends."""
    task_id = uuid.UUID((await board.harness.active(name=name))["id"])
    await bring_to_status(board.harness.worker, "paused", task_id)
    page = await open_task(board, name)
    await page.sees("Resume", ".task-actions")
    await page.tab.evaluate(_COUNTING)
    return page, task_id


async def test_a_double_click_does_it_once(board: Board) -> None:
    """Neither the same again is sent, nor what the button that comes in the place of the first one does."""
    page, task_id = await paused(board, "clicked-twice")
    place = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
    button = "document.querySelector('.task-actions > .go')"
    await page.tab.evaluate("scrollTo(0, 0)")
    x, y = await page.tab.evaluate(f"{place}({button}.getBoundingClientRect())")
    await page.tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    for clicks in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            mouse = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": clicks}
            await page.tab.call("Input.dispatchMouseEvent", **mouse)
    await page.sees("queued", ".task-title .state")
    assert await page.tab.evaluate("posts") == ["resume"]
    await board.harness.worker.until(lambda: board.harness.worker.document(task_id)["workspace_build_number"] == 3)
    assert page.tab.errors == []


HOLDING = """window.real = fetch, window.deleting = false;
window.held = new Promise((go) => (window.release = go)), window.fetch = async (path, options) => {
    if (options.method === 'DELETE') { deleting = true; await held; }
    return real(path, options);
}, 0"""
"""Holds deletions back until ``release`` is called."""


async def test_who_has_left_the_page_of_a_deleted_task_stays_there(board: Board) -> None:
    """A deletion that takes its time only says that it is done if its page was left; else it leads to the list."""
    for name in ("deleted-late", "deleted-here"):
        await board.harness.active(name=name, display_name=name)
        page = await open_task(board, name)
        await page.tab.evaluate(HOLDING)
        await page.tab.press("#")
        await page.click("dialog button", "Delete")
        await page.becomes("deleting")
        if name == "deleted-late":
            await page.click(".bar a", "New task")
            await page.tab.until("document.activeElement?.id === 'prompt'")
            await page.tab.insert("Somewhere else")
            await page.tab.evaluate("release(), 0")
            await page.sees(f"{name} was deleted.", ".toast")
            assert await page.tab.evaluate("[location.pathname, document.activeElement.value]") == [
                *("/new", "Somewhere else"),
            ]
        else:
            await page.tab.evaluate("release(), 0")
            await page.tab.until("location.pathname === '/tasks'")
        assert page.tab.errors == []


async def test_a_key_that_is_held_down_does_it_once(board: Board) -> None:
    """A key that repeats does nothing again, unless it moves; pressed twice, it waits for what the first press does."""
    page, _ = await paused(board, "held-down")
    for repeats in (False, True, True, True, False):
        await page.tab.call("Input.dispatchKeyEvent", type="keyDown", key="r", text="r", autoRepeat=repeats)
    await page.tab.call("Input.dispatchKeyEvent", type="keyUp", key="r")
    await page.sees("queued", ".task-title .state")
    assert await page.tab.evaluate("posts") == ["resume"]
    for name in ("held-1", "held-2"):
        await board.harness.active(name=name)
    await page.go("/tasks?q=name:held")
    await page.tab.until("document.querySelectorAll('tbody .name').length === 3")
    for repeats in (False, True, True):
        await page.tab.call("Input.dispatchKeyEvent", type="keyDown", key="j", text="j", autoRepeat=repeats)
    await page.tab.until("document.activeElement === [...document.querySelectorAll('tbody .name')].at(-1)")
    await page.tab.evaluate(_COUNTING)
    await page.click("thead input")
    await page.tab.until("document.querySelector('.selection .acts button')")
    pause = "[...document.querySelectorAll('.selection .acts button')].find((each) => each.innerText === 'Pause')"
    await page.tab.evaluate(f"posts.length = 0; {pause}.click(); {pause}.click()")
    await page.sees("Pause 3 tasks?", "dialog h2")
    assert await page.tab.evaluate("posts.filter((each) => each === 'task-actions').length") == 1
    assert await page.tab.evaluate("document.querySelectorAll('dialog').length") == 1
    assert page.tab.errors == []


async def test_an_answer_is_sent_once(board: Board) -> None:
    """However fast the API is, the buttons of a request that was answered do nothing more."""
    task_id = uuid.UUID((await board.harness.active(name="answered-once"))["id"])
    await approval(board.harness, task_id, title="May I?")
    page = await open_task(board, "answered-once")
    await page.sees("May I?", ".asks")
    await page.tab.evaluate(_COUNTING)
    allow = "[...document.querySelectorAll('.agent-asks button')].find((each) => each.innerText === 'Allow once')"
    pressed = f"(window.allow = {allow}, allow.click(), allow.click())"
    await page.tab.evaluate(pressed)
    await page.sees("Answered.", ".toast")
    await page.tab.evaluate("allow.click()")
    await page.tab.until("!document.querySelector('.agent-asks form')")
    assert await page.tab.evaluate("posts") == ["answer"]
    assert page.tab.errors == []
