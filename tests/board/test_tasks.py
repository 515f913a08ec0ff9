"""The list of tasks in a real browser: filter, pages, changes in place, selection and jobs for many."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import NEXT_FRAME, Board
from tests.board.test_task import status
from tests.harness.worker import make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
ROWS = "[...document.querySelectorAll('tbody tr .name')].map((name) => name.textContent)"


async def test_the_filter_completes_terms_and_the_address_holds_it(board: Board) -> None:
    """Terms and values are completed with the keyboard; the address has the filter, and going back undoes it."""
    await board.harness.create(display_name="Pending")
    await board.harness.active(display_name="Active")
    page = await board.open("/tasks")
    await page.sees("Active", "tbody")
    await page.tab.press("/")
    await page.tab.until("document.activeElement.getAttribute('role') === 'combobox'")
    await page.tab.insert("stat")
    await page.tab.until("document.querySelectorAll('[role=option]').length === 2")
    await page.tab.press("ArrowDown", "Tab")
    await page.tab.until("document.querySelector('.filter input').value === 'status:'")
    await page.sees("initializing", "[role=listbox]")
    await page.tab.insert("act")
    await page.tab.until("document.querySelectorAll('[role=option]').length === 1")
    await page.tab.press("ArrowDown", "Enter")
    await page.tab.until(f"location.search === '?q=status:active' && {ROWS}.join() === 'Active'")
    await page.sees("All tasks that you may see with the status active")
    await page.tab.evaluate("history.back()")
    await page.tab.until(f"location.search === '' && {ROWS}.length === 2")
    assert await page.tab.evaluate("document.querySelector('.filter input').value") == ""
    await page.go("/tasks?q=status:nonsense")
    await page.sees('"nonsense" is not a valid value')
    await page.click("button", "Show all tasks")
    await page.tab.until(f"{ROWS}.length === 2")
    assert page.tab.errors == []


async def test_runners_pools_and_labels_are_completed(board: Board) -> None:
    """Pools and runners come from the fleet, which is read once; keys of labels, then their values, from the rows."""
    assert (await board.harness.worker.ask({"type": "runner.hello", "runner": "runner-9", "pool": "default"}))["ok"]
    await board.harness.create(labels={"repo": "acme/app", "kind": "two words"})
    page = await board.open("/tasks")
    await page.tab.until(f"{ROWS}.length")
    await page.tab.press("/")
    await page.tab.insert("pool:")
    await page.sees("default", "[role=listbox]")
    await page.tab.insert("default runner:")
    await page.sees("runner-9", "[role=listbox]")
    assert await page.reads("/fleet") == [""]
    for typed, offered in (
        ("health:la", "it takes long to be heard"),
        ("name:", "-"),
        ("owner:", "yourself"),
        ("owner:ca", "carol"),
        ("organization:", "acme"),
        ("template:", "claude"),
        ("state:", "complete"),
        ("waiting:", "an agent asks"),
        ("failed:", "one of them failed"),
        ("stalled:", "says nothing any more"),
        ("created:", "within the last hour"),
        ("changed:>", "more than a week ago"),
    ):
        await page.tab.evaluate("document.querySelector('.filter input').select()")
        await page.tab.insert(typed)
        await page.sees(offered, "[role=listbox]")
    await page.tab.evaluate("document.querySelector('.filter input').select()")
    await page.tab.insert("label:")
    await page.tab.until("document.querySelectorAll('[role=option]').length === 2")
    await page.tab.press("ArrowDown", "Tab")
    await page.sees("kind=two words", "[role=listbox]")
    await page.tab.press("ArrowDown", "Enter")
    await page.tab.until(f"location.search === '?q=label:%22kind%3Dtwo+words%22' && {ROWS}.length === 1")
    assert page.tab.errors == []


@pytest.mark.parametrize("value", ["SHOP:12", "two  words", "a=b:"])
async def test_labels_with_any_value_are_filtered_by(board: Board, value: str) -> None:
    """A colon or spaces in a value are quoted by the chip, the completion and the field, and the feed knows them."""
    harness = board.harness
    labels = {"ticket": value}
    task = await harness.active(name=f"t-{uuid.uuid4().hex[:8]}", display_name="Labelled", labels=labels)
    await harness.active(display_name="Another", labels={"ticket": "other"})
    page = await board.open(f"/tasks/alice/{task['name']}")
    await page.tab.resize(1280, 900)
    await page.click(".facts .chip")
    query = json.dumps(f'label:"ticket={value}"')
    listed = f"new URLSearchParams(location.search).get('q') === {query} && {ROWS}.join() === 'Labelled'"
    await page.tab.until(listed)
    await page.go("/tasks")  # the completion
    await page.tab.until(f"{ROWS}.length >= 2")
    await page.tab.press("/")
    await page.tab.insert(f'label:"ticket={value[:-1]}')  # some of it, with the first of its quotes
    await page.tab.until("document.querySelectorAll('[role=option]').length === 1")
    await page.tab.press("ArrowDown", "Enter")
    await page.tab.until(listed)
    await page.go("/tasks")  # the whole of it, typed
    await page.tab.until(f"{ROWS}.length >= 2")
    await page.tab.press("/")
    await page.tab.insert(f'label:"ticket={value}"')
    await page.tab.press("Enter")
    await page.tab.until(listed)
    await page.tab.call("Page.reload")  # the address
    await page.tab.until(f"document.querySelector('.page[data-ready]') && {listed}")
    await harness.active(display_name="Labelled, too", labels=labels)
    await page.sees("1 changed", ".list-head")
    deleted = await harness.alice.delete(f"/tasks/me/{task['name']}")
    assert deleted.status_code == 202
    await page.sees("deleted", "tbody")
    await page.sees("2 changed", ".list-head")
    assert page.tab.errors == []


async def test_a_list_that_is_not_followed_says_so(board: Board) -> None:
    """Where the API lists the tasks but refuses to follow them, the list may have changed at any time."""
    await board.harness.active(display_name="Not followed")
    page = await board.open("/new")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_NOT_FOLLOWED)
    await page.go("/tasks")
    await page.sees("Not followed", "tbody")
    await page.sees("May have changed", ".list-head .pill")
    assert page.tab.errors == []


_NOT_FOLLOWED = """
    const real = window.fetch;
    window.fetch = (path, options) => real(String(path).replace("/tasks/watch?", "/tasks/watch?q=no:term&"), options);
"""
"""Has the API refuse the stream of a list."""


async def test_what_people_see_finds_tasks(board: Board) -> None:
    """Free text finds the names that were made from it, from the page's field and from the bar of the other pages."""
    await board.harness.create(input="Don't fix the Café's flaky checkout test by retrying it")
    await board.harness.create(input="Another one")
    page = await board.open("/fleet")
    await page.tab.until("document.querySelector('.page.fleet[data-ready]') && document.querySelector('.find input')")
    await page.tab.press("/")
    await page.tab.insert("Don't fix the café")
    await page.tab.press("Enter")
    await page.tab.until(f"location.search === '?q=name:dont-fix-the-cafe' && {ROWS}.length === 1")
    assert (
        await page.tab.evaluate("document.querySelector('.find').checkVisibility({visibilityProperty: true})") is False
    )
    for typed, query in (
        ("owner:me Another: one", "owner:me+name:another-one"),
        ("name:Don't fix the Café's flaky checkout test by", "name:dont-fix-the-cafes-flaky"),
        ("Checkout test", "name:checkout-test"),
    ):
        await page.tab.evaluate("document.querySelector('.filter input').select()")
        await page.tab.insert(typed)
        await page.tab.press("Enter")
        rows = 0 if typed == "Checkout test" else 1
        await page.tab.until(f"location.search === '?q={query}' && {ROWS}.length === {rows}")
    await page.sees("Names are searched by how they begin", ".empty")
    assert page.tab.errors == []


async def test_the_list_is_read_once(board: Board) -> None:
    """A page that opens reads its list once, after its stream stands, and so it does with another filter."""
    await board.harness.active(display_name="Read once")
    page = await board.open("/tasks?q=status:active")
    await page.tab.until(f"document.querySelector('.page[data-ready]') && {ROWS}.length")
    assert await page.reads("/tasks?") == ["status:active"]
    await page.click(".views a", "All")
    await page.tab.until("location.search === ''")
    await page.tab.until("performance.getEntriesByType('resource').some((each) => each.name.endsWith('&q='))")
    await board.harness.active(display_name="Comes by the stream")
    await page.sees("1 changed", ".list-head")
    assert await page.reads("/tasks?") == ["status:active", ""]
    assert page.tab.errors == []


async def test_the_list_is_shown_without_a_stream(board: Board) -> None:
    """Where no stream can be opened, as when too many are open, the list still shows what there is."""
    await board.harness.active(display_name="Without a stream")
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/tasks/watch*"])
    await page.go("/tasks")
    await page.sees("Without a stream", "tbody")
    assert page.tab.errors == []


async def test_rows_change_in_place_and_never_jump(board: Board) -> None:
    """A shown row changes where it is; what would come or go is counted until somebody asks for it."""
    harness = board.harness
    tasks = [await harness.active(display_name=f"Steady {number}") for number in range(3)]
    page = await board.open("/tasks?q=status:active+name:steady")
    await page.go("/tasks?q=status:active")
    await page.sees("Steady 2", "tbody")
    before = await page.tab.evaluate(ROWS)
    await harness.create(display_name="Another")  # pending: does not match
    newest = await harness.active(display_name="Newest")
    await page.sees("1 changed", ".list-head")
    task_id = uuid.UUID(tasks[0]["id"])
    report = make_report("app.status", task_id, state="working", message="Reading <i>this</i>", build_number=1)
    await harness.worker.report(report)
    await page.sees("Reading <i>this</i>", "tbody")
    await harness.alice.post(f"/tasks/me/{tasks[1]['id']}/pause")
    await page.sees("no longer matches", "tbody")
    await page.sees("2 changed", ".list-head")
    assert await page.tab.evaluate(ROWS) == before
    await page.tab.press(".")
    await page.tab.until(f"{ROWS}[0] === 'Newest' && !{ROWS}.includes('Steady 1')")
    await harness.alice.delete(f"/tasks/me/{newest['id']}")
    await page.sees("deleted", "tbody")
    assert page.tab.errors == []


async def test_changes_that_were_missed_move_no_row(board: Board) -> None:
    """When the API cannot tell what has changed meanwhile, the rows stay until somebody asks for the list."""
    harness = board.harness
    await harness.active(display_name="Read before")
    page = await board.open("/tasks?q=status:active")
    await page.sees("Read before", "tbody")
    before = await page.tab.evaluate(ROWS)
    await page.stop_following()
    await harness.active(display_name="Came meanwhile")
    await page.follow_after_the_history_was_pruned()
    await page.sees("May have changed", ".list-head .pill")
    assert await page.tab.evaluate(ROWS) == before
    assert len(await page.reads("/tasks?")) == 1
    await page.tab.press(".")
    await page.tab.until(f"{ROWS}[0] === 'Came meanwhile' && document.querySelector('.list-head .pill').hidden")
    assert page.tab.errors == []


async def test_what_says_nothing_about_a_filter_is_not_counted(board: Board) -> None:
    """Tasks that other filters are about are not counted, and what nobody knows is said without a number."""
    harness = board.harness
    await harness.active(display_name="On no runner")
    page = await board.open("/tasks?q=runner:rack-7+status:active")
    await page.sees("No task matches", ".empty")
    await harness.create(display_name="Elsewhere")  # pending: does not match
    await harness.active(display_name="Somewhere")
    await page.sees("May have changed", ".list-head .pill")
    await page.tab.press(".")
    await page.tab.until("document.querySelector('.list-head .pill').hidden")
    aged = await board.open("/tasks?q=created:%3E1d")
    await aged.sees("No task matches", ".empty")
    lost = await board.open("/tasks?q=health:healthy")
    await lost.sees("Somewhere", "tbody")
    newest = await harness.active(display_name="Too new")
    await lost.sees("1 changed", ".list-head .pill")  # by when the other page has heard of it, too
    assert await aged.tab.evaluate("document.querySelector('.list-head .pill').hidden")
    await lost.tab.press(".")
    await lost.sees("Too new", "tbody")
    stopped = make_report("agent.disconnected", uuid.UUID(newest["id"]), build_number=1)
    await harness.worker.report(stopped)
    await lost.sees("no longer matches", f"tr[data-id='{newest['id']}']")
    assert page.tab.errors == aged.tab.errors == lost.tab.errors == []


_HOLDING = """
    let release;
    const real = window.fetch;
    window.hold = true;
    window.release = () => (hold = false, release());
    window.fetch = async (path, options) => {
        const answer = await real(path, options);
        if (!hold || !path.includes("/tasks?")) return answer;
        document.body.dataset.held = "yes";
        await new Promise((done) => (release = done));
        return answer;
    };
"""
"""Keeps the next answer with a list of tasks from a page until it calls ``release``."""
_FIRST = "location.search === '?q=owner:me'"


async def says(board: Board, task: dict[str, Any], message: str) -> None:
    """Report what an agent says while it works."""
    fields = {"state": "working", "message": message, "build_number": 1}
    await board.harness.worker.report(make_report("app.status", uuid.UUID(task["id"]), **fields))


async def test_what_changes_while_the_list_is_read_is_not_lost(board: Board) -> None:
    """An answer that is older than what the stream has said since takes nothing back."""
    harness = board.harness
    task = await harness.active(name="meanwhile-one")
    page = await board.open("/tasks?q=state:working+name:meanwhile")
    await page.sees("No task matches", ".empty")
    await says(board, task, "Before")
    await page.sees("1 changed", ".list-head")
    await page.tab.evaluate(_HOLDING)
    await page.tab.press(".")
    await page.tab.until("document.body.dataset.held")
    await says(board, task, "After")
    await says(board, await harness.active(name="meanwhile-two"), "Hello")
    await page.sees("2 changed", ".list-head")
    await page.tab.evaluate("release()")
    await page.sees("After", "tbody")
    await page.sees("1 changed", ".list-head")
    assert page.tab.errors == []


async def test_rows_stay_until_another_page_is_there(board: Board) -> None:
    """Of two pages that were asked for, the last one is shown; one that cannot be read leaves rows and selection."""
    created = await board.harness.bob.post("/task-batches", json={"tasks": [_new(number) for number in range(60)]})
    assert created.json()["created"] == 60
    page = await board.open("/tasks?q=owner:me", "bob")
    await page.tab.until(f"{ROWS}.length === 50")
    first = await page.tab.evaluate(ROWS)
    await page.click("tbody input")
    await page.tab.evaluate(_HOLDING)
    await page.click(".pages button", "Next")
    await page.tab.until("document.body.dataset.held")
    assert await page.tab.evaluate(f"{_FIRST} && {ROWS}.length === 50")
    await page.tab.evaluate("hold = false")
    await page.tab.press(".")
    await page.until_reads("/tasks?", 3)
    await page.tab.evaluate("release()")
    await page.tab.evaluate(NEXT_FRAME)
    assert await page.tab.evaluate(f"{_FIRST} && {ROWS}.join()") == ",".join(first)
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*after=*"])
    await page.click(".pages button", "Next")
    await page.sees("The server cannot be reached.", ".notice.bad")
    await page.sees("1 task selected", ".selection")
    assert await page.tab.evaluate(f"{_FIRST} && {ROWS}.join()") == ",".join(first)
    assert await page.violations() == []
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.click(".notice button", "Try again")
    await page.tab.until(f"location.search.includes('after=') && {ROWS}.length === 10")
    assert await page.text(".notice") == ""
    assert page.tab.errors == []


async def test_the_order_is_a_choice(board: Board) -> None:
    """The list says its order as a choice, not at a column; what an order cannot have with it is not offered."""
    old = await board.harness.active(display_name="Old, but changed")
    await board.harness.active(display_name="New")
    await board.harness.worker.until_row("SELECT count(*) FROM task_index_changes", is_=0)
    await board.harness.worker.database.execute(
        "UPDATE task_index SET changed_at = changed_at + interval '1 hour' WHERE task_id = $1", uuid.UUID(old["id"])
    )
    page = await board.open("/tasks?q=status:active")
    await page.tab.until(f"{ROWS}[0] === 'New'")
    assert await page.tab.evaluate("document.querySelectorAll('[aria-sort]').length") == 0
    await page.tab.evaluate("document.querySelector('.order input').focus()")
    await page.tab.press("ArrowDown")
    await page.tab.until(f"location.search === '?q=status:active&sort=changed' && {ROWS}[0] === 'Old, but changed'")
    await page.tab.press("ArrowUp")
    await page.tab.until(f"location.search === '?q=status:active' && {ROWS}[0] === 'New'")
    await page.go("/tasks?q=changed:%3C1d")
    await page.tab.until("document.querySelector('.order input')?.disabled")
    assert await page.tab.evaluate("document.querySelector('.order :checked + span').innerText") == "Last changed"
    assert page.tab.errors == []


async def test_many_are_changed_at_once_and_those_that_could_not_are_named(board: Board) -> None:
    """A selection, then all that match, with a question that names the number, progress, and the refusals."""
    harness = board.harness
    for number in range(3):
        await harness.active(display_name=f"Many {number}")
    await harness.create(display_name="Not yet started")
    page = await board.open("/tasks?q=owner:me")
    await page.sees("Many 2", "tbody")
    await page.click("thead input")
    await page.sees("selected", ".list-head")
    count = await page.tab.evaluate(f"{ROWS}.length")
    await page.click(".list-head button", "Pause")
    await page.sees(f"Pause {count} tasks?", "dialog")
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.click(".list-head button", "Pause")
    await page.click("dialog button", "Pause")
    await page.sees("Paused", ".job")
    await page.sees("could not be changed", ".job")
    await page.sees("pausing", "tbody")
    await page.tab.call("Page.reload")  # as somebody who comes back to the page
    await page.sees("could not be changed", ".job")
    await page.click(".job button", "Dismiss")
    await page.tab.call("Page.reload")
    await page.tab.until("document.querySelector('tbody tr')")
    await page.until_reads("/task-actions?")
    await page.tab.evaluate(NEXT_FRAME)
    assert await page.tab.evaluate("document.querySelector('.job')") is None
    await page.tab.until("!document.querySelector('.job')")
    assert page.tab.errors == []


async def test_template_and_cost_are_in_each_row_at_any_width(board: Board) -> None:
    """What columns say in a wide window is below the name on a phone, and at 200 %."""
    task = await board.harness.active(display_name="Costs something")
    used = {"input_tokens": 1_200, "output_tokens": 300, "cost": {"amount": "0.12", "currency": "USD"}}
    await board.harness.worker.report(make_report("agent.usage", uuid.UUID(task["id"]), build_number=1, **used))
    await status(board, task["id"], "working", "At it", uri="https://github.com/acme/app/pull/7")
    page = await board.open("/tasks?q=name:costs")
    await page.go(f"/tasks?q=name:{task['name']}")
    row = f"tr[data-id='{task['id']}']"
    for width, scale in ((1280, 1), (900, 2), (640, 2), (390, 1)):
        await page.tab.resize(width, 900, scale=scale)
        for text in ("Costs something", "Claude Code", "$0.12", "At it", "acme/app#7"):
            await page.sees(text, row)
        cells = f'[...document.querySelectorAll("{row} :is(.template, .cost, .under)")]'
        shown = f"{cells}.filter((each) => each.checkVisibility() && each.clientWidth >= 30).length"
        assert await page.tab.evaluate(shown) == 2, width
        assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert await page.violations() == [], width
    assert page.tab.errors == []


async def test_two_browsers_see_each_others_changes(board: Board) -> None:
    """What one person does in one browser shows in that of another, without a reload."""
    harness = board.harness
    task = await harness.active(display_name="Shared")
    member, admin = await board.open("/tasks"), await board.open("/tasks", "carol")
    for page in (member, admin):
        await page.sees("Shared", "tbody")
    row = f"tr[data-id='{task['id']}']"
    await admin.click(f"{row} input")
    await admin.click(".list-head button", "Delete")
    await admin.sees("This cannot be undone", "dialog")
    await admin.click("dialog button", "Delete 1 task")
    await member.sees("deleted", row)
    await admin.sees("Deleted 1 task", ".job")
    assert member.tab.errors == admin.tab.errors == []


async def test_views_are_saved_in_the_browser(board: Board) -> None:
    """A filter is saved under a name, opened again with one click, and removed."""
    await board.harness.create()
    page = await board.open("/tasks?q=owner:me+state:idle")
    await page.click("button", "Save view")
    await page.sees("Your tasks whose agent is idle", "dialog")
    assert await page.violations() == []
    await page.tab.type("My idle ones")
    await page.sees("My idle ones", ".views")
    await page.go("/tasks?q=state:idle+owner:me")
    await page.click("button", "Save view")
    await page.sees("Your tasks whose agent is idle", "dialog")
    await page.tab.type("All")  # as one is named that is always there
    await page.tab.until("document.querySelector('[aria-label=\"Remove the view All\"]')")
    await page.click("[aria-label='Remove the view All']")
    await page.tab.until("!document.querySelector('[aria-label=\"Remove the view All\"]')")
    await page.click(".views a", "All")
    await page.tab.until("location.search === ''")
    await page.go("/tasks")
    await page.click(".views a", "My idle ones")
    await page.tab.until("location.search === '?q=owner:me+state:idle'")
    await page.click("[aria-label='Remove the view My idle ones']")
    await page.tab.until("!document.querySelector('.views').textContent.includes('My idle')")
    assert page.tab.errors == []


async def test_pages_follow_each_other(board: Board) -> None:
    """More tasks than one page shows are on the next, whose address can be shared."""
    harness = board.harness
    created = await harness.alice.post(
        "/task-batches",
        json={"tasks": [_new(number) for number in range(60)]},
    )
    assert created.json()["created"] == 60
    page = await board.open("/tasks?q=owner:me")
    await page.tab.until(f"{ROWS}.length === 50")
    first = await page.tab.evaluate(ROWS)
    await page.click(".pages button", "Next")
    await page.tab.until("location.search.includes('after=') && document.querySelectorAll('tbody tr').length < 50")
    assert not set(first) & set(await page.tab.evaluate(ROWS))
    await page.click(".pages button", "First")
    await page.tab.until(f"{ROWS}.join() === {first!r}.join()")
    assert page.tab.errors == []


def _new(number: int) -> dict[str, str]:
    version = "00000000-0000-4000-8000-0000000000c1"
    return {"template_version_id": version, "input": f"Number {number}", "display_name": f"Page {number}"}


async def test_deleted_tasks_say_who_deleted_them(board: Board) -> None:
    """The page of a task that was deleted leads to the list of deleted tasks, where names stay text."""
    hostile = "<img src=x onerror=alert(1)> <b>x</b>"
    task = await board.harness.active(name="soon-gone", display_name=hostile)
    page = await board.open("/tasks/alice/soon-gone")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.press("c")
    await page.tab.until("location.search === '?from=alice/soon-gone' && document.activeElement?.id === 'prompt'")
    assert await page.tab.evaluate("document.activeElement.value") == task["initial_prompt"]
    await page.tab.evaluate("history.back()")
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    assert (await board.harness.carol.delete("/tasks/alice/soon-gone")).status_code == 202
    await page.sees("The task was deleted.")
    await page.click("a.button", "Deleted tasks")
    await page.sees(hostile, ".deleted .name")
    await page.sees("Deleted by carol", ".deleted")
    assert await page.tab.evaluate("document.querySelectorAll('main img, .name b').length") == 0
    await page.go("/deleted?q=name:no-such-name")
    await page.sees("No deleted tasks")
    await page.go("/deleted?q=status:active")
    await page.sees("Invalid task search query.", "[role=alert]")
    assert page.tab.errors == []


async def test_the_filter_leaves_keys_to_an_input_method(board: Board) -> None:
    """Enter takes what the method offers, and does not filter by what is half written."""
    page = await board.open("/tasks")
    await page.tab.press("/")
    await page.tab.until("document.activeElement.matches('.filter input')")
    await page.tab.insert("name:nihon")
    for composing in ("isComposing: true", "keyCode: 229"):
        pressed = f"new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {composing}}})"
        assert await page.tab.evaluate(f"document.activeElement.dispatchEvent({pressed})")
    assert await page.tab.evaluate("location.search") == ""
    await page.tab.press("Enter")
    await page.tab.until("location.search === '?q=name:nihon'")
    assert page.tab.errors == []
