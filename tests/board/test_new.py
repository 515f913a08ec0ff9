"""The form for a new task in a real browser: launch links, the keyboard, and what goes wrong."""

from __future__ import annotations

import uuid
from urllib.parse import quote

import pytest

from tests.board.pages import Board, Page
from tests.harness.api import ALICE, BOB, OTHER
from tests.harness.worker import PRESET, TEMPLATE, VERSION, build_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start
HOSTILE = "</textarea><script>alert(1)</script>\n`x` \u202e"
PROMPT = "document.querySelector('#prompt').value"
TWIN, TWIN_VERSION, SMALL = (uuid.UUID(int=number) for number in (0xB7, 0xC7, 0xD7))
TWINS = f"""
INSERT INTO memberships (user_id, organization_id, role) VALUES ('{ALICE}', '{OTHER}', 'member');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
    VALUES ('{TWIN}', '{OTHER}', 'claude', 'Claude Code', '', '{TWIN_VERSION}');
INSERT INTO template_versions (id, template_id, name, run) VALUES ('{TWIN_VERSION}', '{TWIN}', 'v1', '{{}}');
INSERT INTO presets (id, template_version_id, name, is_default, parameters)
    VALUES ('{SMALL}', '{VERSION}', 'Small', false, '{{}}');
"""
"""A second organization of Alice's with a template of the same name, and a second preset of the first one's."""
CHECKED = "document.querySelector('[name=template]:checked')?.value"
CHOSEN = "form.new-task .segments label:has(:checked)"
START = "document.querySelector('form button.go')"


@pytest.fixture(autouse=True, scope="module")
async def twins(board: Board) -> None:
    """Have two templates of one name before the first task is created: worker and API keep what they have read."""
    await board.harness.worker.database.execute(TWINS)


async def test_a_link_fills_the_form_and_starts_nothing(board: Board) -> None:
    """A launch link fills every field, says so, and leaves it to the person to start the task."""
    page = await board.open(f"/new?template=claude&name=from-link&prompt={quote(HOSTILE)}&autosubmit=1")
    await page.sees("A link has filled this form")
    assert await page.tab.evaluate(PROMPT) == HOSTILE
    assert await page.tab.evaluate("document.querySelector('[name=template]:checked').value") == str(TEMPLATE)
    assert (await board.harness.alice.get("/tasks")).json()["count"] == 0
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.click("button", "Start task")
    await page.tab.until("location.pathname === '/tasks/alice/from-link'")
    created = await board.harness.get("from-link")
    assert created["initial_prompt"] == HOSTILE
    again = await board.open("/new?from=alice/from-link")
    await again.sees("A link has filled this form")
    assert await again.tab.evaluate(PROMPT) == created["initial_prompt"]
    await page.tab.until("document.querySelector('.page.task[data-ready]')")
    await page.tab.press("c")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT}")
    assert await page.tab.evaluate(PROMPT) == created["initial_prompt"]
    assert "A link has filled" not in await page.text()  # it was not a link of somebody else
    missing = await board.open("/new?template=%3Cb%3Enone&prompt=Hello")
    await missing.sees("There is no template <b>none that you may use")
    assert await missing.tab.evaluate("document.querySelector('form button.go').disabled") is True
    assert page.tab.errors == again.tab.errors == missing.tab.errors == []


async def test_a_link_with_labels_alone_is_a_link(board: Board) -> None:
    """The form says that a link has filled it, and no draft takes the labels of the link away."""
    page = await board.open("/new")
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.tab.insert("A draft")
    await page.go("/new?label=repo=acme/app&label=team=web")
    await page.sees("A link has filled this form")
    assert await page.tab.evaluate("document.querySelector('#labels').value") == "repo=acme/app\nteam=web"
    assert await page.tab.evaluate(PROMPT) == ""
    await page.go("/new")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT} === 'A draft'")
    assert page.tab.errors == []


async def test_a_link_to_a_task_that_is_gone_leaves_the_form_empty(board: Board) -> None:
    """The form says that there is no such task, or that one may not see it, and can be used as without a link."""
    page = await board.open("/new?from=alice/no-such")
    await page.sees("There is no task alice/no-such any more, or you may not see it.")
    assert "A link has filled" not in await page.text()
    assert await page.tab.evaluate(PROMPT) == ""
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.tab.insert("By hand")
    await page.tab.until("!document.querySelector('form button.go').disabled")
    assert page.tab.errors == []


async def test_problems_stand_beside_their_fields_and_nothing_is_lost(board: Board) -> None:
    """What the API refuses is said where it is wrong; the text stays, also when the page is opened again."""
    page = await board.open("/new")
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.click("button", "Start task")
    await page.sees("Say what the agent is to do.")
    await page.tab.until("document.activeElement.id === 'prompt'")
    await page.tab.insert("Mend it")
    await page.click("summary", "Name and labels")
    await page.tab.evaluate("document.querySelector('#name').focus()")
    await page.tab.insert("not a name")
    await page.click("button", "Start task")
    await page.tab.until("document.querySelector('#name[aria-invalid=true], .notice.bad')")
    assert await page.tab.evaluate(PROMPT) == "Mend it"
    await page.go("/tasks")
    await page.go("/new")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT} === 'Mend it'")
    assert page.tab.errors == []


async def test_a_task_is_started_with_the_keyboard_alone(board: Board) -> None:
    """From any page: n, the prompt, Ctrl-Enter; the help names the keys."""
    page = await board.open("/tasks")
    await page.tab.until("document.querySelector('.page[data-ready]')")
    await page.tab.press("?")
    await page.sees("Find or filter tasks", "dialog")
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.tab.press("n")
    await page.tab.until("document.activeElement?.id === 'prompt'")
    await page.tab.insert("Only by keyboard")
    await page.tab.press("Enter", ctrl=True)
    await page.tab.until("location.pathname.startsWith('/tasks/alice/')")
    assert page.tab.errors == []


HOLDING_TASKS = """window.real = fetch, window.sent = 0;
window.held = new Promise((go) => (window.release = go)), window.fetch = async (path, options) => {
    if (options.method === 'POST' && String(path).endsWith('/tasks/me')) { sent += 1; await held; }
    return real(path, options);
}, 0"""
"""Holds new tasks back until ``release`` is called, and counts them in ``sent``."""


async def start_and_leave(board: Board, name: str) -> Page:
    """Start a task, which is held back, go to the list of tasks meanwhile, and type in its filter."""
    page = await board.open("/new")
    await page.tab.until("document.querySelector('#prompt')")
    await page.click("details summary", "Name and labels")
    await page.tab.evaluate("document.querySelector('#name').focus()")
    await page.tab.insert(name)
    await page.tab.evaluate("document.querySelector('#prompt').focus()")
    await page.tab.insert(f"Start {name} and go on")
    await page.tab.evaluate(HOLDING_TASKS)
    await page.tab.press("Enter", ctrl=True)
    await page.becomes("sent === 1")
    await page.click(".bar nav a", "Tasks")
    await page.tab.until("document.querySelector('.page.tasks[data-ready]')")
    await page.tab.press("/")
    await page.tab.until("document.activeElement.getAttribute('role') === 'combobox'")
    await page.tab.insert("name:")
    return page


async def test_who_has_left_the_form_stays_there(board: Board) -> None:
    """Once the task is there, a message leads to it; the address, the focus and what is written stay as they are."""
    page = await start_and_leave(board, "left-behind")
    await page.tab.evaluate("release(), 0")
    await page.sees("The task was started.", ".toast")
    await page.tab.insert("left")
    assert await page.tab.evaluate("[location.pathname, document.activeElement.value]") == ["/tasks", "name:left"]
    assert await page.tab.evaluate("sessionStorage.getItem('taskherd-draft:alice:new')") in {"", None}
    await page.click(".toast button", "Show it")
    await page.tab.until("location.pathname === '/tasks/alice/left-behind'")
    assert page.tab.errors == []


async def test_who_has_left_the_form_is_told_that_it_was_refused(board: Board) -> None:
    """A message says why there is no task, and what was written is in the form again."""
    await board.harness.create(name="twice-left", input="It has the name already")
    page = await start_and_leave(board, "twice-left")
    await page.tab.evaluate("release(), 0")
    await page.sees('Workspace "twice-left" already exists.', ".toast.bad")
    assert await page.tab.evaluate("[location.pathname, document.activeElement.value]") == ["/tasks", "name:"]
    await page.click(".toast button", "Back to the form")
    await page.tab.until(f"document.querySelector('#prompt') && {PROMPT} === 'Start twice-left and go on'")
    assert page.tab.errors == []


async def test_templates_of_the_same_name_are_told_apart(board: Board) -> None:
    """What is chosen, linked to by id, or like another task is what starts, with its preset."""
    page = await board.open("/new")
    await page.tab.until(f"{CHECKED} && document.activeElement.id === 'prompt'")
    await page.sees("Other · ", ".choices")
    await page.tab.insert("In the other one")
    for chosen in (TEMPLATE, TWIN):
        await page.tab.evaluate(f"document.querySelector('[name=template][value=\"{chosen}\"]').click()")
        await page.tab.until(f"{CHECKED} === '{chosen}' && !{START}.disabled")
    await page.click("form button", "Start task")
    await page.sees("No runner has taken it up yet", ".now")
    started = (await board.harness.alice.get("/tasks?q=owner:me")).json()["tasks"]
    assert [each["template_id"] for each in started if each["initial_prompt"] == "In the other one"] == [str(TWIN)]
    await page.go(f"/new?template={TWIN}&prompt=Linked")
    await page.tab.until(f"{CHECKED} === '{TWIN}'")
    await page.go("/new?template=claude&preset=small&prompt=Linked")
    await page.sees("Small", CHOSEN)
    await page.tab.until(f"!{START}.disabled")
    created = await board.harness.create(name="with-preset", template_version_preset_id=str(SMALL))
    await board.harness.worker.report(build_report(uuid.UUID(created["id"]), 1, "start", "succeeded"))
    await page.go("/new?from=alice/with-preset")
    await page.sees("Small", CHOSEN)
    assert page.tab.errors == []


HOLDING = """window.bodies = [], window.real = fetch, window.held = new Promise((go) => (window.release = go));
window.fetch = async (...given) => {
    if (given[1].body) bodies.push(JSON.parse(given[1].body));
    if (String(given[0]).endsWith('/presets')) await held;
    return real(...given);
}, 0"""
"""Holds presets back until ``release`` is called, and keeps what is sent in ``bodies``."""


async def test_no_task_starts_without_the_preset_that_it_should_have(board: Board) -> None:
    """Who is faster than the presets waits for them; presets that cannot be read are said so, and read again."""
    page = await board.open("/tasks")
    await page.tab.evaluate(HOLDING)
    await page.tab.press("n")
    await page.tab.until("document.activeElement?.id === 'prompt'")
    assert await page.tab.evaluate(f"{START}.disabled") is True
    await page.tab.insert("Quick")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Starting…", "form.new-task")
    assert await page.tab.evaluate("bodies.length") == 0
    await page.tab.evaluate("release(), 0")
    await page.tab.until("location.pathname.startsWith('/tasks/alice/')")
    assert await page.tab.evaluate("bodies.map((each) => each.template_version_preset_id)") == [str(PRESET)]
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/presets"])
    await page.go("/new?prompt=Later")
    await page.sees("The presets of the template could not be read.")
    assert await page.tab.evaluate(f"{START}.disabled") is True
    await page.tab.evaluate("document.querySelector('#prompt').focus()")
    await page.tab.press("Enter", ctrl=True)
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.click(".notice button", "Try again")
    await page.sees("Default", CHOSEN)
    await page.tab.until(f"!{START}.disabled")
    assert await page.tab.evaluate("location.pathname") == "/new"
    assert page.tab.errors == []


async def test_templates_that_cannot_be_read_are_read_again(board: Board) -> None:
    """The form says so, and keeps what a link has filled."""
    page = await board.open("/tasks")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/templates"])
    await page.go("/new?template=claude&prompt=Kept")
    await page.sees("The server cannot be reached.")
    assert "There is no template" not in await page.text()
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.click(".notice button", "Try again")
    await page.tab.until(f"{CHECKED} === '{TEMPLATE}' && !{START}.disabled")
    assert await page.tab.evaluate(PROMPT) == "Kept"
    assert page.tab.errors == []


async def test_what_one_person_wrote_is_not_shown_to_the_next(board: Board) -> None:
    """Signing out forgets the draft; the problems of a field are tied to it for who cannot see them."""
    page = await board.open("/new")
    await page.tab.until("document.activeElement?.id === 'prompt'")
    await page.tab.insert("A secret plan")
    await page.click("summary", "Name and labels")
    await page.tab.evaluate("document.querySelector('#labels').focus()")
    await page.tab.insert("no label")
    await page.click("form button", "Start task")
    await page.tab.until("document.querySelector('#labels[aria-invalid=true]')")
    described = "document.getElementById(document.querySelector('#labels').getAttribute('aria-describedby'))?.innerText"
    assert await page.tab.evaluate(described) == "Expected one label on each line: key=value."
    assert await page.violations() == []
    await page.click(".bar .menu summary")
    await page.click(".menu-items button", "Sign out")
    await page.sign_in(board.harness.tokens["bob"])
    await page.tab.until("document.activeElement?.id === 'prompt'")
    assert await page.tab.evaluate(PROMPT) == ""
    assert "secret" not in await page.tab.evaluate("JSON.stringify({...sessionStorage})")
    assert page.tab.errors == []


async def test_many_templates_are_a_list(board: Board) -> None:
    """More templates than cards are chosen from a list, which a task is started from as from a card."""
    many = uuid.UUID(int=0xE0)
    values = [
        f"""INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
            VALUES ('{uuid.UUID(int=0x1000 + n)}', '{many}', 'many-{n}', 'Many {n}', '', '{uuid.UUID(int=0x2000 + n)}');
        INSERT INTO template_versions (id, template_id, name, run)
            VALUES ('{uuid.UUID(int=0x2000 + n)}', '{uuid.UUID(int=0x1000 + n)}', 'v1', '{{}}');"""
        for n in range(9)
    ]
    await board.harness.worker.database.execute(
        f"""INSERT INTO organizations (id, name, display_name) VALUES ('{many}', 'many', 'Many');
        INSERT INTO memberships (user_id, organization_id, role) VALUES ('{BOB}', '{many}', 'member');
        {"".join(values)}"""
    )
    page = await board.open("/new?prompt=Of+many", "bob")
    await page.tab.until("document.querySelector('form select')?.options.length === 10")
    assert await page.violations() == []
    chosen = uuid.UUID(int=0x1000 + 7)
    await page.tab.evaluate(
        f"""(() => {{ const select = document.querySelector('form select');
        select.value = '{chosen}'; select.dispatchEvent(new Event('change')); }})()"""
    )
    await page.tab.until(f"{START} && !{START}.disabled")
    await page.click("button", "Start task")
    await page.tab.until("location.pathname.startsWith('/tasks/bob/')")
    (task,) = (await board.harness.bob.get("/tasks?q=owner:me")).json()["tasks"]
    assert task["template_id"] == str(chosen)
    assert page.tab.errors == []
