"""The page of the fleet in a real browser: what holds it up, pools and runners, rates, and what only operators see."""

from __future__ import annotations

import json
import uuid

import pytest
from aio_pika.abc import AbstractIncomingMessage

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import Origin
from tests.api.test_dead_letters import bury
from tests.board.pages import Board, Page
from tests.board.test_task import prefer
from tests.harness.api import OTHER
from tests.harness.worker import ALICE, ORGANIZATION, WorkerHarness, make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
READY = "document.querySelector('.page.fleet[data-ready]')"
DRAWN = """(async () => {
    const named = (end) => performance.getEntriesByType("resource").find((each) => each.name.endsWith(end)).name;
    const { queuesView } = await import(named("/fleet/system.js"));
    const { DeadLetters } = await import(named("/fleet/letters.js"));
    const { html, render } = await import(named("/lit-html/lit-html.js"));
    const since = new Date(Date.now() - 200_000).toISOString();
    const letters = new DeadLetters(() => {}, new AbortController().signal);
    letters.failed = { status: 403, message: "The API's RabbitMQ user may not read the dead letters.", detail: "" };
    const drawn = document.body.appendChild(document.createElement("div"));
    render(html`${queuesView([{ name: "q", messages: 12, consumers: 0, waiting_since: since }], [])}
        ${letters.view({ messages: 3, oldest_at: null, reasons: [] })}`, drawn);
    return drawn.innerText;
})()"""
"""What the page would show of a queue that fills, and of dead letters that it may not read."""
LETTERS = "document.querySelectorAll('.letters > li:not(.gone)').length"


async def ack(message: AbstractIncomingMessage) -> None:
    """Take a work request, and do nothing about it."""
    await message.ack()


async def test_the_page_says_what_holds_the_fleet_up(board: Board) -> None:
    """The heading is the bottleneck; it changes by itself when a runner connects and when a task is taken up."""
    harness, worker = board.harness, board.harness.worker
    await worker.database.execute(
        f"""INSERT INTO task_rates (hour, organization_id, owner_id, created, completed, failed)
        VALUES (date_trunc('hour', now()) - interval '3 hours', '{ORGANIZATION}', '{ALICE}', 12, 9, 2)"""
    )
    assert (await worker.ask({"type": "runner.hello", "runner": "runner-3", "pool": "default"}))["ok"]
    task_id = uuid.UUID((await harness.create(name="waits-long"))["id"])
    page = await board.open("/fleet")
    await page.tab.until(READY)
    await page.sees("1 task waits: no runner of pool default is connected", "h1")
    await page.sees("not connected", ".runners")
    assert await page.tab.evaluate("document.querySelectorAll('.runners td.number')[1].innerText") == "\u2013"
    assert "queued" not in (await page.text(".pool-head")).lower(), "how much others have queued"
    await page.sees("any runner of pool default", ".waits")
    await page.sees("13", ".chart-totals")
    assert await page.tab.evaluate("document.querySelectorAll('.chart-plot rect.failed').length") == 24
    queue = await worker.channel.get_queue(f"{worker.prefix}.work.runner-3", ensure=False)
    tag = await queue.consume(ack)
    await page.sees("1 task waits for pool default", "h1")
    await page.sees("connected", ".runners")
    claim = {"type": "build.claim", "task_id": str(task_id), "build_number": 1, "runner": "runner-3"}
    assert (await worker.ask(claim))["granted"]
    await worker.make_active(task_id)
    await page.sees("1 agent connected, nothing of yours waits", "h1")
    assert await page.tab.evaluate("document.querySelector('.waits')") is None
    assert "Dead letters" not in await page.tab.evaluate("[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    await queue.cancel(tag)
    assert page.tab.errors == []


_NOT_ALL_KNOWN = """
    const real = window.fetch;
    window.fetch = async (...given) => {
        const response = await real(...given);
        const mode = localStorage.getItem("mode");
        if (!mode || !String(given[0]).endsWith("/api/v2/fleet")) return response;
        const known = await response.json();
        if (mode === "broker") known.broker = false;
        for (const pool of known.pools) for (const runner of pool.runners) runner.queue = null;
        return new Response(JSON.stringify(known));
    };
"""
"""Takes the queues of runners from the page: it believes that the broker is away, or that there are too many."""


async def test_a_runner_whose_queue_is_not_known_is_not_called_unconnected(board: Board) -> None:
    """What nobody knows, because the broker is silent or has too many queues to look at all, is no bottleneck."""
    worker = board.harness.worker
    assert (await worker.ask({"type": "runner.hello", "runner": "runner-4", "pool": "default"}))["ok"]
    task_id = uuid.UUID((await board.harness.create(name="waits-unknown"))["id"])
    page = await board.open("/fleet")
    await page.sees("1 task waits: no runner of pool default is connected", "h1")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_NOT_ALL_KNOWN)
    for mode in ("broker", "some"):
        await page.tab.evaluate(f"localStorage.setItem('mode', '{mode}')")
        await page.go("/fleet")
        await page.tab.until(READY)
        assert await page.text("h1") == "1 task waits for pool default"
        assert ("RabbitMQ does not answer" in await page.text()) == (mode == "broker")
    await worker.make_active(task_id)
    assert page.tab.errors == []


async def test_tasks_that_wait_stay_under_the_pointer(board: Board) -> None:
    """Whoever points at a task clicks on that one, also when one that waited before it is taken up and others come."""
    harness, worker = board.harness, board.harness.worker
    first, second = [(await harness.create(name=f"points-{n}", display_name=f"points-{n}"))["id"] for n in range(2)]
    page = await board.open("/fleet")
    await page.tab.resize(1280, 900)
    await page.tab.until(READY)
    await page.sees("points-1", ".waits")
    await page.point(".waits a[href='/tasks/alice/points-1']")
    under = "document.querySelector('.waits tr:hover a')?.pathname"
    assert await page.tab.evaluate(under) == "/tasks/alice/points-1"
    await worker.make_active(uuid.UUID(first))
    await harness.create(name="points-2", display_name="points-2")
    await page.sees("1 more when you leave this list")
    await page.sees("waits no more", ".waits")
    assert await page.tab.evaluate(under) == "/tasks/alice/points-1"
    assert await page.violations() == []
    await page.point(".brand")
    await page.sees("points-2", ".waits")
    assert "points-0" not in await page.text(".waits")
    await worker.make_active(uuid.UUID(second))
    assert page.tab.errors == []


async def operated(board: Board) -> WorkerHarness:
    """Make ``carol`` an operator, with an empty queue of dead letters that nobody else consumes; return the worker."""
    worker = board.harness.worker
    await worker.stop_dead_letters()
    await (await worker.channel.get_queue(f"{worker.prefix}.dead", ensure=False)).purge()
    await worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
    return worker


async def test_operators_see_workers_queues_and_dead_letters(board: Board) -> None:
    """Who is an admin of all organizations sees what no tenant does, with the words of each reason."""
    worker = await operated(board)
    await worker.report({"type": "no.such.type"})
    await worker.until_row("SELECT sum(letters) FROM dead_letter_rates", is_=1)
    page = await board.open("/fleet", "carol")
    await page.tab.until(READY)
    await page.sees("The type is not one of this contract.", ".letters")
    await page.sees('{"type": "no.such.type"}', ".letters")
    await page.sees("1, oldest", ".fleet-letters .head")
    await page.sees(f"{worker.prefix}.reports", ".fleet-system")
    await page.sees("up to date", ".fleet-system")
    await page.tab.evaluate("document.querySelectorAll('.fleet-letters details').forEach((each) => each.open = true)")
    for width, scale in ((1280, 1), (390, 2), (640, 2)):
        await page.tab.resize(width, 900, scale=scale)
        for scheme in ("light", "dark"):
            await prefer(page, scheme)
            assert await page.violations() == [], (width, scheme)
            assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
    await page.tab.press("y")
    await page.sees('"sees_all": true', "dialog .raw")
    await page.sees("taskherd fleet", "dialog .command")
    await page.sees("/api/v2/fleet", "dialog .command:nth-of-type(2)")
    await page.tab.press("Escape")
    await page.click("[aria-label='Commands and raw JSON: Dead letters']")
    await page.sees("taskherd dead list --limit 100", "dialog .command")
    await page.sees("no.such.type", "dialog .raw")
    assert page.tab.errors == []


async def test_ages_and_missing_rights_are_said(board: Board) -> None:
    """A queue of workers says how long its messages wait at most; an API that may not read says what to do."""
    await operated(board)
    page = await board.open("/fleet", "carol")
    await page.tab.until(READY)
    shown = await page.tab.evaluate(DRAWN)
    assert "12 waiting for up to 3 min" in shown
    assert "The API's RabbitMQ user may not read the dead letters." in shown
    assert "taskherd dead replay ID" in shown
    assert page.tab.errors == []


async def test_dead_letters_are_replayed_by_selection_and_by_reason(board: Board) -> None:
    """A question comes first, which names what it means to replay what nobody trusts; the answer says what was kept."""
    worker = await operated(board)
    task_id = uuid.UUID((await board.harness.active(name="replayed"))["id"])
    for number in range(3):
        report = make_report(
            "app.status", task_id, build_number=1, state="idle", message=f"Replayed {number}", seq=number
        )
        await bury(worker, report)
    await bury(worker, b"not trusted\nsecond line", DeadLetterReason.UNTRUSTED_SENDER)
    page = await board.open("/fleet", "carol")
    await page.tab.until(READY)
    await page.tab.until(f"{LETTERS} === 4")
    assert await page.text(".letters li:last-child summary code") == "not trusted"
    await page.tab.evaluate("document.querySelector('.letters input').focus()")
    await page.tab.press(" ")
    await page.click(".letters-bar button", "Replay 1 selected")
    await page.sees("Replay this dead letter?", "dialog h2")
    assert await page.violations() == []
    await page.tab.press("Enter")
    await page.sees("1 replayed.", ".toast")
    await worker.until(lambda: worker.state(task_id).get("message") == "Replayed 0")
    await page.tab.until(f"{LETTERS} === 3")
    await choose(page, "fault")
    await page.tab.until(f"{LETTERS} === 2")
    await page.click(".letters-bar button", "Replay all of this reason")
    await page.click("dialog button", "Replay all")
    await page.sees("2 replayed.", ".toast")
    await worker.until(lambda: worker.state(task_id).get("message") == "Replayed 2")
    await page.sees("has this reason", ".fleet-letters")
    await choose(page, "untrusted_sender")
    await page.tab.until(f"{LETTERS} === 1")
    await page.click(".letters-bar button", "Replay all of this reason")
    await page.sees("All that are listed will be kept", "dialog")
    await page.click("dialog button", "Replay all")
    await page.sees("no trusted sender", ".letters-kept")
    await page.tab.evaluate("document.querySelector('.letters details').open = true")
    await page.sees("not trusted\nsecond line", ".letters pre")
    await page.click(".letters details button", "Replay")
    await page.sees("You vouch for it", "dialog")
    assert await page.violations() == []
    await page.click("dialog button", "Cancel")
    await page.click(".letters details button", "Replay")
    await page.click("dialog button", "Vouch and replay")
    await page.sees("1 replayed.", ".toast")
    await choose(page, "")
    await page.sees("The body is not JSON", ".letters")  # it was believed, and cannot be processed
    assert page.tab.errors == []


async def test_dead_letters_stay_under_the_pointer(board: Board) -> None:
    """Whoever points at a dead letter replays that one, though others go and come; the question says which it is."""
    worker = await operated(board)
    task_id = uuid.UUID((await board.harness.active(name="pointed-letters"))["id"])
    reports = [
        make_report("app.status", task_id, build_number=1, state="idle", message=f"Letter {number}", seq=number)
        for number in range(4)
    ]
    for report in reports[:2]:
        await bury(worker, report)
    page = await board.open("/fleet", "carol")
    await page.tab.resize(1280, 900)
    await page.tab.until(f"{READY} && {LETTERS} === 2")
    await page.tab.evaluate("document.querySelector('.letters').scrollIntoView({block: 'center'})")
    await page.point(".letters li:last-child summary")
    under = "document.querySelector('.letters li:hover pre')?.textContent.includes('Letter 1')"
    assert await page.tab.evaluate(under)
    listed = (await board.harness.carol.get("/dead-letters")).json()["dead_letters"]
    first, second = (each["id"] for each in listed)
    replayed = await board.harness.carol.post("/dead-letters/replay", json={"ids": [first]})
    assert replayed.json()["replayed"] == 1
    for report in reports[2:]:
        await bury(worker, report)
    await page.sees("2 more when you leave this list", ".fleet-letters")
    await page.sees("no longer listed", ".letters .gone")
    assert await page.tab.evaluate(under)
    assert await page.tab.evaluate("document.querySelector('.letters .gone input').disabled")
    await page.tab.evaluate("document.querySelector('.letters li:hover details').open = true")
    await page.click(".letters li:not(.gone) details button", "Replay")
    for text in ("Replay this dead letter?", second, "fault", "Letter 1"):
        await page.sees(text, "dialog")
    assert await page.violations() == []
    await page.click("dialog button", "Cancel")
    await page.point(".brand")
    await page.tab.until(f"{LETTERS} === 3 && !document.querySelector('.letters .gone')")
    assert page.tab.errors == []


async def test_dead_letters_that_could_not_be_read_are_read_again(board: Board) -> None:
    """Somebody else may be reading them, or RabbitMQ may be slow: the page shows them once it is told them."""
    worker = await operated(board)
    await bury(worker, b"told later")
    page = await board.open("/fleet", "carol")
    await page.tab.until(READY)
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/dead-letters*"])
    await page.go("/fleet")
    await page.sees("Try again", ".fleet-letters")
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.sees("told later", ".letters")
    assert page.tab.errors == []


async def test_what_is_in_dead_letters_is_text(board: Board) -> None:
    """Markup in a body, a detail, a routing key or a sender's name neither runs nor becomes an element."""
    worker = await operated(board)
    markup = '"><img src=x onerror=alert(1)><script>alert(1)</script>\u202e' + "W" * 5_000
    headers = {f"x-taskherd-{name}": markup for name in ("reason", "detail", "queue", "sender")}
    origin = Origin(markup, f"{worker.prefix}.reports", "<b>key</b>")
    await bury(worker, markup.encode(), headers=headers, origin=origin)
    page = await board.open("/fleet", "carol")
    await page.tab.until(f"{READY} && {LETTERS} === 1")
    await page.tab.evaluate("document.querySelector('.letters details').open = true")
    await page.sees('"><img src=x onerror=alert(1)><script>alert(1)</script>\\u202eWWW', ".letters pre")
    assert await page.tab.evaluate("document.querySelectorAll('.letters :is(img, script, dd b)').length") == 0
    for width in (1280, 390):
        await page.tab.resize(width, 900, scale=1)
        assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
    assert page.tab.errors == []


async def choose(page: Page, reason: str) -> None:
    """Choose a reason in the filter of the dead letters."""
    await page.tab.until("document.querySelector('.letters-bar select')")
    await page.tab.evaluate(
        f"""(() => {{ const select = document.querySelector('.letters-bar select');
        select.value = {json.dumps(reason)}; select.dispatchEvent(new Event('change')); }})()"""
    )
