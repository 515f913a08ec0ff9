"""Ten errands on the board, counted by the driver that does them, beside the counts of others in docs/board.md."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.board.pages import Board, Page
from tests.harness.asking import active, asked, requests_of, shows
from tests.harness.conversation import CONVERSATION, converse
from tests.harness.worker import build_report, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
DOCUMENT = Path(__file__).parents[2] / "docs" / "board.md"
CANNOT = "cannot"
READY = "document.querySelector('.page[data-ready]')"

STILL, MAX_LOOKS = 3, 500
"""How often in a row an element must be in the same place before it is pressed, and how often that is looked at."""


@dataclass
class Person:
    """Who does an errand with mouse and keyboard; ``count`` is the number of clicks, keys and filled fields."""

    page: Page
    count: int = 0

    async def click(self, selector: str, text: str = "") -> None:
        """Wait for an element with this text that stays where it is, covered by nothing, and press the mouse there."""
        found = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => !each.disabled"
            f" && each.getClientRects().length && each.innerText.trim().startsWith({json.dumps(text)}))"
        )
        await self.page.tab.until(found)
        middle = "{left, top, width, height}) => [left + width / 2, top + height / 2]"
        x, y = await self.page.tab.evaluate(f"""(async () => {{
            let place = [], before = [];
            for (let still = 0, looks = 0; still < {STILL}; looks++) {{
                if (looks === {MAX_LOOKS}) throw new Error("it moves all the time");
                const element = {found};
                element?.scrollIntoView({{ block: "center", behavior: "instant" }});
                place = element ? (({middle})(element.getBoundingClientRect()) : [];
                if (element && !element.contains(document.elementFromPoint(...place))) place = ["covered"];
                still = Number(place[0]) >= 0 && String(place) === String(before) ? still + 1 : 0;
                before = place;
                await new Promise((look) => setTimeout(look, 20));
            }}
            return place;
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            mouse = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            await self.page.tab.call("Input.dispatchMouseEvent", **mouse)
        self.count += 1

    async def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press a key, or Ctrl with it."""
        await self.page.tab.press(key, ctrl=ctrl)
        self.count += 1

    async def fill(self, text: str) -> None:
        """Type a text of one's own into the field that has the cursor."""
        await self.page.tab.until("/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)")
        await self.page.tab.insert(text)
        self.count += 1

    async def sees(self, text: str, within: str = "#main") -> None:
        """Look, which costs nothing."""
        await self.page.sees(text, within)


async def at_home(board: Board) -> Person:
    """Open Home as Alice, who is signed in."""
    page = await board.open("/")
    await page.tab.resize(1280, 900)
    await page.tab.until(READY)
    return Person(page)


async def says(board: Board, task: dict[str, Any], state: str, message: str, **fields: Any) -> None:
    """Report what an agent says, and wait until the task has it."""
    report = make_report("app.status", uuid.UUID(task["id"]), state=state, message=message, uri="", **fields)
    await board.harness.worker.report({**report, "build_number": 1})
    await board.harness.worker.until_row(
        "SELECT document #>> '{current_state,message}' FROM tasks WHERE id = $1", uuid.UUID(task["id"]), is_=message
    )


async def answer_the_oldest_question(board: Board) -> Person:
    """The agent that asked first gets the answer, though its task is the newer; the other still waits."""
    harness = board.harness
    later, first = [await active(harness, display_name=name) for name in ("Asks later", "Asks first")]
    oldest = await asked(harness, first, title="Which of the two?")
    newest = await asked(harness, later, title="And which of these?")
    person = await at_home(board)
    await person.sees("Which of the two?", ".need:first-child")
    await person.click(".need:first-child button", "Answer…")
    await person.fill("The fast one")
    await person.press("Enter", ctrl=True)
    await harness.worker.until(lambda: not shows(harness, first, oldest))
    (answered,) = await requests_of(harness.alice, first)
    assert answered["answer"]["text"] == "The fast one"
    assert shows(harness, later, newest)
    return person


async def find_my_failed_tasks(board: Board) -> Person:
    """Those of today are listed, whether build or agent failed, and none of an earlier day."""
    harness = board.harness
    agent, old = [await harness.active(display_name=name) for name in ("Agent failed", "Failed long ago")]
    build = await harness.create(display_name="Build failed")
    await says(board, agent, "failed", "broken")
    await says(board, old, "failed", "broken then")
    await harness.worker.report(build_report(build["id"], 1, "start", "failed", error="quota"))
    status = "SELECT status FROM tasks WHERE id = $1"
    await harness.worker.until_row(status, uuid.UUID(build["id"]), is_="error")
    await harness.worker.until_row("SELECT count(*) FROM task_index_changes", is_=0)
    await harness.worker.database.execute(
        "UPDATE task_index SET changed_at = changed_at - interval '2 days' WHERE task_id = $1", uuid.UUID(old["id"])
    )
    person = await at_home(board)
    await person.click("a", "Failed today")
    await person.sees("Agent failed", "tbody")
    await person.sees("Build failed", "tbody")
    assert "Failed long ago" not in await person.page.text("tbody")
    return person


async def why_did_it_die(board: Board) -> Person:
    """How the agent ended, its last words, and what they mean for the task."""
    task = await board.harness.active(display_name="Dies")
    words = "reading the lock\nNo space left on device"
    await board.harness.worker.report(
        make_report("agent.exit", uuid.UUID(task["id"]), build_number=1, why="exited", status=3, words=words)
    )
    person = await at_home(board)
    await person.sees("Dies exited with status 3", ".needs")
    await person.click("[aria-label='Why? Dies']")
    await person.sees("Exited with status 3", ".ended")
    await person.sees("No space left on device", ".ended pre")
    await person.sees("The agent exited with status 3", ".task-side")
    return person


async def resume_all_lost(board: Board) -> Person:
    """All tasks that were lost on one machine start again, and the one of another machine does not.

    One is lost because its machine is silent, one because that was rebooted, so that nobody knows how its agent ended.
    """
    harness, worker = board.harness, board.harness.worker
    tasks = [await harness.active(display_name=f"Lost {number}") for number in range(3)]
    elsewhere = tasks.pop()
    await worker.report(build_report(elsewhere["id"], 1, "start", "succeeded", runner="r2"))
    assert (await worker.ask({"type": "runner.hello", "runner": "r1", "pool": "default"}))["ok"]
    reason = "SELECT document #>> '{workspace_agent_health,reason}' FROM tasks WHERE id = $1"
    for task in (tasks[0], elsewhere):
        await worker.report(make_report("agent.disconnected", uuid.UUID(task["id"]), build_number=1))
        await worker.until_row(reason, uuid.UUID(task["id"]), is_="agent has lost connection")
    await worker.report(make_report("agent.exit", uuid.UUID(tasks[1]["id"]), why="lost", build_number=1))
    await worker.until_row(reason, uuid.UUID(tasks[1]["id"]), is_="agent is not running")
    person = await at_home(board)
    await person.click("nav a", "Fleet")
    await person.click("[aria-label='lost tasks of r1']")
    await person.sees("Its machine, container or shim was stopped", "tbody")
    await person.click("[aria-label='Select this page']")
    await person.click(".selection button", "Resume")
    await person.click("dialog button", "Resume 2 tasks")
    await person.sees("Resumed 2 tasks", ".job")
    for task in tasks:
        assert (await harness.get(task["id"]))["workspace_build_number"] == 2
    assert (await harness.get(elsewhere["id"]))["workspace_build_number"] == 1
    return person


async def what_did_it_change(board: Board) -> Person:
    """The lines that the agent added and removed."""
    task = await board.harness.active(display_name="Changes files")
    await converse(board.harness, uuid.UUID(task["id"]), CONVERSATION)
    await says(board, task, "working", "Changing files")
    person = await at_home(board)
    await person.click(".lines a.name", "Changes files")
    await person.page.tab.until(f"{READY} && document.querySelector('.log .plus')")
    await person.press("x")
    await person.sees("from shop.clock import FrozenClock", ".log .diff")
    return person


async def who_deleted_it(board: Board) -> Person:
    """The name of who deleted a task, who is not its owner."""
    task = await board.harness.create(display_name="Deleted by whom")
    assert (await board.harness.carol.delete(f"/tasks/alice/{task['name']}")).status_code == 202
    person = await at_home(board)
    await person.click("nav a", "Tasks")
    await person.click(".views a", "Deleted")
    await person.sees("Deleted by whom", ".deleted li:first-child .name")
    await person.sees("Deleted by carol", ".deleted li:first-child")
    return person


async def how_long_has_it_waited(board: Board) -> Person:
    """Since when an agent has waited for its next message."""
    task = await board.harness.active(display_name="Waits")
    await says(board, task, "idle", "Which one?", observed_at=(datetime.now(UTC) - timedelta(hours=3)).isoformat())
    person = await at_home(board)
    await person.sees("Which one?", ".needs")
    row = f".need[data-id='{task['id']}'] time-ago"
    await person.page.tab.until(f"document.querySelector({json.dumps(row)})?.innerText")
    shown = await person.page.tab.evaluate(f"document.querySelector({json.dumps(row)}).getAttribute('at')")
    known = await board.harness.alice.get(f"/tasks/me/{task['id']}", params={"include": "state_since"})
    assert shown == known.json()["state_since"]
    return person


async def steer_it(board: Board) -> Person:
    """A text goes to an agent at work at once, before its turn is over."""
    task = await board.harness.active(display_name="To be steered")
    await says(board, task, "working", "Going astray")
    person = await at_home(board)
    await person.click(".lines a.name", "To be steered")
    await person.page.tab.until(f"{READY} && document.querySelector('.composer [value=steer]')")
    await person.press("m")
    await person.fill("The other way")
    await person.press("Enter", ctrl=True)
    await board.harness.worker.until_row(
        "SELECT content FROM inputs WHERE task_id = $1 AND steers", uuid.UUID(task["id"]), is_="The other way"
    )
    return person


async def start_one_like_it(board: Board) -> Person:
    """Another task with the same template, prompt and labels."""
    prompt = f"Do it {'again and ' * 500}again"
    task = await board.harness.active(display_name="The model", input=prompt, labels={"repo": "acme/app"})
    await says(board, task, "complete", "Done")
    person = await at_home(board)
    await person.click("[aria-label='Start one like The model']")
    await person.page.tab.until("document.activeElement?.id === 'prompt'")
    await person.press("Enter", ctrl=True)
    await person.page.tab.until("location.pathname.startsWith('/tasks/alice/')")
    name = str(await person.page.tab.evaluate("location.pathname")).rsplit("/", 1)[1]
    created = await board.harness.get(name)
    assert created["id"] != task["id"]
    for field in ("template_id", "initial_prompt", "labels"):
        assert created[field] == task[field]
    return person


async def what_is_the_bottleneck(board: Board) -> Person:
    """What waits, and for what."""
    await board.harness.create(display_name="Waits for a runner")
    person = await at_home(board)
    await person.click("nav a", "Fleet")
    await person.sees("no runner of pool default is connected", "h1")
    return person


ERRANDS: dict[str, Callable[[Board], Awaitable[Person]]] = {
    "Answer the oldest question": answer_the_oldest_question,
    "Find my failed tasks of today": find_my_failed_tasks,
    "Why did this one die?": why_did_it_die,
    "Resume all that were lost on one machine": resume_all_lost,
    "What did it change?": what_did_it_change,
    "Who deleted it?": who_deleted_it,
    "How long has it waited?": how_long_has_it_waited,
    "Steer it": steer_it,
    "Start one like it": start_one_like_it,
    "What is the fleet's bottleneck?": what_is_the_bottleneck,
}


def documented() -> dict[str, list[int | None]]:
    """Return the counts of each errand in the document, ours first; None: cannot."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("## The table")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"][2:]
    return {title: [_count(cell) for cell in cells] for title, *cells in rows}


def _count(cell: str) -> int | None:
    found = re.fullmatch(r"(\d+|cannot)( \([a-z]\))?", cell)
    assert found is not None, cell
    return None if found[1] == CANNOT else int(found[1])


def test_ours_is_never_more() -> None:
    """The document has ten errands, each of which we can do, with no more than any other product."""
    counts = documented()
    assert set(counts) == set(ERRANDS)
    assert len(counts) == 10
    for title, (ours, *others) in counts.items():
        assert ours is not None, title
        assert len(others) == 3, title
        assert all(other is None or ours <= other for other in others), title


@pytest.mark.parametrize("title", ERRANDS)
async def test_an_errand_takes_what_the_document_says(board: Board, title: str) -> None:
    """An errand is done in the browser with as many clicks, keys and filled fields as the document says."""
    person = await ERRANDS[title](board)
    assert person.count == documented()[title][0]
    assert person.page.tab.errors == []
