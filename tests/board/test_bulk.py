"""What is done to many tasks at once in a real browser: the question, the progress, who could not, and stopping it."""

from __future__ import annotations

import uuid

import pytest

from tests.board.pages import NEXT_FRAME, Board, Page
from tests.harness.worker import VERSION, make_report

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time to start
NAMES = "[...document.querySelectorAll('tbody tr .name')].map((name) => name.textContent).sort()"
NO_DIALOG = "!document.querySelector('dialog')"
MANY = 60
"""More than a page of the list has."""


async def select_many(board: Board, user: str) -> Page:
    """Create more tasks of this user, who has no others, than a page shows, and select all that match."""
    tasks = [{"template_version_id": str(VERSION), "input": f"Number {number}"} for number in range(MANY)]
    created = await board.harness.clients[user].post("/task-batches", json={"tasks": tasks})
    assert created.json()["created"] == MANY
    page = await board.open("/tasks?q=owner:me", user)
    await page.sees(f"{MANY}", ".list-head .count")
    await page.click("thead input")
    await page.sees("50 tasks selected", ".selection")
    await page.click(".selection button", "Select all that match")
    await page.sees(f"All that match ({MANY})", ".selection")
    return page


async def ask_for(page: Page, action: str, question: str) -> None:
    """Press a button of the selection bar, and wait for its question."""
    await page.click(".selection .acts button", action)
    await page.sees(question, "dialog h2")


async def test_agents_are_interrupted_and_who_could_not_is_named(board: Board) -> None:
    """Each agent that works is told to stop; a task without one is named with a link to it and the reason."""
    harness = board.harness
    works = uuid.UUID((await harness.active(name="works"))["id"])
    await harness.worker.report(make_report("app.status", works, build_number=1, state="working", message="Counting"))
    await harness.create(name="not-started")
    page = await board.open("/tasks?q=owner:me+name:works")
    await page.sees("Counting", "tbody")
    await page.go("/tasks?q=owner:me")
    await page.sees("Counting", "tbody")
    await page.click("thead input")
    await ask_for(page, "Interrupt", "Interrupt 2 tasks?")
    await page.sees("works", "dialog .names")
    await page.sees("not-started", "dialog .names")
    held = await harness.worker.block_writes("tasks")
    await page.click("dialog button", "Interrupt 2 tasks")
    await page.sees("Interrupting 2 tasks", ".job")
    place = "document.querySelector('tbody').getBoundingClientRect().top + scrollY"
    before = await page.tab.evaluate(place)
    await held.rollback()
    await page.sees("Interrupted 1 task", ".job")
    await page.sees("1 could not", ".job-line")
    await page.sees("interrupting", "tbody")
    await page.sees("1 task could not be changed", ".job")
    assert await page.tab.evaluate(place) == before
    await page.click(".job summary")
    await page.sees("not-started", ".refused")
    assert await page.text(".refused .soft") != ""
    assert await page.tab.evaluate("document.querySelector('.refused a').pathname") == "/tasks/alice/not-started"
    await harness.worker.until(lambda: harness.worker.requests_of(works, "agent.interrupt"))
    assert await page.violations() == []
    assert page.tab.errors == []


async def test_a_message_is_sent_to_each_of_the_selected(board: Board) -> None:
    """Nothing is sent before text and question are confirmed; then each gets the text as written, others nothing."""
    harness, text = board.harness, "Stop & <b>report</b>\n`twice`"
    ids = [uuid.UUID((await harness.active(name=f"hears-{number}"))["id"]) for number in range(2)]
    await harness.active(name="hears-nothing")
    page = await board.open("/tasks?q=name:hears")
    for task_id in ids:
        await page.click(f"tr[data-id='{task_id}'] input")
    await page.sees("2 tasks selected", ".selection")
    await ask_for(page, "Send", "Send to 2 selected tasks")
    await page.tab.press("Escape")
    await page.tab.until(NO_DIALOG)
    await ask_for(page, "Send", "Send to 2 selected tasks")
    await page.click("dialog button", "Go on")  # without a text, the field asks for one
    await page.tab.until("document.activeElement.matches('dialog textarea')")
    await page.tab.insert(text)
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Send to 2 tasks?", "dialog h2")
    assert await page.tab.evaluate("document.querySelector('dialog blockquote').textContent") == text
    await page.click("dialog button", "Cancel")
    await page.tab.until(NO_DIALOG)
    assert await harness.worker.database.fetchval("SELECT count(*) FROM inputs WHERE content = $1", text) == 0
    await page.sees("2 tasks selected", ".selection")
    await ask_for(page, "Send", "Send to 2 selected tasks")
    await page.tab.insert(text)
    await page.tab.press("Enter", ctrl=True)
    await page.click("dialog button", "Send to 2 tasks")
    await page.sees("Sent to 2 tasks")
    rows = await harness.worker.database.fetch("SELECT task_id FROM inputs WHERE content = $1", text)
    assert sorted(row["task_id"] for row in rows) == sorted(ids)
    assert page.tab.errors == []


async def test_what_was_written_outlives_a_refusal(board: Board) -> None:
    """A message that could not be sent is in its field again, below the reason; leaving the page ends the question."""
    await board.harness.active(name="listens")
    page = await board.open("/new")
    await page.click(".bar nav a", "Tasks")
    await page.sees("All tasks")
    await page.tab.until("document.querySelector('tbody tr')")
    await page.click("tbody input")
    await ask_for(page, "Send", "Send to 1 selected task")
    await page.tab.insert("A long story")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/task-actions"])
    await page.tab.press("Enter", ctrl=True)
    await page.sees("The server cannot be reached.", "dialog .problem")
    assert await page.tab.evaluate("document.querySelector('dialog textarea').value") == "A long story"
    assert await page.violations() == []
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Send to 1 task?", "dialog h2")
    await page.tab.evaluate("history.back()")
    await page.tab.until(f"document.querySelector('.page.new') && {NO_DIALOG}")
    assert page.tab.errors == []


_HELD = """
    const real = window.fetch;
    window.fetch = (url, options) => {
        if (!String(url).endsWith("/task-actions") || JSON.parse(options.body).dry_run) return real(url, options);
        return new Promise((done) => (window.refuse = () => {
            const answer = { message: "Three actions are under way." };
            done(new Response(JSON.stringify(answer), { status: 409 }));
        }));
    };
"""
"""Holds what is confirmed, until the page is told to refuse it."""


async def confirm_delete(page: Page) -> None:
    """Have the only task of a list deleted, and wait until that is asked of the API, which is held."""
    await page.click("tbody input")
    await ask_for(page, "Delete", "Delete 1 task?")
    await page.click("dialog button", "Delete 1 task")
    await page.becomes("window.refuse !== undefined")


async def test_a_refusal_is_told_on_whatever_page(board: Board) -> None:
    """Who has confirmed an action and gone to another page learns that nothing was done; who signed out does not."""
    await board.harness.active(name="refuses-all")
    page = await board.open("/tasks?q=name:refuses-all")
    await page.tab.evaluate(f"{{{_HELD}}}")
    await confirm_delete(page)
    await page.click(".bar nav a", "Fleet")
    await page.tab.until("document.querySelector('.page.fleet')")
    await page.tab.evaluate("refuse(), delete window.refuse, 0")
    await page.sees("Delete 1 selected task: Three actions are under way.", ".toast.bad")
    await page.click(".toast button")
    await page.tab.evaluate("history.back()")
    await confirm_delete(page)
    await page.click(".bar .menu summary")
    await page.click(".menu-items button", "Sign out")
    await page.tab.until("document.getElementById('token')")
    await page.tab.evaluate("refuse(), 0")
    await page.tab.evaluate("new Promise((done) => setTimeout(done))")
    assert await page.tab.evaluate("document.querySelector('.toast') === null")
    assert page.tab.errors == []


async def test_a_task_that_is_gone_does_not_count(board: Board) -> None:
    """The question names how many there still are, and says how many of the selection are not."""
    harness = board.harness
    for name in ("stays-here", "goes-away"):
        await harness.active(name=name, labels={"kind": "selected"})
    page = await board.open("/tasks?q=label:kind%3Dselected")
    await page.tab.until(f"{NAMES}.length === 2")
    await page.click("thead input")
    assert (await harness.alice.delete("/tasks/me/goes-away")).status_code == 202
    await page.sees("deleted", "tbody")
    await ask_for(page, "Pause", "Pause 1 task?")
    await page.sees("1 task of your selection no longer exists.", "dialog")
    await page.tab.press("Escape")
    await page.tab.until(NO_DIALOG)
    assert (await harness.alice.delete("/tasks/me/stays-here")).status_code == 202
    await page.tab.until("document.querySelectorAll('tbody tr.gone').length === 2")
    await page.click(".selection .acts button", "Pause")
    await page.sees("No task matches any more.", ".toast.bad")
    assert await page.tab.evaluate(NO_DIALOG)
    assert page.tab.errors == []


async def test_all_that_match_are_deleted_with_their_progress(board: Board) -> None:
    """More than the page shows: the question names number and filter, a bar shows the progress, and none is left."""
    page = await select_many(board, "bob")
    await ask_for(page, "Delete", f"Delete {MANY} tasks?")
    await page.sees("owner:me", "dialog code")
    await page.sees(f"and {MANY - 5} more", "dialog .names")
    await page.sees("This cannot be undone", "dialog")
    await page.tab.press("Enter")  # the focus is not on what destroys
    await page.tab.until(NO_DIALOG)
    await page.sees(f"All that match ({MANY})", ".selection")
    assert (await board.harness.bob.get("/task-totals", params={"q": "owner:me"})).json()["total"] == MANY
    await ask_for(page, "Delete", f"Delete {MANY} tasks?")
    held = await board.harness.worker.block_writes("tasks")
    await page.click("dialog button", f"Delete {MANY} tasks")
    await page.sees(f"Deleting {MANY} tasks", ".job")
    await page.sees("0 done", ".job")
    bar = await page.tab.evaluate("(({value, max}) => [value, max])(document.querySelector('.job progress'))")
    assert bar == [0, MANY]
    assert await page.violations() == []
    place = "document.querySelector('tbody').getBoundingClientRect().top + scrollY"
    before = await page.tab.evaluate(place)
    await held.rollback()
    await page.sees(f"Deleted {MANY} tasks", ".job")
    assert await page.tab.evaluate("document.querySelector('.job :is(progress, .refused)')") is None
    assert await page.tab.evaluate(place) == before
    await page.tab.until("document.querySelectorAll('tbody tr.gone').length === 50")
    await page.tab.press(".")
    await page.sees("No task matches", ".empty")
    assert page.tab.errors == []


TICKED = "[...document.querySelectorAll('tbody input:checked')].map((each) => each.closest('tr').dataset.id)"


async def test_all_that_match_without_one_are_those_that_are_ticked(board: Board) -> None:
    """Unticking a row of a later page, by mouse or key, leaves the rows of that page, none of the page before."""
    page = await select_many(board, "bob")
    await page.click(".pages button", "Next 50")
    await page.tab.until(f"document.querySelectorAll('tbody tr').length === {MANY - 50}")
    assert await page.tab.evaluate("document.querySelector('thead input').checked")
    await page.click("tbody tr:nth-child(1) input")
    await page.tab.until(f"document.querySelectorAll('tbody input:checked').length === {MANY - 51}")
    await page.sees(f"{MANY - 51} tasks selected", ".selection")
    await ask_for(page, "Delete", f"Delete {MANY - 51} tasks?")
    asked = await page.tab.evaluate("[...document.querySelectorAll('dialog .names b')].map((each) => each.innerText)")
    hrefs = await page.tab.evaluate("[...document.querySelectorAll('tbody a.name')].map((each) => each.pathname)")
    assert asked
    assert {f"/tasks/bob/{name}" for name in asked} <= set(hrefs)
    await page.tab.press("Escape")
    await page.tab.until(NO_DIALOG)
    await page.click("thead input")
    await page.click(".selection button", "Select all that match")
    await page.tab.evaluate("document.querySelector('tbody a.name').focus()")
    await page.tab.press("x")
    await page.sees(f"{MANY - 51} tasks selected", ".selection")
    assert len(await page.tab.evaluate(TICKED)) == MANY - 51
    await page.click("thead input")
    await page.click(".selection button", "Select all that match")
    await page.tab.press("a")  # the page is selected, so the key selects none of it
    await page.tab.until("!document.querySelector('.selection')")
    assert await page.tab.evaluate(TICKED) == []
    await page.click("thead input")
    await page.click(".selection button", "Select all that match")
    await ask_for(page, "Delete", f"Delete {MANY} tasks?")
    await page.click("dialog button", f"Delete {MANY} tasks")
    await page.sees(f"Deleted {MANY} tasks", ".job")
    assert page.tab.errors == []


async def test_what_matches_since_the_question_stays(board: Board) -> None:
    """A task that matches while the question is open is not among those that somebody has confirmed."""
    harness = board.harness
    page = await select_many(board, "bob")
    await ask_for(page, "Delete", f"Delete {MANY} tasks?")
    await harness.create(harness.bob, name="late", input="Made during the question")
    await page.click("dialog button", f"Delete {MANY} tasks")
    await page.sees(f"Deleted {MANY} tasks", ".job")
    left = (await harness.bob.get("/tasks", params={"q": "owner:me"})).json()["tasks"]
    assert [task["name"] for task in left] == ["late"]
    assert (await harness.bob.delete("/tasks/me/late")).status_code == 202
    assert page.tab.errors == []


async def test_many_are_changed_without_a_mouse(board: Board) -> None:
    """Tab, Space and Enter select, ask and confirm, for what can be undone and for what cannot."""
    harness = board.harness
    for name in ("by-key-1", "by-key-2"):
        await harness.active(name=name, labels={"kind": "keys"})
    page = await board.open("/tasks?q=label:kind%3Dkeys")
    await page.tab.until(f"{NAMES}.length === 2")
    await page.tab_to("thead input")
    await page.tab.press(" ")
    await page.sees("2 tasks selected", ".selection")
    await page.tab_to(".selection .acts button", "Pause")
    await page.tab.press("Enter")
    await page.sees("Pause 2 tasks?", "dialog h2")
    await page.tab.press("Enter")
    await page.sees("Paused 2 tasks")
    for name in ("by-key-1", "by-key-2"):
        assert (await harness.get(name))["workspace_build_number"] == 2
    await page.tab_to("thead input")
    await page.tab.press(" ")
    await page.sees("2 tasks selected", ".selection")
    await page.tab_to(".selection .acts button", "Delete")
    await page.tab.press("Enter")
    await page.sees("Delete 2 tasks?", "dialog h2")
    await page.tab_to("dialog button", "Delete 2 tasks")
    await page.tab.press("Enter")
    await page.sees("Deleted 2 tasks")
    await page.tab.until("document.querySelectorAll('tbody tr.gone').length === 2")
    assert page.tab.errors == []


async def test_a_job_is_stopped_and_says_what_it_left(board: Board) -> None:
    """Stop ends a job after what is under way; the page says how many were changed, and how many left as they were."""
    page = await select_many(board, "carol")
    await ask_for(page, "Delete", f"Delete {MANY} tasks?")
    held = await board.harness.worker.block_writes("tasks")
    await page.click("dialog button", f"Delete {MANY} tasks")
    begun = "SELECT bool_and(started_at IS NOT NULL) FROM task_actions WHERE finished_at IS NULL"
    await board.harness.worker.until_row(begun)
    await page.click(".job button", "Stop")
    await page.sees("canceling", ".job")
    assert await page.tab.evaluate("document.querySelector('.job button').disabled")
    await held.rollback()
    await page.sees("left as they were", ".job")
    (job,) = (await board.harness.carol.get("/task-actions")).json()["actions"]
    assert job["state"] == "canceled"
    assert 0 < job["pending"] == MANY - job["succeeded"] - job["refused"]
    await page.sees(f"Deleted {job['succeeded']} tasks", ".job")
    await page.sees(f"{job['pending']} left as they were", ".job-line")
    await page.click(".job button", "Dismiss")
    await page.tab.until("!document.querySelector('.job')")
    assert page.tab.errors == []


async def test_all_that_could_not_be_changed_are_there(board: Board) -> None:
    """The panel says how many it does not show, and shows them; it is there with the rows, not later."""
    client, many = board.harness.bob, 120
    tasks = [{"template_version_id": str(VERSION), "input": f"Refuses {number}"} for number in range(many)]
    ids = [each["task"]["id"] for each in (await client.post("/task-batches", json={"tasks": tasks})).json()["results"]]
    assert (await client.post("/task-actions", json={"action": "interrupt", "ids": ids})).status_code == 202
    await board.harness.worker.until_row("SELECT count(*) FROM task_actions WHERE refused = $1", many)
    page = await board.open("/tasks", "bob")
    await page.sees(f"{many} tasks could not be changed", ".job")
    await page.click(".job summary")
    await page.sees("Show more: 20 are not shown", ".job")
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/task-actions?*"}])  # held until disabled
    await page.go("/tasks?q=name:refuses")
    await page.until_reads("/tasks?")
    await page.tab.evaluate(NEXT_FRAME)
    assert await page.tab.evaluate("document.querySelector('tbody')") is None
    await page.tab.call("Fetch.disable")
    await page.tab.until("document.querySelector('tbody tr')")
    assert await page.tab.evaluate("document.querySelectorAll('.refused li').length") == 100
    await page.click(".job summary")
    await page.click(".job button", "Show more")
    await page.tab.until(f"document.querySelectorAll('.refused li').length === {many}")
    await page.tab.until(
        "![...document.querySelectorAll('.job button')].some((each) => each.innerText.startsWith('Show'))"
    )
    assert page.tab.errors == []


async def test_a_hidden_tab_does_not_ask_how_far_a_job_is(board: Board) -> None:
    """Its progress is read once somebody looks again, and no connection is held for it meanwhile."""
    harness = board.harness
    await harness.active(name="unseen")
    page = await board.open("/tasks?q=owner:me+name:unseen")
    await page.tab.evaluate("Object.defineProperty(document, 'hidden', {configurable: true, get: () => true}), 0")
    await page.click("thead input")
    await ask_for(page, "Pause", "Pause 1 task?")
    await page.click("dialog button", "Pause 1 task")
    await page.sees("Pausing 1 task")
    newest = (await harness.alice.get("/task-actions")).json()["actions"][0]
    assert newest["action"] == "pause"
    done = "SELECT finished_at IS NOT NULL FROM task_actions WHERE id = $1"
    await harness.worker.until_row(done, uuid.UUID(newest["id"]))
    progress = f"/task-actions/{newest['id']}"
    assert await page.reads(progress) == []
    await page.tab.evaluate("delete document.hidden, document.dispatchEvent(new Event('visibilitychange')), 0")
    await page.sees("Paused 1 task")
    assert await page.reads(progress) != []
    assert page.tab.errors == []


async def test_what_is_not_confirmed_may_still_be_changed(board: Board) -> None:
    """A job that ended early says so, and names these tasks beside those that it left as they were."""
    harness = board.harness
    ids = [(await harness.create(name=name))["id"] for name in ("may-change", "stays")]
    made = (await harness.alice.post("/task-actions", json={"action": "interrupt", "ids": ids})).json()
    done = "SELECT finished_at IS NOT NULL FROM task_actions WHERE id = $1"
    await harness.worker.until_row(done, uuid.UUID(made["id"]))
    for change in (
        "task_actions SET succeeded = 0, refused = 0, unconfirmed = 1, canceled_at = now() WHERE id = $1",
        "task_action_tasks SET status = NULL, message = NULL WHERE action_id = $1 AND ordinal = 1",
        "task_action_tasks SET status = 503, message = 'Maybe.' WHERE action_id = $1 AND ordinal = 0",
    ):
        await harness.worker.database.execute(f"UPDATE {change}", uuid.UUID(made["id"]))
    page = await board.open("/tasks")
    await page.sees("1 task may still be changed", ".job summary")
    assert "1 not confirmed · 1 left as they were" in await page.text(".job-line")
    await page.click(".job summary")
    await page.sees("Maybe.", ".refused")
    assert page.tab.errors == []
