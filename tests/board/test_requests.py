"""What agents ask, in real browsers: it appears by itself, is answered where it stands, and others see the answer."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.board.pages import Board, Page
from tests.board.test_task import READY, open_task, prefer, status
from tests.harness.asking import OPTIONS, active, approval, asked, closed, give, requests_of, shows
from tests.harness.worker import ALICE

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HOSTILE = "<img src=x onerror=alert(1)> `code` </script>"
EDIT = {"file_path": "src/clock.py", "old_string": "import time\nnow = time.time()\n", "new_string": "import time\n"}


async def home(board: Board, user: str = "alice") -> Page:
    """Open Home and wait until it is there."""
    page = await board.open("/", user)
    await page.tab.resize(1280, 900)
    await page.tab.until("document.querySelector('.page[data-ready]')")
    return page


async def buttons(page: Page, within: str) -> list[str]:
    """Return what the buttons in an element say."""
    found: list[str] = await page.tab.evaluate(
        f"[...document.querySelectorAll({json.dumps(within + ' button')})].map((each) => each.innerText)"
    )
    return found


async def answered(board: Board, task_id: uuid.UUID, request_id: uuid.UUID) -> dict[str, Any]:
    """Wait until a request is answered, and return the answer."""
    await board.harness.worker.until(lambda: not shows(board.harness, task_id, request_id))
    found = {each["id"]: each for each in await requests_of(board.harness.alice, task_id)}
    answer: dict[str, Any] = found[str(request_id)]["answer"]
    return answer


async def test_home_shows_what_is_asked_and_answers_it(board: Board) -> None:
    """A request comes to the top by itself, with its command in full; one click on an option answers it."""
    page = await home(board)
    task_id = await active(board.harness, name="home-asks", display_name="Clean up")
    tool = {"kind": "execute", "input": {"command": "rm -r build"}}
    request_id = await approval(board.harness, task_id, title=f"May I run `rm`? {HOSTILE}", tool=tool, detail="**Why**")
    await page.sees("1 needs you", "h1")
    await page.sees("May I run rm? <img src=x onerror=alert(1)>", ".need.ask")
    await page.sees("$ rm -r build", ".need.ask")
    await page.sees("Clean up", ".need.ask")
    assert await page.tab.evaluate("document.querySelectorAll('.needs img, .needs script').length") == 0
    assert await buttons(page, ".need.ask .acts") == ["No", "Allow once", "Always allow"]
    await page.tab.press("y")
    commands = [f"taskherd {each} --query owner:me" for each in ("requests", "task overview", "task totals")]
    for text in ("/api/v2/task-overview?q=owner", "/api/v2/task-totals?q=owner", *commands):
        await page.sees(text, "dialog")
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.sees("1\nwaiting for someone", ".totals")
    await page.tab.until("document.title.startsWith('(1) ')")
    assert await page.violations() == []
    await page.point(".need.ask .acts button")
    await page.click(".need.ask .acts button", "Allow once")
    await page.sees("Allow once: sent to the agent", ".need.ask")
    answer = await answered(board, task_id, request_id)
    assert (answer["option_id"], answer["by"]) == ("yes", "alice")
    await page.point(".brand")
    await page.sees("Nothing needs you", "h1")
    assert page.tab.errors == []


async def test_the_question_of_a_task_that_is_deleted_goes_with_it(board: Board) -> None:
    """Nothing on Home waits for an answer that nobody can give any more: no row, no number, no amber icon."""
    page = await home(board)
    task_id = await active(board.harness, name="home-gone", display_name="Soon gone")
    await asked(board.harness, task_id, title="Shall I stay?")
    await page.sees("Shall I stay?", ".need.ask")
    await page.tab.until("document.title.startsWith('(1) ')")
    assert (await board.harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
    await page.sees("Nothing needs you", "h1")
    assert await page.tab.evaluate("document.querySelector('.need')") is None
    await page.tab.until("!document.title.startsWith('(')")
    await page.tab.until("document.querySelector('#favicon').href.endsWith('/icon.svg')")
    assert page.tab.errors == []


async def test_home_shows_requests_once_it_can_load_how(board: Board) -> None:
    """Their script may not come, as during a restart of the API: it is asked for again, and nothing fails."""
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/home-requests.js"])
    await page.go("/")
    await page.tab.until("document.querySelector('.page.home[data-ready]')")
    task_id = await active(board.harness, name="home-later", display_name="Later")
    request_id = await approval(board.harness, task_id, title="May I wait?")
    await page.sees("1\nwaiting for someone", ".totals")
    assert await page.tab.evaluate("document.querySelector('.need.ask')") is None
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await status(board, str(task_id), "working", "Still waiting")
    await page.sees("May I wait?", ".need.ask")
    await page.click(".need.ask .acts button", "Allow once")
    assert (await answered(board, task_id, request_id))["option_id"] == "yes"
    assert page.tab.errors == []


_IMPATIENT = """
    const real = setTimeout;
    window.setTimeout = (run, ms, ...rest) => real(run, ms === 20_000 ? 300 : ms, ...rest);
"""
"""Has a page give up what never comes much sooner."""


async def test_home_shows_what_it_can_while_a_script_hangs(board: Board) -> None:
    """A server that answers and then hangs keeps only the requests away, which are shown as soon as they can be."""
    asking = await active(board.harness, name="home-hangs", display_name="Hangs")
    await approval(board.harness, asking, title="May I hang?")
    working = await active(board.harness, name="home-works", display_name="At work meanwhile")
    await status(board, str(working), "working", "Going on")
    page = await board.open("/new")
    await page.tab.call("Page.addScriptToEvaluateOnNewDocument", source=_IMPATIENT)
    await page.tab.call("Fetch.enable", patterns=[{"urlPattern": "*/home-requests.js"}])  # held until disabled
    await page.go("/")
    await page.sees("At work meanwhile", "section[aria-labelledby=running]")
    await page.sees("What agents ask could not be loaded.", ".needs .notice")
    await page.tab.call("Fetch.disable")
    await page.sees("May I hang?", ".need.ask")
    await page.tab.until("!document.querySelector('.needs .notice')")
    await page.tab.press("a")
    await page.tab.press("Enter")
    await page.tab.until("!document.querySelector('.need.ask:not(.over)')")
    assert page.tab.errors == []


async def test_home_answers_a_question_with_the_keyboard(board: Board) -> None:
    """`a` goes to the answer of what is asked; a question for a text has a field, which Ctrl-Enter sends."""
    page = await home(board)
    task_id = await active(board.harness, name="home-question", display_name="Choose")
    request_id = await asked(board.harness, task_id, title="Which of the two?", detail="One is slow.")
    await page.sees("Which of the two?", ".need.ask")
    await page.tab.press("a")
    await page.tab.until("document.activeElement.innerText === 'Answer…'")
    await page.tab.press("Enter")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert("The fast one")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Answered", ".need.ask")
    assert (await answered(board, task_id, request_id))["text"] == "The fast one"
    assert page.tab.errors == []


async def answer_by_keyboard(page: Page, text: str) -> None:
    """Go to what is asked first with ``a``, and answer it."""
    await page.tab.press("a")
    await page.tab.until("document.activeElement.innerText === 'Answer…'")
    await page.tab.press("Enter")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert(text)
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Answered", ".need.ask.over")


async def test_the_keyboard_alone_reaches_what_is_asked_next(board: Board) -> None:
    """Rows that the focus in one that is over holds back are shown by `a`, `j` and `k`, which go on from its place."""
    harness = board.harness
    page = await home(board)
    tasks = [await active(harness, name=f"keyboard-{number}", display_name=f"K{number}") for number in range(4)]
    first = await asked(harness, tasks[0], title="First?")
    await page.sees("First?", ".need.ask")
    await answer_by_keyboard(page, "One")
    second = await asked(harness, tasks[1], title="Second?")
    await page.sees("1 more when you leave this list", ".needs")
    await answer_by_keyboard(page, "Two")
    assert (await answered(board, tasks[0], first))["text"] == "One"
    assert (await answered(board, tasks[1], second))["text"] == "Two"
    third = await asked(harness, tasks[2], title="Third?")
    await status(board, str(tasks[3]), "idle", "Waits below")
    await page.sees("2 more when you leave this list", ".needs")
    here = "document.activeElement.closest('.need')?.dataset.id"
    for key, row in (("j", third), ("j", tasks[3]), ("k", third)):
        await page.tab.press(key)
        assert await page.tab.evaluate(here) == str(row), key
    await page.tab.press("a", "Enter")
    await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
    await page.tab.insert("Three")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Answered", ".need.ask.over")
    await page.tab.press("j")
    assert await page.tab.evaluate(here) == str(tasks[3])
    assert await page.tab.evaluate("document.querySelectorAll('.need').length") == 1
    await status(board, str(tasks[3]), "working", "Goes on")
    await page.sees("No longer needs you", ".need.over")
    late = await asked(harness, tasks[0], title="Under the pointer?")
    await page.sees("1 more when you leave this list", ".needs")
    await page.point(".need.over")
    await page.tab.press("a", "j")
    assert await page.tab.evaluate(here) == str(tasks[3])
    await page.point(".brand")
    await page.tab.press("a")
    await page.tab.until(f"{here} === '{late}'")
    assert (await give(harness.alice, tasks[0], late, text="Late")).status_code == 204
    assert page.tab.errors == []


async def test_two_people_see_each_others_answer(board: Board) -> None:
    """What one answers is answered for the other at once, by name; who was too late is told so."""
    harness = board.harness
    task_id = await active(harness, name="shared-asks", display_name="Ours")
    first = await approval(harness, task_id, title="May I push?")
    alices, carols = await open_task(board, "shared-asks"), await open_task(board, "shared-asks", "carol")
    alices_home = await home(board)
    for page in (alices, carols):
        await page.sees("May I push?", ".agent-asks")
        await page.sees("waiting", ".task-title .state")
    await alices_home.sees("May I push?", ".need.ask")
    await carols.click(".agent-asks .answer-options button", "No")
    await alices.tab.until("!document.querySelector('.agent-asks')")
    await alices.sees("carol answered: No · “May I push?” · the agent does not have it yet", ".conversation")
    await alices.sees("carol answered “May I push?”: No", ".timeline")
    await carols.sees("carol answered “May I push?”: No", ".timeline")
    await alices_home.sees("Nothing needs you", "h1")
    fields: dict[str, Any] = {"kind": "approval", "options": OPTIONS, "title": "May I push?"}
    await closed(harness, task_id, first, state="answered", option_id="no", **fields)
    second = await approval(harness, task_id, title="May I push again?")
    await alices.sees("May I push again?", ".agent-asks")
    await alices.point(".agent-asks .answer-options button")
    assert (await give(harness.carol, task_id, second, option_id="yes")).status_code == 204
    await alices.sees("carol answered: Allow once", ".agent-asks.over")
    await alices.point(".brand")
    await alices.tab.until("!document.querySelector('.agent-asks')")
    for page in (alices, carols, alices_home):
        assert page.tab.errors == []


@pytest.mark.parametrize("kind", ["question", "approval"])
async def test_a_field_stays_for_who_writes_in_it(board: Board, kind: str) -> None:
    """When somebody else answers, what was written stays, and the next letters do nothing, until the field is left."""
    harness = board.harness
    name = f"typing-{kind}"
    task_id = await active(harness, name=name, display_name="Typing")
    await status(board, str(task_id), "working", "At it")
    ask, answer = (approval, {"option_id": "no"}) if kind == "approval" else (asked, {"text": "Hers"})
    request_id = await ask(harness, task_id, title="Which one?")
    page = await open_task(board, name)
    await page.sees("Which one?", ".agent-asks")
    field = ".agent-asks textarea"
    summary = ".agent-asks .with-words > summary"
    await page.tab.evaluate(f"document.querySelector('{summary}')?.click(), 0")
    await page.tab.evaluate(f"document.querySelector('{field}').focus()")
    await page.tab.insert("Half of what")
    assert (await give(harness.carol, task_id, request_id, **answer)).status_code == 204
    await page.sees("carol answered", ".agent-asks.over")
    await page.tab.press("i", "p")
    await page.tab.press("Enter", ctrl=True)
    await status(board, str(task_id), "working", "Going on")
    await page.sees("Going on", ".now")
    kept = "(({value, readOnly}) => [value, readOnly])(document.activeElement)"
    assert await page.tab.evaluate(kept) == ["Half of what", True]
    assert await page.tab.evaluate("document.querySelectorAll('.agent-asks button, dialog, .toast').length") == 0
    assert await page.reads(f"/tasks/{ALICE}/{task_id}/interrupt") == []
    assert await page.violations() == []
    await page.tab.evaluate("document.activeElement.blur()")
    await page.tab.until("!document.querySelector('.agent-asks')")
    draft = f"sessionStorage.getItem('taskherd-draft:alice:to/{request_id}')"
    assert await page.tab.evaluate(draft) == "Half of what"
    assert page.tab.errors == []


async def test_a_field_on_home_stays_for_who_writes_in_it(board: Board) -> None:
    """The same on Home, also of a reply to an agent that goes on meanwhile; Escape leaves the field."""
    harness = board.harness
    page = await home(board)
    asking = await active(harness, name="home-typing", display_name="Asks")
    waits = await active(harness, name="home-typing-too", display_name="Waits")
    request_id = await asked(harness, asking, title="Which one?")
    await status(board, str(waits), "idle", "And now?")
    for row, over in ((str(request_id), give(harness.carol, asking, request_id, text="Hers")), (str(waits), None)):
        need = f".need[data-id='{row}']"
        await page.click(f"{need} .acts button")
        await page.tab.until("document.activeElement.tagName === 'TEXTAREA'")
        await page.tab.insert("Half of what")
        if over is not None:
            assert (await over).status_code == 204
        else:
            await status(board, str(waits), "working", "Going on")
        await page.sees("No longer needs you", need)
        await page.tab.press("m", "c", "n")
        await page.tab.press("Enter", ctrl=True)
        kept = "(({value, readOnly}) => [value, readOnly, location.pathname])(document.activeElement)"
        assert await page.tab.evaluate(kept) == ["Half of what", True, "/"]
        assert await page.tab.evaluate("localStorage.getItem('taskherd-home-scope')") is None
        assert await page.tab.evaluate(f'document.querySelectorAll("{need} button").length') == 0
        assert await page.violations() == []
        await page.tab.press("Escape")
        await page.tab.until(f'document.activeElement.matches("{need}")')
        await page.tab.evaluate("document.activeElement.blur()")
        await page.tab.until(f'!document.querySelector("{need}")')
    await status(board, str(waits), "complete")
    assert page.tab.errors == []


async def test_who_is_too_late_is_told_so(board: Board) -> None:
    """An answer to what is over is refused with the API's words, by whom it was answered and how."""
    harness = board.harness
    task_id = await active(harness, name="late", display_name="Late")
    request_id = await approval(harness, task_id, title="May I?")
    page = await open_task(board, "late")
    await page.sees("May I?", ".agent-asks")
    # the answer of the other is under way while the page still shows the question
    await page.tab.evaluate(
        f"""fetch('/api/v2/tasks/alice/late/requests/{request_id}/answer', {{method: 'POST',
            headers: {{'Coder-Session-Token': {json.dumps(harness.tokens["carol"])}}}, body: '{{"option_id": "no"}}'}})
            .then(() => document.querySelector('.answer-options button.go').click())"""
    )
    await page.sees("The request is no longer open.", ".toast.bad")
    await page.sees("It was answered with “No” by carol", ".toast.bad")
    assert (await answered(board, task_id, request_id))["option_id"] == "no"
    assert [each for each in page.tab.errors if "409" not in each] == []


async def test_the_answer_box_of_a_task(board: Board) -> None:
    """Several requests stand in order, each with its own answer; diffs and long inputs are folded, detail is set."""
    harness = board.harness
    task_id = await active(harness, name="box", display_name="Boxes")
    edit = {"kind": "edit", "name": "Edit", "input": EDIT}
    long = {"kind": "execute", "input": {"command": "\n".join(f"echo {number}" for number in range(40))}}
    first = await approval(
        harness, task_id, title=f"May I edit {HOSTILE}?", tool=edit, detail=f"Because `x`. {HOSTILE}"
    )
    second = await approval(harness, task_id, title="May I run this?", tool=long)
    third = await asked(harness, task_id, title="And which name?")
    page = await open_task(board, "box")
    card = "document.querySelectorAll('.agent-asks')"
    await page.tab.until(f"{card}.length === 3")
    assert [await page.tab.evaluate(f"{card}[{number}].dataset.id") for number in range(3)] == [
        str(each) for each in (first, second, third)
    ]
    summaries = await page.tab.evaluate("[...document.querySelectorAll('.tool-input summary')].map((s) => s.innerText)")
    assert summaries[0].split() == ["Changes", "src/clock.py", "\u22121"]
    assert summaries[1].split() == ["$", "echo", "0", "40", "lines"]
    assert await page.tab.evaluate("document.querySelectorAll('.tool-input[open]').length") == 0
    await page.click(".tool-input summary", "Changes")
    await page.sees("now = time.time()", ".tool-input .line.del")
    assert await page.tab.evaluate("document.querySelectorAll('#main :is(img, script)').length") == 0
    for width, height, scale in ((390, 844, 2), (640, 450, 2), (1280, 900, 1)):
        await page.tab.resize(width, height, scale=scale)
        for scheme in ("light", "dark"):
            await prefer(page, scheme)
            assert await page.violations() == [], (width, scheme)
            assert await page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
    await page.tab.press("a")
    await page.tab.until("document.activeElement.innerText === 'No'")
    await page.tab.evaluate(f"{card}[2].querySelector('textarea').focus()")
    await page.tab.insert("For the third")
    await page.tab.evaluate(f"{card}[0].querySelector('.answer-options button').click()")
    assert (await answered(board, task_id, first))["option_id"] == "no"
    assert await page.tab.evaluate(f"{card}[2].querySelector('textarea').value") == "For the third"
    await page.click(f".agent-asks[data-id='{second}'] .with-words summary")
    await page.tab.evaluate(f"document.querySelector(\".agent-asks[data-id='{second}'] textarea\").focus()")
    await page.tab.insert("But only once")
    await page.click(f".agent-asks[data-id='{second}'] .answer-options button", "Allow once")
    answer = await answered(board, task_id, second)
    assert answer["option_id"] == "yes"
    await page.sees("But only once", ".said.queued")
    assert page.tab.errors == []


async def test_the_composer_says_that_it_answered(board: Board) -> None:
    """A message to an agent that asks for a text is the answer, and the page says so."""
    harness = board.harness
    task_id = await active(harness, name="talks", display_name="Talks")
    await status(board, str(task_id), "idle", "Which one?")
    request_id = await asked(harness, task_id, title="Which one?")
    page = await open_task(board, "talks")
    await page.sees("Which one?", ".agent-asks")
    await page.tab.press("m")
    await page.tab.type("The second")
    await page.sees("This answered what the agent asked.", ".toast")
    assert (await answered(board, task_id, request_id))["text"] == "The second"
    await page.tab.until("!document.querySelector('.agent-asks')")
    assert page.tab.errors == []


async def test_a_reload_shows_what_is_still_open(board: Board) -> None:
    """After a reload, and with the agent's end, the page shows what is open, and then nothing."""
    harness = board.harness
    task_id = await active(harness, name="again", display_name="Again")
    await approval(harness, task_id, title="Still there?")
    page = await open_task(board, "again")
    await page.sees("Still there?", ".agent-asks")
    await page.sees("Its agent asked 1 question and waits for the answer.")
    await page.tab.call("Page.reload")
    await page.tab.until(f"{READY} && document.querySelector('.agent-asks')")
    assert (await harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
    await page.tab.until("!document.querySelector('.agent-asks')")
    await page.sees("alice paused the task", ".timeline")
    assert page.tab.errors == []


HOLDING = """window.reads = 0, window.real = fetch, window.held = new Promise((go) => (window.release = go));
window.fetch = async (...given) => {
    const response = await real(...given);
    if (String(given[0]).endsWith('/requests') && !(reads++)) { document.body.dataset.read = ''; await held; }
    return response;
}, 0"""
"""Holds the next list of requests back after it was read, until ``release`` is called; later ones come before it."""


async def test_an_older_list_of_requests_is_not_shown(board: Board) -> None:
    """What was read before an answer, and comes after what was read later, does not bring the question back."""
    harness = board.harness
    task_id = await active(harness, name="overtaken", display_name="Overtaken")
    request_id = await asked(harness, task_id, title="Still open?")
    page = await open_task(board, "overtaken")
    await page.sees("Still open?", ".agent-asks")
    await page.tab.evaluate(HOLDING)
    await status(board, str(task_id), "idle", "Something new")
    await page.tab.until("'read' in document.body.dataset")
    assert (await give(harness.carol, task_id, request_id, text="Closed")).status_code == 204
    await page.tab.until("!document.querySelector('.agent-asks')")
    await page.tab.evaluate("release(), held.then(() => 0)")
    await status(board, str(task_id), "idle", "Something newer")
    await page.sees("Something newer", ".now")
    assert await page.tab.evaluate("document.querySelector('.agent-asks')") is None
    assert page.tab.errors == []


async def test_a_change_of_a_file_hides_nothing(board: Board) -> None:
    """Whatever else is in the input of a tool is shown with its changes, or people would allow what they do not see."""
    inputs: list[tuple[Any, bool]] = [
        ({"path": "a.txt", "content": "", "command": "rm -r src"}, False),
        ({"diff": {"path": "a.txt", "new": "x"}, "command": "rm -r src"}, False),
        ({"diff": {"path": "a.txt", "new": "x"}, "diffs": [{"path": "rm -r src", "new": "y"}]}, True),
        ({"diff": [[{"path": "a.txt", "new": "x"}, {"path": "b.txt", "new": "y"}], "rm -r src"]}, True),
    ]
    for number, (given, is_folded) in enumerate(inputs):
        task_id = await active(board.harness, name=f"hides-{number}")
        await approval(board.harness, task_id, title=f"May I edit {number}?", tool={"kind": "edit", "input": given})
        page = await open_task(board, f"hides-{number}")
        await page.sees(f"May I edit {number}?", ".agent-asks")
        if is_folded:
            opened = "document.querySelectorAll('.agent-asks details').forEach((each) => (each.open = true))"
            await page.tab.evaluate(opened)
        await page.sees("rm -r src", ".agent-asks")
        assert page.tab.errors == []


async def test_two_options_with_the_same_label_can_be_told_apart(board: Board) -> None:
    """Their buttons have the ids, which the agent gets back."""
    task_id = await active(board.harness, name="twins", display_name="Twins")
    options = [{"id": name, "label": "Allow", "kind": name} for name in ("allow_once", "allow_always")]
    request_id = await approval(board.harness, task_id, title="May I?", options=[*options, OPTIONS[-1]])
    page = await open_task(board, "twins")
    await page.sees("May I?", ".agent-asks")
    assert await buttons(page, ".agent-asks .answer-options") == ["No", "Allow (allow_once)", "Allow (allow_always)"]
    await page.click(".agent-asks .answer-options button", "Allow (allow_always)")
    assert (await answered(board, task_id, request_id))["option_id"] == "allow_always"
    assert page.tab.errors == []
