"""The board for everybody: axe-core finds nothing in light, dark, on a phone and at 200 %, with hostile texts in it."""

from __future__ import annotations

import uuid

import pytest

from tests.board.pages import Board, Page
from tests.harness.fleet import fill
from tests.harness.worker import build_report, make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
LONG = "W" * 1_900
PATHS = ("/", "/tasks", "/deleted", "/tasks?q=status:nonsense", "/tasks?q=name:nothing-has-this-name", "/new")
WIDE, PHONE, ZOOMED = (1280, 900, 1), (390, 844, 2), (640, 450, 2)
"""Sizes in CSS pixels, with the pixels of the screen for each; the last is the first at 200 %."""
CONTRAST = ("color-contrast", "link-in-text-block")
VIEWS = (
    ("light", WIDE, ()),
    ("dark", WIDE, ()),
    ("dark", PHONE, ()),
    ("light", PHONE, CONTRAST),
    ("light", ZOOMED, ()),
    ("dark", ZOOMED, CONTRAST),
)
"""Colour scheme, size, and which rules of axe-core; without any, all: most do not depend on colours."""


async def problems_of(page: Page, views: tuple[tuple[str, tuple[int, int, int], tuple[str, ...]], ...]) -> list[str]:
    """Return what axe-core finds in these views of a page, all of which must fit their width."""
    path, found = await page.tab.evaluate("location.pathname + location.search"), []
    for scheme, (width, height, scale), rules in views:
        await page.tab.resize(width, height, scale=scale)
        await page.tab.prefer(scheme)
        found += [f"{path} {scheme} {width}: {each}" for each in await page.violations(*rules)]
        overflow = await page.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, (path, width, overflow)
    return found


async def test_nothing_that_axe_finds(board: Board) -> None:
    """Every page, in both colour schemes, wide, on a phone and at 200 %, has no violation and fits its width."""
    ids = await fill(board.harness)
    for name, message in (("typed-events", HOSTILE), ("docs-links", LONG)):
        report = make_report(
            "app.status", ids[name], build_number=1, state="idle", message=message, uri="javascript:alert(1)"
        )
        await board.harness.worker.report(report)
    gone = await board.harness.create(display_name=HOSTILE[:64])
    assert (await board.harness.carol.delete(f"/tasks/alice/{gone['name']}")).status_code == 202
    page = await board.open("/", "carol")
    await page.tab.evaluate("localStorage.setItem('taskherd-home-scope', 'everyone')")
    problems: list[str] = []
    for path in (*PATHS, "/nonsense", "/fleet", "/tasks/alice/flaky-checkout"):
        await page.go(path)
        await page.tab.until("document.querySelector('.page[data-ready]')")
        problems += await problems_of(page, VIEWS)
    assert not problems, "\n".join(problems)
    assert await page.tab.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert page.tab.errors == []


async def test_dialogs_and_menus_too(board: Board) -> None:
    """What opens over a page has no violations either: the sign-in, the menu, the help, a question, the completion."""
    task = await board.harness.active(display_name="One")
    await board.harness.worker.report(
        make_report("app.status", uuid.UUID(task["id"]), build_number=1, state="idle", message="Go on?")
    )
    page = Page(await board.browser.new_tab(private=True), board.harness.base)
    await page.tab.prefer("dark")
    await page.go("/")
    await page.tab.until("document.activeElement?.id === 'token'")
    problems = await problems_of(page, VIEWS)
    await page.tab.resize(*WIDE[:2])
    await page.tab.prefer("dark")
    await page.sign_in(board.harness.tokens["alice"])
    await page.sees("Go on?")
    await page.click(".need button", "Reply")
    await page.click("summary")
    problems += await problems_of(page, VIEWS)
    await page.click(".menu button", "Keyboard")
    await page.tab.until("document.querySelector('dialog')")
    problems += await problems_of(page, VIEWS)
    await page.tab.press("Escape")
    await page.go("/tasks?q=owner:me")
    await page.sees("One", "tbody")
    await page.click("thead input")
    await page.click(".list-head button", "Delete")
    await page.sees("This cannot be undone", "dialog")
    problems += await problems_of(page, VIEWS)
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.tab.evaluate("document.querySelector('[role=combobox]').focus()")
    await page.tab.press(" ")
    await page.tab.until("document.querySelector('[role=option]')")
    await page.tab.press("ArrowDown")
    problems += await problems_of(page, VIEWS)
    assert await page.tab.evaluate("document.querySelector('[role=option]') !== null")  # all the time
    assert not problems, "\n".join(problems)
    assert page.tab.errors == []


async def test_what_comes_over_a_page_for_a_while(board: Board) -> None:
    """The banner of an outage, toasts, a selection with its question, and the progress of a job have none either."""
    await board.harness.active(name="paused-soon", display_name="Paused soon")
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/task-actions", "*/tasks/watch*"])
    await page.go("/tasks?q=owner:me+name:paused-soon")
    await page.sees("Paused soon", "tbody")
    await page.click("thead input")
    await page.click(".list-head button", "Pause")
    await page.sees("The server cannot be reached.", ".toast.bad")
    await page.tab.until("document.getElementById('offline')?.hidden === false")
    problems = await problems_of(page, VIEWS)
    assert await page.tab.evaluate("document.querySelector('.toast.bad') !== null")  # all the time
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.click(".list-head button", "Pause")
    await page.tab.until("document.querySelector('dialog[open]')")
    problems += await problems_of(page, VIEWS)
    await page.click("dialog button.go")
    await page.sees("task", ".card.job")
    problems += await problems_of(page, VIEWS)
    await page.go("/tasks/alice/paused-soon")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.press("o")
    await page.sees("It has named no pull request", ".toast")
    said = "document.getElementById('live').textContent"
    assert (await page.tab.evaluate(said)).startswith("It has named no pull request")
    await page.tab.evaluate("document.querySelector('.toast button').focus()")  # so that it stays
    problems += await problems_of(page, VIEWS)
    assert await page.tab.evaluate("document.querySelector('.toast') !== null")
    assert not problems, "\n".join(problems)
    assert page.tab.errors == []


async def test_the_page_of_a_task_that_has_ended_and_of_a_member(board: Board) -> None:
    """How it ended, with its builds unfolded, and what a member sees of the fleet, have no violations either."""
    harness = board.harness
    task_id = uuid.UUID((await harness.active(name="over", display_name="Over"))["id"])
    words = f"Last words {LONG}"
    await harness.worker.report(make_report("agent.exit", task_id, why="exited", status=3, words=words, build_number=1))
    await harness.create(name="failed", display_name="Failed")
    failed = uuid.UUID((await harness.get("failed"))["id"])
    await harness.worker.report(build_report(failed, 1, "start", "failed", error=HOSTILE))
    page = await board.open("/fleet", "alice")
    await page.tab.until("document.querySelector('.page[data-ready]')")
    problems = await problems_of(page, VIEWS)
    for path, text in (("/tasks/alice/over", "Last words"), ("/tasks/alice/failed", "Resume the task")):
        await page.go(path)
        await page.tab.until("document.querySelector('.page[data-ready]')")
        await page.tab.resize(*WIDE[:2])
        await page.sees(text)
        await page.click(".builds summary", "Start 1")
        await page.tab.until("document.querySelector('.build-log')")
        problems += await problems_of(page, VIEWS)
    assert not problems, "\n".join(problems)
    assert page.tab.errors == []


async def test_dialogs_that_ask_for_a_text(board: Board) -> None:
    """To save a view, and to send to several tasks, in both colour schemes."""
    await board.harness.active(display_name="Told")
    page = await board.open("/tasks?q=owner:me+status:active")
    await page.sees("Told", "tbody")
    problems: list[str] = []
    for button in ("Save view", "Send"):
        if button == "Send":
            await page.click("thead input")
        await page.click("button", button)
        await page.tab.until("document.querySelector('dialog :is(input, textarea)')")
        problems += await problems_of(page, VIEWS[:2])
        await page.tab.press("Escape")
        await page.tab.until("!document.querySelector('dialog')")
    assert not problems, "\n".join(problems)
    assert page.tab.errors == []


async def test_the_appearance_is_a_choice(board: Board) -> None:
    """Light, dark, or what the system prefers: the choice is kept, and holds from the first paint on."""
    page = await board.open("/tasks")
    background = "getComputedStyle(document.body).backgroundColor"
    colors: dict[str, str] = {}
    for theme in ("light", "dark", "system"):
        await page.click(".bar .menu summary")
        await page.tab.evaluate(f"document.querySelector('[name=theme][value={theme}]').click()")
        await page.tab.press("Escape")
        await page.tab.call("Page.reload")
        await page.tab.until("document.querySelector('.page[data-ready]')")
        colors[theme] = await page.tab.evaluate(background)
        assert await page.tab.evaluate("document.documentElement.dataset.theme ?? 'system'") == theme
    assert colors["light"] == colors["system"] != colors["dark"]
    await page.tab.prefer("dark")
    assert await page.tab.evaluate(background) == colors["dark"]
    assert page.tab.errors == []


async def test_home_is_answered_with_the_keyboard_alone(board: Board) -> None:
    """From the address bar: j to the first that needs somebody, Tab to its button, the answer, Ctrl-Enter."""
    task = await board.harness.create(board.harness.bob, display_name="Keyboard")
    task_id = await board.harness.worker.make_active(uuid.UUID(task["id"]))
    await board.harness.worker.report(make_report("app.status", task_id, build_number=1, state="idle", message="Well?"))
    page = await board.open("/", "bob")
    await page.sees("Well?", ".needs")
    await page.tab.press("j", "Tab", "Tab", "Tab")
    await page.tab.until("document.activeElement.textContent === 'Reply…'")
    await page.tab.press("Enter")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert("Yes")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Sent", ".needs")
    assert await page.tab.evaluate("document.activeElement.matches('.need')")  # so that j goes on from there
    assert page.tab.errors == []
