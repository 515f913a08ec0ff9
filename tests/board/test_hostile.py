"""Hostile and very long texts in every field that people, agents, runners and the directory fill: shown as text."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from taskherd.directory_file.parse import parse
from taskherd.store import directory
from taskherd.store.engine import dispose, open_engine, transaction
from tests.board.pages import Board, Page
from tests.harness.api import OTHER
from tests.harness.asking import OPTIONS, asked, give
from tests.harness.conversation import converse, said, tool
from tests.harness.worker import ALICE, ORGANIZATION, PRESET, TEMPLATE, VERSION, build_report, make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start
IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "<script>alert(1)</script>"
MARKUP = f'">{SCRIPT}{IMAGE}'
BIDI = "left\u202etfel\u2066"
"""Begins an override and an isolate, and ends neither."""
WORD = "W" * 64
LONG = "W" * 1_900
ANSWER = f"Answer {MARKUP} {BIDI} {LONG}"
DETAIL = f"Detail {MARKUP} {BIDI} {LONG}"
ERROR = f"{MARKUP} {LONG}"
USER, RUNNER, POOL, TEMPLATE_NAME = "u" * 64, "r" * 64, "p" * 64, "t" * 64
TURNED_TEMPLATE, TURNED_VERSION, LONG_PRESET = (uuid.UUID(int=number) for number in (0xB5, 0xC5, 0xD5))
DIRECTORY = {
    "organizations": [
        {"id": str(ORGANIZATION), "name": "acme", "display_name": MARKUP},
        {"id": str(OTHER), "name": "o" * 64, "display_name": WORD},
    ],
    "users": [
        {
            "id": str(ALICE),
            "username": USER,
            "name": MARKUP,
            "email": "alice@example.com",
            "avatar_url": "javascript:alert(1)",
            "organizations": {"acme": "admin", "o" * 64: "admin"},
        }
    ],
    "templates": [
        {
            "id": str(TEMPLATE),
            "organization": "acme",
            "name": TEMPLATE_NAME,
            "display_name": MARKUP,
            "icon": "javascript:alert(1)",
            "description": f"{MARKUP}{LONG}",
            "active_version": str(VERSION),
            "versions": [
                {
                    "id": str(VERSION),
                    "name": "v" * 64,
                    "run": {"command": ["true"], "pool": POOL},
                    "presets": [
                        {"id": str(PRESET), "name": MARKUP, "default": True, "parameters": {MARKUP: MARKUP}},
                        {"id": str(LONG_PRESET), "name": WORD},
                    ],
                }
            ],
        },
        {
            "id": str(TURNED_TEMPLATE),
            "organization": "acme",
            "name": "x" * 64,
            "display_name": "",
            "description": WORD,
            "active_version": str(TURNED_VERSION),
            "versions": [{"id": str(TURNED_VERSION), "name": "v1", "run": {"command": ["true"]}}],
        },
    ],
    "runners": [{"name": RUNNER, "pool": POOL}],
}
PAGES = {
    "/": (MARKUP, WORD, BIDI),
    "/tasks": (MARKUP, WORD, IMAGE),
    f"/tasks?q=status:{quote(SCRIPT)}": (f'"{SCRIPT}" is not a valid value',),
    "/deleted": (MARKUP, USER),
    "/fleet": (POOL, RUNNER, WORD, TEMPLATE_NAME),
    "/new": (MARKUP, WORD, BIDI),
    f"/new?from={USER}/asks": (MARKUP, "A link has filled"),
    f"/new?template={quote(MARKUP)}&prompt={LONG}": (MARKUP,),
    f"/tasks/{USER}/asks": (MARKUP, IMAGE, WORD, BIDI, f"{'k' * 64}={IMAGE}", f"Answer {MARKUP}", f"Detail {MARKUP}"),
    f"/tasks/{USER}/ended": (WORD, MARKUP),
    f"/tasks/{USER}/not-built": (MARKUP,),
    f"/tasks/{USER}/{quote(IMAGE)}": (IMAGE,),
    f"/{quote(IMAGE)}": ("There is no such page",),
}
"""Paths, and what is there to be seen."""
MADE = """[...document.querySelectorAll("body :is(img, script, iframe, object, embed, style, [onerror])")]
    .concat([...document.links].filter((each) => !/^https?:$/.test(each.protocol))).map((each) => each.outerHTML)"""
"""What the texts have become, and must not."""
CUT_OFF = """[...document.querySelectorAll(":is(main, dialog, .toast, .bar) *")].filter((each) => {
    const {left, right, width} = each.getBoundingClientRect();
    if (!width || (left >= -1 && right <= innerWidth + 1)) return false;
    if (!each.checkVisibility() || each.matches(".unseen")) return false;
    for (let around = each.parentElement; around !== document.body; around = around.parentElement)
        if (!["visible", "clip"].includes(getComputedStyle(around).overflowX)) return around.matches("dialog");
    return true;
}).map((each) => each.outerHTML.slice(0, 300))"""
"""What ends beyond an edge of the page, and neither scrolls nor is shortened there."""
TURNED = r"""[...document.querySelectorAll("main *")].filter((each) => {
    const texts = [...each.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data);
    if (!/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/.test(texts.join(""))) return false;
    const isOwn = ({display, unicodeBidi}) => display !== "inline" || unicodeBidi.startsWith("isolate");
    let own = each;
    while (!isOwn(getComputedStyle(own))) own = own.parentElement;
    return [...own.querySelectorAll("time-ago, a, button")].some((other) => !other.contains(each));
}).map((each) => each.parentElement.outerHTML.slice(0, 300))"""
"""Texts that turn the direction of others, beside which there is more than the text itself."""


LAID_OUT = "document.querySelectorAll('.entry').forEach((each) => (each.style.contentVisibility = 'visible'))"
"""Has entries of a conversation that are off the screen laid out in their new size, too."""


async def apply(board: Board) -> None:
    """Apply the directory, as ``taskherd directory apply`` does, with names that it accepted once."""
    engine = open_engine(board.harness.worker.urls[0], size=1, application_name="tests")
    async with transaction(engine) as connection:
        await directory.apply(connection, parse(yaml.safe_dump(DIRECTORY).encode()), allow_deactivate=True)
    await dispose(engine)
    database = board.harness.worker.database
    await database.execute("UPDATE users SET name = $1 WHERE id = $2", f"{MARKUP} {BIDI}"[:64], ALICE)
    await database.execute("UPDATE templates SET display_name = $1 WHERE id = $2", BIDI, TURNED_TEMPLATE)


async def report(board: Board, task_id: uuid.UUID, state: str, message: str, uri: str = "") -> None:
    """Report what an agent says, and wait until the task shows it."""
    worker = board.harness.worker
    fields = {"state": state, "message": message, "uri": uri, "build_number": 1}
    await worker.report(make_report("app.status", task_id, **fields))
    await worker.until(lambda: worker.state(task_id).get("state") == state)


async def talk(board: Board, task_id: uuid.UUID) -> None:
    """Fill the conversation of a task, what its agent asks, and what waits for it."""
    harness = board.harness
    labels = [{**option, "label": label} for option, label in zip(OPTIONS, (IMAGE, WORD, "No"), strict=True)]
    title, detail = f"{MARKUP} {WORD}", f"{MARKUP} {LONG}"
    await asked(harness, task_id, kind="approval", title=title, detail=detail, options=labels)
    used = {"kind": "other", "name": MARKUP, "input": {MARKUP: LONG}}
    await asked(harness, task_id, kind="approval", title=f"{BIDI} {WORD}", tool=used, options=OPTIONS)
    spoken = [
        said(f"{text} ```\n{text}\n```\n`{text}` **{text}**", kind)
        for kind in ("message", "thought", "notice")
        for text in (MARKUP, BIDI, LONG)
    ]
    edit = tool(WORD, "edit", LONG, diff={"path": LONG, "old": MARKUP, "new": f"{MARKUP} {LONG}\n{BIDI}"})
    place = tool(MARKUP, WORD, f"{BIDI} {LONG}", locations=[{"path": LONG, "line": 3}], also_changes=[LONG])
    steps = [{"content": LONG, "status": WORD, "priority": WORD}]
    plan = {**said(LONG, "plan"), "data": {"entries": steps}}
    await converse(harness, task_id, ({"type": "input", "content": detail}, *spoken, edit, place, plan))
    for text in (f"{MARKUP} {BIDI}", LONG):
        assert (await harness.alice.post(f"/tasks/me/{task_id}/send", json={"input": text})).status_code == 204
    question = await asked(harness, task_id, title=f"{BIDI} {MARKUP}")
    assert (await give(harness.alice, task_id, question, text=ANSWER)).status_code == 204
    actions = (await harness.alice.get(f"/tasks/me/{task_id}/events")).json()["actions"]
    outcome = {"input_id": actions[0]["id"], "outcome": "failed", "detail": DETAIL}
    await harness.worker.report(make_report("task.input", task_id, **outcome))


@pytest.fixture(scope="module")
async def filled(board: Board) -> Board:
    """Return the board with a directory and tasks whose texts are all hostile, in every state that a page shows."""
    await apply(board)
    harness, worker = board.harness, board.harness.worker
    labels = {"k" * 64: IMAGE, "kind": WORD}
    prompt = f"{MARKUP} {BIDI} {LONG}"
    asks = uuid.UUID((await harness.active(name="asks", display_name=MARKUP, input=prompt, labels=labels))["id"])
    await report(board, asks, "working", f"{BIDI} {MARKUP} {LONG}", f"https://example.com/{LONG}")
    await talk(board, asks)
    told = (
        ("works", "working", MARKUP),
        ("done", "complete", BIDI),
        ("rests", "idle", LONG),
        ("ended", "working", LONG),
    )
    for name, state, text in told:
        task = await harness.active(
            name=name, display_name=WORD, input=f"{name} {text}", template_version_id=str(TURNED_VERSION)
        )
        await report(board, uuid.UUID(task["id"]), state, text, f"https://{'h' * 63}.example.com/{WORD}")
    ended = uuid.UUID((await harness.get("ended"))["id"])
    words = {"why": "exited", "status": 3, "words": f"{LONG}\n{MARKUP}{LONG}"}
    await worker.report(make_report("agent.exit", ended, build_number=1, **words))
    failed = uuid.UUID((await harness.create(name="not-built", display_name=MARKUP))["id"])
    await worker.report(build_report(failed, 1, "start", "failed", error=ERROR, runner=RUNNER))
    assert (await worker.ask({"type": "runner.hello", "runner": RUNNER, "pool": POOL}))["ok"]
    await harness.create(name="w" * 32, display_name=WORD)
    gone = await harness.create(name="gone", display_name=MARKUP)
    assert (await harness.alice.delete(f"/tasks/me/{gone['id']}")).status_code == 202
    await worker.until(lambda: worker.document(failed).get("status") == "error")
    return board


async def test_hostile_texts_stay_texts_and_fit_on_every_page(filled: Board) -> None:
    """Nothing becomes an element, is wider than the page, or turns other texts: wide, at 200 % zoom, and on a phone."""
    page = await filled.open("/")
    problems: list[tuple[Any, ...]] = []
    for path, texts in PAGES.items():
        await page.go(path)
        await page.tab.until("document.querySelector('.page[data-ready]')")
        for text in texts:
            await page.tab.until(f"document.getElementById('main').textContent.includes({json.dumps(text)})")
        problems += [(path, each) for each in await page.tab.evaluate(MADE)]
        problems += [(path, "turned", each) for each in await page.tab.evaluate(TURNED)]
        for width in (1280, 640, 390):
            await page.tab.resize(width, 844)
            problems += [(path, width, each) for each in await page.tab.evaluate(CUT_OFF)]
            assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
    assert not problems, "\n".join(map(str, problems))
    assert page.tab.errors == []


async def test_hostile_texts_fit_what_opens_over_a_page(filled: Board) -> None:
    """On a phone dialogs, toasts and the menu wrap them, and so do buttons, whose labels are the agent's."""
    page = await filled.open(f"/tasks/{USER}/works")
    await page.tab.resize(390, 844)
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.click(".bar .menu summary")
    await page.sees(USER, ".bar .menu-items")
    assert await page.tab.evaluate(CUT_OFF) == []
    await page.tab.press("Escape", "p")
    await page.sees(WORD, "dialog h2")
    assert await page.tab.evaluate(CUT_OFF) == []
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.tab.press("y")
    await page.sees(WORD, "dialog .raw")
    assert await page.tab.evaluate(CUT_OFF) == []
    await page.go("/tasks?q=owner:me")
    await page.click("thead input")
    await page.click(".selection button", "Delete")
    await page.sees("w" * 32, "dialog .names")
    assert await page.tab.evaluate(CUT_OFF) == []
    await page.tab.press("Escape")
    await page.go("/")
    labelled = f"[...document.querySelectorAll('.need.ask button')].find((each) => each.innerText === '{WORD}')"
    await page.tab.until(labelled)
    await page.tab.evaluate(f"{labelled}.focus()")  # while the focus is in the list, what was answered stays
    await page.tab.press("Enter")
    await page.sees(f"{WORD}: sent to the agent", ".needs")
    assert await page.tab.evaluate(CUT_OFF) == []
    await page.go(f"/tasks/{USER}/works")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.press("#")
    await page.click("dialog button", "Delete")
    await page.sees(f"{WORD} was deleted.", ".toast")
    assert await page.tab.evaluate(CUT_OFF) == []
    assert await page.tab.evaluate(MADE) == []
    assert page.tab.errors == []


async def test_hostile_texts_stay_texts_where_something_is_unfolded(filled: Board) -> None:
    """The log of a build, what an agent asks, and the tasks that a job could not change, wide and on a phone."""
    page = await filled.open(f"/tasks/{USER}/not-built")
    await page.tab.resize(1280, 844)
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.click(".builds summary", "Start 1")
    await page.tab.until(f"document.querySelector('.build-log')?.textContent.includes({json.dumps(ERROR)})")
    problems = [each for width in (1280, 390) for each in await broken(page, width)]
    await page.tab.resize(1280, 844)
    await page.go(f"/tasks/{USER}/asks")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    unfold = "document.querySelectorAll('main details:not(.menu)').forEach((each) => (each.open = true))"
    await page.tab.evaluate(unfold)
    await page.tab.until("document.querySelector('.build-log')?.textContent.includes('Agent is ready')")
    problems += [each for width in (1280, 390) for each in await broken(page, width)]
    await page.tab.resize(1280, 844)
    await page.go(f"/tasks?q=name:{'w' * 20}")  # whose build is pending
    await page.click("thead input")
    await page.click(".selection button", "Pause")
    await page.click("dialog button", "Pause")
    await page.sees("1 task could not be changed", ".job")
    problems += [each for width in (1280, 390) for each in await broken(page, width)]
    assert not problems, "\n".join(problems)
    assert page.tab.errors == []


async def broken(page: Page, width: int) -> list[str]:
    """Return what texts have become on a page of this width, what they turn, and what is cut off."""
    await page.tab.resize(width, 844)
    await page.tab.evaluate(LAID_OUT)
    found = [str(each) for script in (MADE, TURNED, CUT_OFF) for each in await page.tab.evaluate(script)]
    overflow = await page.tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"{overflow} pixels beyond {width}"] if overflow > 0 else [])]
