"""JSON of any shape where agents may send any, and handlers that fail: one bad entry costs only itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.board.pages import Board, Page
from tests.board.test_hostile import MADE
from tests.board.test_scripts import run
from tests.board.test_task import open_task
from tests.harness.asking import OPTIONS, active, approval, asked, requests_of
from tests.harness.conversation import Entry, said
from tests.harness.worker import make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start


def nested(levels: int, within: str = "") -> Any:
    """Return lists in lists, or objects in objects under this name."""
    value: Any = 1
    for _ in range(levels):
        value = {within: value} if within else [value]
    return value


TEMPLATE = {"_$litType$": 1, "strings": ["<img>"], "values": []}
COMPILED = {"_$litType$": {"h": "<img>", "el": {"content": 1}, "parts": []}, "values": []}
SHAPES: tuple[Any, ...] = (
    *(None, True, 0, -1.5, 1e300, "", "a text", "constructor", "__proto__", "toString"),
    *([], {}, [None], [[]], [{"toString": 1}], [1] * 5_000, ["x"] * 3_000, nested(80), nested(80, "diff")),
    *({"toString": 1}, {"toString": 1, "valueOf": 1}, {"toJSON": 1}, {"__proto__": {"toString": 1}}, {"length": 3}),
    *({"constructor": 1}, {"hasOwnProperty": 1}, {"then": 1}, {"nodeType": 1}, TEMPLATE, COMPILED),
)
"""What JSON may have in place of anything; the last ones are what the library that draws takes for its own."""
AT_ONCE = 40
"""Entries in one message, which has a limit."""
FAILED = "could not be shown"
"""What stands in the place of something that could not be drawn."""


def calls(shape: Any) -> list[Entry]:
    """Return entries whose data has this shape in the place of each of its parts."""
    texts = {"path": "src/a.py", "old": "one\n", "new": "two\n"}
    data: list[Any] = [{name: shape} for name in ("kind", "diff", "locations", "also_changes", "entries")]
    data += [{"kind": "edit", "diff": {**texts, name: shape}} for name in texts]
    data += [{"kind": "edit", "diff": {name: shape}} for name in texts]
    data += [{"locations": [shape, {"path": shape, "line": 3}, {"path": "src/a.py", "line": shape}]}]
    data += [{"also_changes": [shape, "src/b.py"], "kind": "constructor"}, {"constructor": shape, "__proto__": shape}]
    called = {"type": "output", "content": "A call\nwhat it gave", "kind": "tool_call", "title": "A call"}
    steps = ([shape], [{"content": shape, "status": shape}], [{"content": "A step", "status": shape}], shape)
    plans = [{**said("The plan as a text", "plan"), "data": {"entries": each}} for each in steps]
    others = [{**said("As it is", kind), "data": {"entries": shape}} for kind in ("message", "thought", "notice")]
    every = [{**called, "status": "completed", "data": each} for each in data] + plans + others
    return [each for each in every if fits(each["data"])]


def inputs(shape: Any) -> list[Any]:
    """Return inputs of tools that have this shape in the place of each of their parts."""
    texts = {"file_path": "src/a.py", "old_string": "one", "new_string": "two"}
    found = [shape, {"command": shape}, {"command": ["run", shape]}, {"command": "run", "cwd": shape}]
    found += [{"diff": shape}, {"diffs": [shape]}, {"diff": texts, "more": shape}, [texts, shape]]
    return [each for each in [*found, *({**texts, name: shape} for name in texts)] if fits(each)]


def fits(data: Any) -> bool:
    """Return whether the API takes data of this size."""
    return len(json.dumps(data).encode()) < 16_000


async def drawn(page: Page) -> None:
    """Everything was drawn as what it is: nothing failed, and no text has become an element."""
    assert page.tab.errors == []
    assert FAILED not in await page.tab.evaluate("document.getElementById('main').textContent")
    assert "native code" not in await page.tab.evaluate("document.getElementById('main').textContent")
    assert await page.tab.evaluate(MADE) == []


async def test_a_conversation_shows_entries_of_any_shape(board: Board) -> None:
    """Each entry is there, folded and unfolded, and what the agent asks below them can be answered."""
    task_id = await active(board.harness, name="shapes")
    every = [entry for shape in SHAPES for entry in calls(shape)]
    assert len(every) > len(SHAPES) * 15
    every.append(said("The last word"))
    for first in range(0, len(every), AT_ONCE):
        some = enumerate(every[first : first + AT_ONCE], first)
        entries = [{"id": at, "time": "2026-01-02T03:04:05Z", **each} for at, each in some]
        await board.harness.worker.report(make_report("task.log", task_id, build_number=1, seq=first, entries=entries))
    await board.harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task_id, is_=len(every))
    await approval(board.harness, task_id, title="May I?")
    page = await open_task(board, "shapes")
    await page.sees("The last word", ".log")
    count = "document.querySelectorAll('.log > .entry').length"
    while await page.tab.evaluate(
        f"{count} < {len(every)} && document.querySelector('.log-more:not(.newer)') !== null"
    ):
        await drawn(page)
        before = await page.tab.evaluate(count)
        await page.click(".log-more:not(.newer) button")
        await page.tab.until(f"{count} > {before} || !document.querySelector('.log-more:not(.newer)')")
        await page.tab.evaluate("document.querySelectorAll('.log details').forEach((each) => (each.open = true))")
        every_one = "[...document.querySelectorAll('.log details')].every"
        await page.tab.until(f"{every_one}((each) => each.open && each.children.length > 1)")
    await drawn(page)
    await page.click(".agent-asks button", "Allow once")
    await page.sees("Answered.", ".toast")
    await drawn(page)


async def test_requests_with_inputs_of_any_shape_are_shown_and_answered(board: Board) -> None:
    """On the task's page and on Home: whatever the input of a tool is, its request can be answered."""
    harness = board.harness
    task_id = await active(harness, name="inputs")
    every = [each for shape in SHAPES for each in inputs(shape)]
    script = """
        const { render } = await import(new URL("vendor/lit-html/lit-html.js", ADDRESS).href);
        const place = document.createElement("div");
        document.getElementById("main").append(place);
        const texts = [];
        for (const input of INPUTS) {
            render(module.toolView({ kind: "other", input }), place);
            texts.push(place.textContent);
        }
        return texts;
    """
    page = await board.open("/new")
    address = "document.querySelector(\"script[src$='/app.js']\").src"
    values = f"const INPUTS = JSON.parse({json.dumps(json.dumps(every))}), ADDRESS = {address};"
    texts = await run(page, "task/tool-input.js", values + script)
    await drawn(page)
    assert [each for each, text in zip(every, texts, strict=True) if each not in (None, "") and not text.strip()] == []
    assert max(map(len, texts)) < 200_000  # indented to its 80th level, one would be longer than a million characters
    for number, given in enumerate(({"command": [{"toString": 1}]}, {"diff": {"old": 5}}, TEMPLATE)):
        tool = {"kind": "execute", "name": "toString", "input": given}
        await asked(harness, task_id, kind="approval", title=f"Odd {number}", tool=tool, options=OPTIONS)
    await approval(harness, task_id, title="The last one")
    page = await board.open("/")
    await page.sees("The last one", ".needs")
    await page.sees("$ '{\"toString\":1}'", ".needs")
    await drawn(page)
    await page.go("/tasks/alice/inputs")
    await page.sees("The last one", ".asks")
    await page.click(".agent-asks button", "Allow once")
    await page.sees("Answered.", ".toast")
    await drawn(page)
    assert [each["state"] for each in await requests_of(harness.alice, task_id)].count("answered") == 1


_ODD = """(() => {
    const real = window.fetch;
    window.fetch = async (url, options) => {
        const answer = await real(url, options);
        if (!String(url).includes("/task-overview")) return answer;
        const overview = await answer.json();
        if (window.failing) overview.groups = null;
        for (const each of overview.requests.requests) if (each.title === "Not as it should be") each.options = null;
        return new Response(JSON.stringify(overview), { status: answer.status, headers: answer.headers });
    };
})()"""


async def test_home_shows_the_other_rows_if_one_cannot_be_drawn(board: Board) -> None:
    """A row that fails says so and leads to the task; what cannot be read is read again, and the rest goes on."""
    harness = board.harness
    task_id = await active(harness, name="odd")
    await approval(harness, task_id, title="Not as it should be")
    await approval(harness, task_id, title="As it should be")
    page = await board.open("/new")
    await page.tab.evaluate(_ODD)
    await page.tab.evaluate("window.failing = true")
    await page.click("nav a", "Home")
    await page.sees("could not be shown", ".notice.bad")
    await page.tab.evaluate("window.failing = false")
    await page.sees("As it should be", ".needs")
    await page.sees("Not as it should be", ".needs")
    await page.sees(FAILED, ".needs")
    later = await active(harness, name="odd-later", display_name="Later")
    await approval(harness, later, title="And one more")
    await page.sees("And one more", ".needs")
    await page.click(".need.ask button", "Allow once")
    await page.sees("sent to the agent", "body")
    assert page.tab.errors == []


async def test_a_term_that_every_object_has_is_a_term_like_others(board: Board) -> None:
    """A query may have any name before its colon."""
    page = await board.open("/tasks?q=__proto__:x+constructor:y")
    await page.sees("with __proto__ x, with constructor y")
    await page.sees("Show all tasks", ".notice.bad")
    assert page.tab.errors == []


_FAILING = """
    const told = [], ids = [], shown = [];
    addEventListener("error", (event) => { shown.push(event.error.message); });
    const on = {
        event: (name) => { told.push(name); if (name === "two") throw new Error("a handler failed"); },
        id: (id) => { ids.push(id); if (id === "3") throw new Error("another one failed"); },
    };
    const events = ["one", "two", "three", "four"].map((name, at) => `id: ${at + 1}\\nevent: ${name}\\ndata: {}\\n\\n`);
    await module.readEvents(new Response(events.join("")), on);
    return [told, ids, shown];
"""


async def test_a_handler_that_fails_ends_no_stream(board: Board) -> None:
    """The position goes on, so that the same event does not come again for ever; and somebody is told."""
    page = await board.open("/new")
    told, ids, shown = await run(page, "api.js", _FAILING)
    assert told == ["one", "two", "three", "four"]
    assert ids == ["1", "2", "3", "4"]
    assert shown == ["a handler failed", "another one failed"]
    assert len(page.tab.errors) == 2  # in the browser's console, too
    await page.sees("Something went wrong on this page", ".toast.bad")


async def test_every_link_of_an_agent_has_its_whole_address(board: Board) -> None:
    """On Home, in the list of tasks and on the task's page, whatever its text is shortened to."""
    uri = "https://evil.example/acme/shop/pull/1207"
    for name, state in (("led-works", "working"), ("led-rests", "idle"), ("led-ended", "complete")):
        task_id = await active(board.harness, name=name)
        fields = {"state": state, "message": "See there", "uri": uri, "build_number": 1}
        await board.harness.worker.report(make_report("app.status", task_id, **fields))
    page = await board.open("/")
    links = f"[...document.querySelectorAll('a[href=\"{uri}\"]')]"
    for path, number in (("/", 3), ("/tasks?q=name:led", 3), ("/tasks/alice/led-works", 1)):
        await page.go(path)
        await page.tab.until(f"document.querySelector('.page[data-ready]') && {links}.length === {number}")
        texts = await page.tab.evaluate(f"{links}.map((each) => each.innerText.split(/\\s/)[0])")
        assert texts == ["evil.example/acme/shop#1207"] * number, path
        assert await page.tab.evaluate(f"{links}.every((each) => each.title === each.href)"), path
