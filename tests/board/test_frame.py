"""The frame of the board in a real browser: signing in, pages, shortcuts, colour schemes."""

from __future__ import annotations

import uuid

import pytest

from tests.board.pages import SIGN_IN, Board, Page
from tests.harness.worker import make_report

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start


async def test_one_sign_in_is_enough_for_all_tabs_until_somebody_signs_out(board: Board) -> None:
    """The token is refused or taken, then handed to other tabs, never shown, and gone everywhere after signing out."""
    first = await board.open("/", private=False)
    second = Page(await board.browser.new_tab(), board.harness.base)
    await second.go("/tasks")
    await second.tab.until("document.querySelector('.page.tasks')")
    for page in (first, second):
        shown = await page.tab.evaluate("location.href + document.documentElement.outerHTML")
        assert board.harness.tokens["alice"] not in shown
        assert await page.tab.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    await second.click("summary")
    await second.click("button", "Sign out")
    for page in (first, second):
        await page.tab.until(SIGN_IN)
    await second.tab.until("document.activeElement?.id === 'token'")
    await second.tab.type("wrong-token")
    await second.sees("The token is not valid.")
    assert first.tab.errors == second.tab.errors == []


async def test_links_and_going_back_do_not_take_the_sign_in_away(board: Board) -> None:
    """Without a token every address shows the sign-in, and signing in opens the page of the address."""
    page = Page(await board.browser.new_tab(private=True), board.harness.base)
    await page.go("/")
    await page.tab.until("document.activeElement?.id === 'token'")
    await page.tab.insert("half a tok")
    await page.click(".bar nav a", "Tasks")
    await page.tab.until("document.querySelector('.bar nav a[aria-current=page]')?.innerText === 'Tasks'")
    assert await page.tab.evaluate(f"{SIGN_IN}.value") == "half a tok"
    await page.tab.until("document.activeElement?.id === 'token'")
    await page.tab.evaluate(f"{SIGN_IN}.value = ''")
    await page.sign_in(board.harness.tokens["alice"])
    await page.tab.until("location.pathname === '/tasks' && document.querySelector('.page.tasks[data-ready]')")
    await page.click(".bar nav a", "Fleet")
    await page.tab.until("document.querySelector('.page.fleet[data-ready]')")
    await page.click(".bar .menu summary")
    await page.click(".menu-items button", "Sign out")
    await page.tab.until(SIGN_IN)
    await page.tab.evaluate("history.back()")
    await page.tab.until("location.pathname === '/tasks' && document.activeElement?.id === 'token'")
    assert await page.tab.evaluate("document.querySelectorAll('.page').length") == 1
    await page.sign_in(board.harness.tokens["alice"])
    await page.tab.until("document.querySelector('.page.tasks[data-ready]')")
    assert page.tab.errors == []


async def test_a_token_that_is_revoked_is_asked_for_once_in_all_tabs(board: Board) -> None:
    """Signing in again in one tab gives every other its page back, with what was written there, or changes nothing."""
    await board.harness.active(name="revoked", display_name="Revoked")
    token = await board.token()
    task = await board.open("/tasks/alice/revoked", private=False, token=token)
    await task.tab.until("document.querySelector('.page.task[data-ready] .composer')")
    await task.tab.press("m")
    await task.tab.insert("Half a\nthought")
    new = await board.open("/new", private=False)  # which follows nothing, and so does not know
    await new.tab.until("document.activeElement?.id === 'prompt'")
    await new.tab.insert("A long prompt")
    await new.tab.evaluate("document.querySelector('#prompt').dataset.stays = 'yes'")
    await board.revoke(token)
    await task.sees("Your token is not valid any more.", ".sign-in")
    late = Page(await board.browser.new_tab(), board.harness.base)
    await late.go("/fleet")
    await late.tab.until("document.activeElement?.id === 'token'")  # no tab has handed over the one that is dead
    await late.sign_in(await board.token())
    await late.tab.until("document.querySelector('.page.fleet[data-ready]')")
    await task.tab.until("document.querySelector('.page.task[data-ready] .composer textarea')")
    written = "document.querySelector('.composer textarea')"
    assert await task.tab.evaluate(f"[{written}.value, {written}.rows]") == ["Half a\nthought", 2]
    await new.click("button", "Start task")
    await new.tab.until("location.pathname.startsWith('/tasks/') || document.querySelector('.sign-in')")
    assert await new.tab.evaluate("location.pathname") != "/new"
    assert late.tab.errors == task.tab.errors == new.tab.errors == []


async def test_a_tab_asks_for_a_new_token_before_it_asks_the_person(board: Board) -> None:
    """A page whose token died goes on with that of another tab; it is opened anew only if that is somebody else's."""
    first = await board.open("/tasks?q=owner:me", private=False, token=(old := await board.token()))
    await first.tab.until("document.querySelector('.page.tasks[data-ready]')")
    await first.tab.evaluate("document.querySelector('.page.tasks').dataset.stays = 'yes'")
    other = Page(await board.browser.new_tab(), board.harness.base)
    await other.go("/nonsense")
    await other.tab.until("document.querySelector('.avatar')?.innerText === 'A'")
    icon = await other.tab.evaluate("document.querySelector('#favicon').href")
    for user in ("alice", "bob"):
        token = await board.token(user)
        await other.go(icon.removeprefix(board.harness.base))  # no script runs there, which could store the old token
        await other.tab.evaluate(f"sessionStorage.clear(); sessionStorage.setItem('taskherd-token', '{token}')")
        await other.go("/new" if user == "alice" else "/fleet")
        await other.tab.until(f"document.querySelector('.avatar')?.innerText === '{user[0].upper()}'")
        await board.revoke(old)
        if user == "bob":
            await first.tab.until("document.querySelector('.avatar').innerText === 'B'")
            break
        await first.becomes(f"sessionStorage.getItem('taskherd-token') === '{token}'")
        await board.harness.create(display_name="Came later")
        await first.tab.until("document.querySelector('.list').innerText.includes('1 changed')")
        assert await first.tab.evaluate("document.querySelector('.page.tasks').dataset.stays") == "yes"
        old = token
    await first.tab.until("document.querySelector('.page.tasks:not([data-stays])')")
    assert first.tab.errors == other.tab.errors == []


async def test_what_was_written_outlives_a_token_and_is_its_writers_alone(board: Board) -> None:
    """A reply on Home and a form that a link had filled come back to who signs in again, and to nobody else."""
    harness = board.harness
    idle = await harness.active(name="writes", display_name="Writes")
    await harness.worker.report(
        make_report("app.status", uuid.UUID(idle["id"]), build_number=1, state="idle", message="Which one?")
    )
    page = await board.open("/", token=(token := await board.token()))
    reply = "document.querySelector('.reply textarea')"
    await page.sees("Which one?", ".needs")
    await page.click(".need button", "Reply")
    await page.tab.until(f"document.activeElement === {reply}")
    await page.tab.insert("The blue one")
    await page.tab.press("Escape")
    await page.tab.until(f"!{reply}")
    await page.click(".need button", "Reply")  # Escape has kept it
    await page.tab.until(f"{reply}?.value === 'The blue one'")
    await board.revoke(token)
    await page.tab.until(SIGN_IN)
    await page.sign_in(token := await board.token("bob"))
    assert "The blue one" not in await page.tab.evaluate("document.documentElement.outerHTML")
    await page.go("/tasks/alice/writes")
    await page.sees("There is no such task")
    await board.revoke(token)
    await page.go("/")
    await page.tab.until(SIGN_IN)
    await page.sign_in(token := await board.token())
    await page.click(".need button", "Reply")
    await page.tab.until(f"{reply}?.value === 'The blue one'")
    await page.tab.press("Enter", ctrl=True)
    await page.sees("Sent", ".needs")
    await page.go("/new?prompt=Of+a+link")
    prompt = "document.querySelector('#prompt')"
    await page.tab.until(f"document.activeElement === {prompt} && {prompt}")
    await page.tab.insert(", and more")
    await board.revoke(token)
    await page.click("button", "Start task")
    await page.tab.until(SIGN_IN)
    await page.sign_in(token := await board.token())
    await page.tab.until(f"{prompt}?.value === 'Of a link, and more'")
    await page.click(".bar nav a", "Tasks")
    await page.tab.until("document.querySelector('.page.tasks[data-ready]')")
    await page.go("/new?prompt=Of+a+link")
    await page.tab.until(f"{prompt}?.value === 'Of a link'")
    assert page.tab.errors == []


async def test_an_unknown_address_leads_back(board: Board) -> None:
    """The browser gets a page that says so, with links to the pages that there are."""
    page = await board.open("/nonsense")
    await page.sees("There is no such page")
    assert await page.tab.evaluate("document.title") == "Not found · taskherd"
    assert await page.violations() == []
    await page.click("#main a", "Tasks")
    await page.tab.until("location.pathname === '/tasks' && document.querySelector('.page.tasks')")
    assert page.tab.errors == []


async def test_skipping_to_the_content_leaves_the_page_as_it_is(board: Board) -> None:
    """The link for who uses the keyboard moves the focus, and neither opens the page anew nor forgets a selection."""
    await board.harness.active(name="selected", display_name="Selected")
    page = await board.open("/tasks?q=name:selected")
    await page.sees("Selected", "tbody")
    await page.click("thead input")
    await page.sees("1 task selected", ".list-head")
    await page.tab.evaluate("document.querySelector('.skip').focus()")
    await page.tab.press("Enter")
    await page.tab.until("location.hash === '#main' && document.activeElement.id === 'main'")
    await page.tab.evaluate("history.back()")
    await page.tab.until("location.hash === ''")
    assert await page.tab.evaluate("document.querySelectorAll('tbody input:checked').length") == 1
    assert page.tab.errors == []


async def test_a_page_is_scrolled_to_where_it_was_left(board: Board) -> None:
    """After a reload, Back and Forward, each to where the page was when it was left the last time."""
    page = await board.open("/tasks")
    await page.tab.until("document.querySelector('.page.tasks[data-ready]')")
    await page.tab.resize(400, 150)
    await page.click(".bar nav a", "Fleet")
    fleet, tasks = (f"document.querySelector('.page.{each}[data-ready]')" for each in ("fleet", "tasks"))
    await page.tab.until(fleet)
    await page.tab.evaluate("scrollTo(0, 50)")
    await page.tab.call("Page.reload")
    await page.becomes(f"{fleet} && scrollY === 50")
    for leave, comes, at in (("back", tasks, 0), ("forward", fleet, 50), ("back", tasks, 70), ("forward", fleet, 90)):
        await page.tab.evaluate(f"history.{leave}()")
        await page.becomes(f"{comes} && scrollY === {at}")
        await page.tab.evaluate(f"scrollTo(0, {70 if comes == tasks else 90})")
    assert page.tab.errors == []


async def test_a_dialog_keeps_what_was_written_whatever_the_mouse_does(board: Board) -> None:
    """A press in a field that ends beside the dialog closes nothing, nor does a click there over a text."""
    page = await board.open("/tasks?q=owner:me+name:x")
    await page.tab.until("document.querySelector('.page.tasks[data-ready]')")
    await page.click("button", "Save view")
    await page.tab.until("document.activeElement?.name === 'name'")
    inside = await page.tab.evaluate(
        "(({left, top}) => [left + 9, top + 9])(document.querySelector('dialog input').getBoundingClientRect())"
    )

    async def drag(start: list[float], end: list[float]) -> None:
        for kind, (x, y) in (
            ("mouseMoved", start),
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            held = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            await page.tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    await drag(inside, [5, 5])
    assert await page.tab.evaluate("document.querySelector('dialog[open]') !== null")
    await page.tab.insert("Mine")
    await drag([5, 5], [5, 5])
    assert await page.tab.evaluate("document.querySelector('dialog[open] input').value") == "Mine"
    await page.tab.evaluate("document.querySelector('dialog input').select()")
    await page.tab.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", windowsVirtualKeyCode=46)
    await page.tab.until("document.querySelector('dialog input').value === ''")
    await drag([5, 5], [5, 5])
    await page.tab.until("!document.querySelector('dialog')")
    assert page.tab.errors == []


async def test_what_cannot_be_a_token_is_named(board: Board) -> None:
    """A character that no token has, and that nobody sees, is not taken for a server that is away."""
    page = Page(await board.browser.new_tab(private=True), board.harness.base)
    await page.go("/")
    for text, name in (("abc\u200bdef", "character 4 is U+200B"), ("“abc”", "character 1 is U+201C")):
        await page.tab.until("document.activeElement?.id === 'token'")
        await page.tab.type(text)
        await page.sees(name, ".sign-in .problem")
    assert await page.violations() == []
    assert page.tab.errors == []


OPEN_MENUS = "document.querySelectorAll('details.menu[open]').length"


async def test_a_menu_closes_when_somebody_goes_on(board: Board) -> None:
    """Escape, a click elsewhere, the focus elsewhere and a choice close each menu; Escape gives the focus back."""
    task = await board.harness.create(display_name="With a menu")
    page = await board.open(f"/tasks/alice/{task['name']}")
    await page.sees("With a menu", "h1")
    for summary in (".bar .menu summary", ".task-actions .menu summary"):
        opens, title = f"{summary.removesuffix(' summary')}[open]", ".task-title h1"
        for leave in ("Escape", "click", "Tab"):
            await page.point(summary, press=True)
            await page.tab.until(f"document.querySelector('{opens}')")
            if leave == "click":
                await page.point(title, press=True)
            elif leave == "Escape":
                await page.tab.press("Tab", "Escape")
            while leave == "Tab" and await page.tab.evaluate(
                f"document.querySelector('{opens}')?.matches(':focus-within')"
            ):
                await page.tab.press("Tab")
            await page.tab.until(f"{OPEN_MENUS} === 0")
            if leave == "Escape":
                assert await page.tab.evaluate(f"document.activeElement.matches('{summary}')")
    await page.click(".task-actions .menu summary")
    await page.point(".bar .menu summary", press=True)
    await page.tab.until("document.querySelector('.bar .menu[open]')")
    assert await page.tab.evaluate(OPEN_MENUS) == 1
    await page.click(".bar .menu button", "Keyboard")
    await page.tab.until(f"document.querySelector('dialog') && {OPEN_MENUS} === 0")
    assert page.tab.errors == []


async def test_a_refusal_covers_no_button_and_goes_when_it_is_not_true_any_more(board: Board) -> None:
    """The toast of an error stays above the composer, also as this grows, until the same change succeeds."""
    await board.harness.active(name="refused-once")
    page = await board.open("/tasks/alice/refused-once")
    await page.tab.until("document.querySelector('.page.task[data-ready] .composer')")
    await page.tab.resize(390, 500)
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/send"])
    await page.tab.evaluate("document.querySelector('.composer textarea').focus()")
    await page.tab.insert("Go on")
    await page.tab.press("Enter")
    await page.sees("The server cannot be reached.", ".toast.bad")
    above = "{toast}.bottom < {composer}.top && {toast}.bottom > {composer}.top - 40"
    for name in ("toast", "composer"):
        above = above.replace(f"{{{name}}}", f"document.querySelector('.{name}').getBoundingClientRect()")
    await page.tab.until(above)
    await page.tab.insert("\non\nand\non")
    await page.tab.until(f"document.querySelector('.composer textarea').rows > 1 && {above}")
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.tab.press("Enter")
    await page.tab.until("!document.querySelector('.toast.bad')")
    assert page.tab.errors == []


BANNER = "document.getElementById('offline')?.hidden"


async def test_the_banner_goes_with_its_page(board: Board) -> None:
    """Pages that follow nothing do not say for ever that the page before was not connected; nor does the sign-in."""
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/tasks/watch*"])
    for leave in ("a.new", ".menu-items button:last-child"):
        await page.click(".bar nav a", "Tasks")
        await page.tab.until(f"{BANNER} === false")
        await page.click(leave)
        await page.tab.until(f"document.querySelector('.page:is(.new, .sign-in)') && {BANNER} === true")
    assert page.tab.errors == []


async def test_a_dialog_goes_with_its_page(board: Board) -> None:
    """Going back and signing out close what stands above the page that was left."""
    page = await board.open("/new")
    for leave in ("history.back()", "document.querySelector('.menu-items button:last-child').click()"):
        await page.click(".bar nav a", "Fleet")
        await page.tab.until("document.querySelector('.page.fleet[data-ready]')")
        await page.tab.press("?")
        await page.sees("Commands and raw JSON", "dialog")
        await page.tab.evaluate(leave)
        await page.tab.until("document.querySelector('.page:is(.new, .sign-in)') && !document.querySelector('dialog')")
    assert page.tab.errors == []


async def test_a_page_that_cannot_be_loaded_says_so(board: Board) -> None:
    """Who goes to a page while the server is away is told, and gets it once the server is back."""
    page = await board.open("/new")
    await page.tab.call("Network.enable")
    await page.tab.call("Network.setBlockedURLs", urls=["*/pages/fleet.js"])
    await page.click(".bar nav a", "Fleet")
    await page.sees("This page could not be loaded", "h1")
    assert await page.violations() == []
    await page.tab.call("Network.setBlockedURLs", urls=[])
    await page.click("#main button", "Try again")
    await page.tab.until("document.querySelector('.page.fleet[data-ready]')")
    assert page.tab.errors == []


async def test_another_page_gets_the_focus_and_is_announced(board: Board) -> None:
    """Who cannot see that the page has changed hears its name, and goes on at its beginning."""
    page = await board.open("/new")
    await page.tab.until("document.querySelector('.page[data-ready]')")  # until then it gives its own field the focus
    await page.tab.evaluate("document.querySelector('.bar nav a[href=\"/fleet\"]').focus()")
    await page.tab.press("Enter")
    await page.tab.until("document.querySelector('.page.fleet[data-ready]')")
    assert await page.tab.evaluate("document.activeElement.id") == "main"
    assert await page.tab.evaluate("document.getElementById('live').textContent") == "Fleet"
    assert page.tab.errors == []


async def test_single_keys_can_be_turned_off(board: Board) -> None:
    """Who speaks to the browser, or touches keys by mistake, turns shortcuts of one character off in the menu."""
    page = await board.open("/fleet")
    await page.tab.until("document.querySelector('.page.fleet[data-ready]')")
    keys = ".menu-items input[type=checkbox]"
    await page.click(".bar .menu summary")
    assert await page.violations() == []
    await page.tab.evaluate(f"document.querySelector('{keys}').click()")
    await page.tab.evaluate("document.getElementById('main').focus()")
    await page.tab.press("n", "g", "t", "?")
    assert await page.tab.evaluate("location.pathname") == "/fleet"
    await page.click(".bar .menu summary")
    await page.click(".bar .menu button", "Keyboard")
    await page.sees("Single keys are turned off.", "dialog")
    await page.tab.press("Escape")
    await page.tab.until("!document.querySelector('dialog')")
    await page.tab.evaluate(f"document.querySelector('{keys}').click()")
    await page.tab.press("n")
    await page.tab.until("location.pathname === '/new'")
    assert page.tab.errors == []


async def test_the_colour_scheme_is_a_choice(board: Board) -> None:
    """Light or dark is kept in the browser, is there before the first paint, and gives way to the system's again."""
    page = await board.open("/fleet")
    background = "getComputedStyle(document.body).backgroundColor"
    light = await page.tab.evaluate(background)
    await page.tab.evaluate("document.querySelector('[name=theme][value=dark]').click()")
    dark = await page.tab.evaluate(background)
    assert dark != light
    await page.go("/new")
    await page.tab.until("document.querySelector('.page.new')")
    assert await page.tab.evaluate(background) == dark
    await page.tab.evaluate("document.querySelector('[name=theme][value=system]').click()")
    assert await page.tab.evaluate(background) == light
    assert page.tab.errors == []


@pytest.mark.parametrize(
    ("path", "command", "request_path"),
    [
        ("/", "taskherd requests --query owner:me", "/requests?limit=50&q=owner%3Ame"),
        (
            "/tasks?q=owner:me+name:x&sort=changed",
            "taskherd task list --query 'owner:me name:x' --sort changed",
            "/tasks?",
        ),
        ("/deleted?q=owner:me", "taskherd task deleted --owner me", "/deleted-tasks?limit=50&q=owner%3Ame"),
        ("/fleet", "taskherd fleet", "/api/v2/fleet"),
    ],
)
async def test_each_page_says_how_to_get_it_without_the_board(
    board: Board, path: str, command: str, request_path: str
) -> None:
    """One key, or a button, shows the raw JSON of what a page shows, and the commands that print the same."""
    page = await board.open(path)
    await page.tab.until("document.querySelector('.page[data-ready]')")
    for opens in ("key", "button"):
        await (page.tab.press("y") if opens == "key" else page.click("button[aria-label^='Commands and raw JSON']"))
        await page.sees(command, "dialog .command")
        await page.sees(request_path, "dialog .command:nth-of-type(2)")
        await page.sees("[]", "dialog .raw")
        await page.tab.press("Escape")
        await page.tab.until("!document.querySelector('dialog')")
    assert page.tab.errors == []


CHURN = """(async () => {
    const vendor = new URL("vendor/lit-html/", document.querySelector("script[src$='/app.js']").src);
    const { html, render } = await import(new URL("lit-html.js", vendor));
    const { repeat } = await import(new URL("directives/repeat.js", vendor));
    const list = document.createElement("ul");
    const show = (first) => render(
        repeat([first, first + 1, first + 2], (row) => row, (row) => html`<li>${row}</li>`), list);
    show(0);
    const before = list.childNodes.length;
    for (let first = 1; first < 100; first += 1) show(first);
    return [list.children.length, list.childNodes.length - before];
})()"""


async def test_rows_that_leave_a_list_leave_nothing_behind(board: Board) -> None:
    """A page that is open for days changes its lists all the time."""
    page = await board.open("/")
    assert await page.tab.evaluate(CHURN) == [3, 0]
