"""Scripts of the board alone, in a page of a real browser: streams, and what a query selects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.board.pages import Board, Page

pytestmark = pytest.mark.timeout(180)  # a browser on a busy machine takes its time to start


async def run(page: Page, module: str, body: str) -> Any:
    """Return what the body of an async function returns that is called with a module of the page."""
    address = f"new URL({json.dumps(module)}, document.querySelector(\"script[src$='/app.js']\").src)"
    return await page.tab.evaluate(f"import({address}).then(async (module) => {{ {body} }})")


_TORN = """
    const read = async (text) => {
        const seen = [];
        const on = { event: (name, data) => seen.push([name, data]), id: (id) => seen.push(id) };
        await module.readEvents(new Response(text), on);
        return seen;
    };
    const frame = "id: 7\\nevent: task.updated\\ndata: {}\\n\\n";
    const found = [await read(frame + ": up to date\\nid: 8\\n\\n")];
    for (let length = 0; length < frame.length; length += 1) found.push(await read(frame.slice(0, length)));
    return found;
"""


async def test_an_event_that_was_cut_off_leaves_no_position_behind(board: Board) -> None:
    """Wherever a connection breaks, the next one begins after the last whole event, so that none is missed."""
    page = await board.open("/new")
    whole, *torn = await run(page, "api.js", _TORN)
    assert whole == [["task.updated", "{}"], "7", "8"]
    assert torn == [[]] * len(torn)


_ANSWERED = """
    const real = window.fetch, path = "/an/answer/of/this/test", found = []; // the page reads other things meanwhile
    const answering = (its, text, status) => {
        window.fetch = (url, options) => String(url).endsWith(its)
            ? Promise.resolve(new Response(text, { status })) : real(url, options);
    };
    for (const [status, text] of ANSWERS) {
        answering(path, text, status);
        const { ok, value = null, message = "", ...rest } = await module.get(path, { cached: false });
        found.push([ok, rest.status, value, message]);
    }
    answering("/users/me", "<h1>Sign in</h1>", 200);
    found.push(await module.check("a-token"));
    window.fetch = real;
    return found;
"""


async def test_a_page_of_a_proxy_is_no_success(board: Board) -> None:
    """With status 200 it is as no answer, also at the sign-in; an answer without content is one, and errors are."""
    page = await board.open("/new")
    foreign = "The answer is not from taskherd."
    answers: dict[tuple[int, str | None], list[Any]] = {
        (200, "<!doctype html><h1>Sign in</h1>"): [False, 0, None, foreign],
        (200, '{"username": "al'): [False, 0, None, foreign],
        (200, '{"username": "alice"}'): [True, 200, {"username": "alice"}, ""],
        (200, "null"): [True, 200, None, ""],
        (204, None): [True, 204, None, ""],
        (502, "<h1>Bad gateway</h1>"): [False, 502, None, "The server answered 502."],
        (409, '{"message": "It is taken."}'): [False, 409, None, "It is taken."],
    }
    script = f"const ANSWERS = {json.dumps(list(answers))};" + _ANSWERED
    *found, checked = await run(page, "api.js", script)
    assert found == list(answers.values())
    assert checked == {"user": "", "problem": f"{foreign} Check the connection, then try again."}
    assert page.tab.errors == []


_HIDDEN = """
    const timers = [], fetched = [], states = [];
    const real = { fetch: window.fetch, setTimeout: window.setTimeout };
    const settled = () => new Promise((done) => real.setTimeout.call(window, done));
    let isHidden = false;
    Object.defineProperty(document, "hidden", { get: () => isHidden, configurable: true });
    window.setTimeout = (run, ms) => timers.push({ run, ms });
    const path = "/a/feed/of/this/test"; // the page reads other things meanwhile
    const failed = new TypeError("Failed to fetch");
    window.fetch = (url) => (String(url).includes(path) && fetched.push(url), Promise.reject(failed));
    const leaving = new AbortController();
    module.follow({ path: () => path, signal: leaving.signal, onChanges() {}, onState: (state) => states.push(state) });
    while (!states.includes("offline")) await settled();
    isHidden = true;
    document.dispatchEvent(new Event("visibilitychange"));
    timers.find(({ ms }) => ms === 10_000).run();
    const before = fetched.length;
    for (const { run } of timers.splice(0)) run();
    await settled();
    dispatchEvent(new Event("online")); // also once it waits
    dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
    await settled();
    const whileHidden = fetched.length - before;
    isHidden = false;
    document.dispatchEvent(new Event("visibilitychange"));
    await settled();
    leaving.abort();
    Object.assign(window, real);
    delete document.hidden;
    return [whileHidden, fetched.length - before, states];
"""


async def test_a_hidden_tab_does_not_connect(board: Board) -> None:
    """A tab that was hidden while its stream was away waits for somebody to look at it, and connects at once then."""
    page = await board.open("/new")
    while_hidden, after, states = await run(page, "feed.js", _HIDDEN)
    assert (while_hidden, after) == (0, 1)
    assert states == ["offline", "paused", "connecting", "offline"]


_BORN_HIDDEN = """
    const timers = [], states = [], ended = [];
    const real = { fetch: window.fetch, setTimeout: window.setTimeout };
    const settled = () => new Promise((done) => real.setTimeout.call(window, done));
    let isHidden = true;
    Object.defineProperty(document, "hidden", { get: () => isHidden, configurable: true });
    window.setTimeout = (run, ms) => timers.push({ run, ms });
    const path = "/a/feed/of/this/test"; // the page reads other things meanwhile
    window.fetch = async (url, { signal }) => {
        if (!String(url).includes(path)) throw new TypeError("Failed to fetch");
        const number = ended.push(false) - 1;
        return new Response(new ReadableStream({ start: (stream) => (signal.onabort = () => {
            ended[number] = true;
            stream.error(signal.reason);
        }) }));
    };
    const leaving = new AbortController();
    module.follow({ path: () => path, signal: leaving.signal, onChanges() {}, onState: (state) => states.push(state) });
    while (!states.includes("live")) await settled();
    for (const { run } of timers.filter(({ ms }) => ms === 10_000)) run();
    await settled();
    const whileHidden = [...ended];
    isHidden = false;
    document.dispatchEvent(new Event("visibilitychange"));
    await settled();
    const seen = [...ended];
    leaving.abort();
    Object.assign(window, real);
    delete document.hidden;
    return [whileHidden, seen, states];
"""


async def test_a_tab_that_opens_hidden_closes_its_stream(board: Board) -> None:
    """Links opened in tabs of the background hold no connections, of which a browser has six; who looks has it anew."""
    page = await board.open("/new")
    while_hidden, seen, states = await run(page, "feed.js", _BORN_HIDDEN)
    assert while_hidden == [True]
    assert seen == [True, False]
    assert states == ["live", "paused", "connecting", "live"]


_LEFT = """
    const timers = [], fetched = [], states = [];
    const real = { fetch: window.fetch, setTimeout: window.setTimeout };
    const settled = () => new Promise((done) => real.setTimeout.call(window, done));
    window.setTimeout = (run, ms) => timers.push({ run, ms });
    const path = "/a/feed/of/this/test"; // the page reads other things meanwhile
    const answer = ({ signal }) => new Response(new ReadableStream({
      start: (stream) => (signal.onabort = () => stream.error(signal.reason)),
    }));
    window.fetch = async (url, options) => {
      if (!String(url).includes(path)) throw new TypeError("Failed to fetch");
      fetched.push(url);
      const opened = answer(options);
      dispatchEvent(new PageTransitionEvent("pagehide")); // the answer is there, but nobody has looked at it yet
      return opened;
    };
    const leaving = new AbortController();
    module.follow({ path: () => path, signal: leaving.signal, onChanges() {}, onState: (state) => states.push(state) });
    while (!states.length) await settled();
    for (let turn = 0; turn < 10; turn++) {
      await settled();
      for (const { run } of timers.splice(0)) run();
    }
    leaving.abort();
    Object.assign(window, real);
    return [fetched.length, states];
"""


async def test_a_page_that_is_left_while_its_stream_opens_does_not_connect_again(board: Board) -> None:
    """It would keep a connection of a page that nobody sees."""
    page = await board.open("/new")
    assert await run(page, "feed.js", _LEFT) == [1, ["paused"]]


_DOCUMENT = {
    "name": "Flaky-Checkout",
    "template_name": "Codex",
    "status": "active",
    "current_state": {"state": "working"},
    "workspace_agent_health": {"healthy": False, "reason": "agent has lost connection"},
    "labels": {"repo": "Acme/App"},
}
"""What the terms of queries are about, in the document of a task; its times are set in the page."""
_MATCHES = """
    const ago = (seconds) => new Date(Date.now() - seconds * 1000).toISOString();
    const task = { ...DOCUMENT, created_at: ago(2 * 3600), updated_at: ago(60) };
    return QUERIES.map((query) => module.matches(query, task) ?? null);
"""


async def test_a_task_matches_a_query_or_not_or_nobody_knows(board: Board) -> None:
    """Each term is judged as the API does, in upper or lower case; of pool and runner a document says nothing."""
    page = await board.open("/new")
    expected = {
        "": True,
        "owner:me organization:acme": True,
        "status:ACTIVE state:Working name:flaky template:codex": True,
        "status:paused": False,
        "health:lost": True,
        "health:unhealthy": True,
        "health:healthy": False,
        "health:none": False,
        "label:repo=acme/app": True,
        "label:repo=acme/other": False,
        "created:>1h created:<1d": True,
        "created:<1h": False,
        "changed:<1h": True,
        "changed:>1d": False,
        "waiting:False": True,
        "failed:true": False,
        "runner:rack-7": None,
        "pool:gpu state:working": None,
        "pool:gpu state:idle": False,
    }
    values = f"const DOCUMENT = {json.dumps(_DOCUMENT)}, QUERIES = {json.dumps(list(expected))};"
    found = await run(page, "query.js", values + _MATCHES)
    assert dict(zip(expected, found, strict=True)) == expected


_LINKS = {
    "https://github.com/acme/shop/pull/1207": "acme/shop#1207",
    "https://gitlab.com/acme/app/shop/-/merge_requests/7": "acme/app/shop#7",
    "https://codeberg.org/acme/shop/pulls/7/files": "acme/shop#7",
    "https://bitbucket.org/acme/shop/pull-requests/7": "acme/shop#7",
    "https://GitHub.com:443/acme/shop/issues/3": "acme/shop#3",
    "https://evil.example/acme/shop/pull/1207": "evil.example/acme/shop#1207",
    "https://github.com@evil.example/acme/shop/pull/1207": "evil.example/acme/shop#1207",
    "https://github.com.evil.example/acme/shop/pull/1207": "github.com.evil.example/acme/shop#1207",
    "https://www.github.com/acme/shop/pull/1207": "www.github.com/acme/shop#1207",
    "https://github.com:8443/acme/shop/pull/1207": "github.com:8443/acme/shop#1207",
    "https://g\u0456thub.com/acme/shop/pull/1207": "xn--gthub-n2e.com/acme/shop#1207",
    "http://github.com/acme/shop/pull/1207": "github.com/acme/shop#1207",
    "https://github.com/evil.example/acme": "github.com/evil.example/acme",
    "https://example.com/": "example.com",
    "javascript:alert(1)": None,
    "https://": None,
}
"""What a link shows, by its address."""


async def test_a_link_names_a_pull_request_of_a_known_host_only(board: Board) -> None:
    """Agents say where links lead: any other host is in the text, so that nobody takes it for the real one."""
    page = await board.open("/new")
    values = f"const URIS = {json.dumps(list(_LINKS))};"
    found = await run(page, "format.js", values + "return URIS.map((each) => module.link(each)?.text ?? null);")
    assert dict(zip(_LINKS, found, strict=True)) == _LINKS


_WRITTEN = """
    return TYPED.map((typed) => [module.meant(typed), module.liveQuery(typed)]);
"""


async def test_a_query_is_written_as_the_api_reads_it(board: Board) -> None:
    """Quotes stay where a value needs them, and a colon inside them ends no key."""
    page = await board.open("/new")
    expected = {
        'label:"kind=two words"': ['label:"kind=two words"'] * 2,
        'label:kind="two  words" owner:me': ['label:"kind=two  words" owner:me'] * 2,
        "label:ticket=SHOP:12": ['label:"ticket=SHOP:12"'] * 2,
        'label:"ticket=SHOP:12" created:<1d': ['label:"ticket=SHOP:12" created:<1d', 'label:"ticket=SHOP:12"'],
        '"Fix: the" test': ["name:fix-the-test", '"Fix: the" test'],
        "owner:me": ["owner:me"] * 2,
    }
    found = await run(page, "query.js", f"const TYPED = {json.dumps(list(expected))};" + _WRITTEN)
    assert dict(zip(expected, found, strict=True)) == expected
