"""How much of the dead-letter queue one request looks at, whom it waits for, and how a dead letter is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from taskherd.api.context import RequestContext
from taskherd.api.dead_letters import documents, handlers, queue
from taskherd.api.dead_letters.queue import Browsed, BusyError, DeadLetterQueue
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.broker import dead_letters as broker
from taskherd.broker.dead_letters import MayNotRead
from taskherd.dead_letters import Replay, Selection
from taskherd.errors import Unavailable
from taskherd.messages.dead_letters import DeadLetter, Origin
from taskherd.settings import Settings
from taskherd.store import fleet_queries

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def letter(number: int = 1, **fields: Any) -> DeadLetter:
    """Return a dead letter."""
    body = b"x" * 10
    defaults = {"id": f"letter-{number}", "reason": "fault", "detail": "", "origin": Origin("q", "e", "k")}
    return DeadLetter(**{**defaults, "index": None, "length": 10, "body": body, "time": NOON, **fields})


class Queue:
    """A queue of dead letters in a broker whose answers a test decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.letters: list[DeadLetter] = []
        self.time = 1_000.0
        self.seconds_for_each = 0.0
        self.outage: Exception | None = None
        self.connections: list[tuple[str, str]] = []
        self.limits: list[int] = []
        self.replays: list[DeadLetter] = []
        settings = Settings(amqp_url="amqp://guest@127.0.0.1/", amqp_prefix="p")
        self.queue = DeadLetterQueue(settings, "api one", lambda: self.time)
        monkeypatch.setattr(queue, "open_connection", self._open_connection)
        monkeypatch.setattr(broker, "browse", self._browse)
        monkeypatch.setattr(queue, "replay", self._replay)
        monkeypatch.setattr(queue, "decode", lambda each: each)

    @asynccontextmanager
    async def _open_connection(self, url: str, purpose: str, _endpoints: object) -> AsyncIterator[str]:
        self.connections.append((url, purpose))
        if self.outage is not None:
            raise self.outage
        yield "connection"

    async def _browse(
        self,
        connection: object,
        names: Any,
        visit: Callable[[Any], None],
        *,
        limit: int,
        more: Callable[[], bool],
    ) -> int:
        assert (connection, names.dead) == ("connection", "p.dead")
        self.limits.append(limit)
        visited = 0
        for each in self.letters:
            if not more():
                break
            visit(each)
            visited += 1
            self.time += self.seconds_for_each
        return len(self.letters) - visited

    async def _replay(
        self, connection: object, _settings: object, state: Replay, *, limit: int, more: Callable[[], bool]
    ) -> None:
        assert connection == "connection"
        self.limits.append(limit)
        for each in self.replays:
            if not more():
                break
            state.bytes_read += len(each.body)
            if state.selection.has(each):
                state.replayed.append(each.id)
            self.time += self.seconds_for_each
        if isinstance(self.outage, Unavailable):
            raise self.outage


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Return an empty queue."""
    return Queue(monkeypatch)


def shown(browsed: Browsed) -> list[str]:
    """Return the ids of what was found."""
    return [each["id"] for each in browsed.found]


async def test_dead_letters_are_browsed_until_enough_match(dead: Queue) -> None:
    """On a connection of their own, each in turn; how many were not looked at is told."""
    dead.letters = [letter(number, reason="fault" if number % 2 else "invalid") for number in range(6)]
    found = await dead.queue.browse("fault", 2)
    assert (shown(found), found.read, found.left, found.bytes_read) == (["letter-1", "letter-3"], 4, 2, 40)
    found = await dead.queue.browse(None, 100)
    assert (len(found.found), found.read, found.left) == (6, 6, 0)
    assert dead.connections == [("amqp://guest@127.0.0.1/", "api one dead letters")] * 2
    assert dead.limits == [1_000, 1_000]


async def test_a_request_looks_at_dead_letters_for_ten_seconds(dead: Queue) -> None:
    """Or at 32 MiB of them."""
    dead.letters = [letter(number) for number in range(9)]
    dead.seconds_for_each = 2.5
    assert (await dead.queue.browse(None, 100)).read == 4
    dead.seconds_for_each = 0
    dead.letters = [letter(number, body=b"x" * (8 << 20)) for number in range(6)]
    assert (await dead.queue.browse(None, 100)).read == 4
    dead.letters[0] = letter(0, body=b"x" * ((8 << 20) - 1))
    assert (await dead.queue.browse(None, 100)).read == 5


@pytest.mark.parametrize(
    ("selection", "seconds", "size", "replayed", "stopped"),
    [
        (Selection(reason="fault"), 0.0, 1, 6, False),
        (Selection(reason="fault"), 2.5, 1, 4, True),
        (Selection(reason="fault"), 0.0, 8 << 20, 4, True),
        (Selection(reason="fault"), 0.0, (32 << 20) // 6, 6, False),
        (Selection(frozenset({"letter-0", "letter-2"})), 0.0, 1, 2, False),
        (Selection(frozenset({"letter-0", "letter-5"})), 4.0, 1, 1, True),
    ],
)
async def test_a_replay_ends_within_bounds(
    dead: Queue, selection: Selection, seconds: float, size: int, replayed: int, *, stopped: bool
) -> None:
    """Or when all that were named are found; the answer says so if something may be left."""
    dead.replays = [letter(number, body=b"x" * size) for number in range(6)]
    dead.seconds_for_each = seconds
    state, why = await dead.queue.replay(selection)
    assert (len(state.replayed), dead.limits) == (replayed, [1_000])
    expected = "It took too long or they were too large: look again, and go on."
    assert why == (expected if stopped else None)


async def test_a_replay_that_has_done_something_says_what(dead: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the broker is lost after that; else it fails."""
    outages: list[Unavailable] = [Unavailable("gone")]

    async def fail(_connection: object, _settings: object, state: Replay, **_: Any) -> None:
        state.replayed += replayed
        state.kept |= kept
        raise outages[0]

    monkeypatch.setattr(queue, "replay", fail)
    words = "The broker stopped answering (gone): the last one may be replayed and kept."
    replayed, kept = ["letter-1"], dict[str, str]()
    assert (await dead.queue.replay(Selection()))[1] == words
    replayed, kept = [], {"letter-1": "why"}
    assert (await dead.queue.replay(Selection()))[1] == words
    kept = {}
    with pytest.raises(Unavailable):
        await dead.queue.replay(Selection())


async def test_the_time_of_the_oldest_is_used_for_half_a_minute(dead: Queue) -> None:
    """It is that of the first one that has any; after a replay it is looked up anew."""
    dead.letters = [letter(1, time=NOON), letter(2, time=NOON - MINUTE)]
    assert await dead.queue.oldest() == NOON
    dead.letters = [letter(1, time=NOON + MINUTE)]
    dead.time += 30
    assert await dead.queue.oldest() == NOON
    dead.time += 0.5
    assert await dead.queue.oldest() == NOON + MINUTE
    dead.letters = []
    assert await dead.queue.oldest() == NOON + MINUTE
    await dead.queue.replay(Selection(reason="fault"))
    assert await dead.queue.oldest() is None
    assert len(dead.connections) == 4


async def test_the_oldest_is_the_one_that_came_first(dead: Queue) -> None:
    """Whatever the order in which they are read; one without a time says nothing."""
    dead.letters = [letter(1, time=None), letter(2, time=NOON), letter(3, time=NOON - MINUTE), letter(4, time=NOON)]
    assert (await dead.queue.browse(None, 100)).oldest == NOON - MINUTE


async def test_the_time_of_the_oldest_is_unknown_in_an_outage(dead: Queue) -> None:
    """For half a minute too, so that nobody waits for a broker again and again."""
    dead.letters = [letter(1)]
    assert await dead.queue.oldest() == NOON
    dead.time += 31
    dead.outage = Unavailable("no broker")
    assert await dead.queue.oldest() is None
    dead.outage = None
    assert await dead.queue.oldest() is None
    dead.time += 31
    assert await dead.queue.oldest() == NOON


async def test_one_request_at_a_time_reads_them(dead: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another waits for it, but not for long; who asks for the oldest is told what was known."""
    release, entered = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any, **__: Any) -> int:
        entered.set()
        await release.wait()
        return 0

    monkeypatch.setattr(broker, "browse", slow)
    monkeypatch.setattr(queue, "OLDEST_WAIT", 0.001)
    first = asyncio.create_task(dead.queue.browse(None, 1))
    async with asyncio.timeout(30):
        await entered.wait()
        second = asyncio.create_task(dead.queue.browse(None, 1))
        assert await dead.queue.oldest() is None
        assert await dead.queue.oldest() is None
        assert not second.done()
        release.set()
        await asyncio.gather(first, second)
        release.clear()
        entered.clear()
        first = asyncio.create_task(dead.queue.browse(None, 1))
        await entered.wait()
        monkeypatch.setattr(queue, "WAIT", 0.001)
        with pytest.raises(BusyError):
            await dead.queue.browse(None, 1)
        release.set()
        await first
        await dead.queue.browse(None, 1)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BusyError(), 503, "Another request reads or replays dead letters."),
        (MayNotRead("p.dead"), 403, "The API's RabbitMQ user may not read the dead letters."),
        (Unavailable("no broker"), 503, "The broker is unavailable."),
    ],
)
def test_why_dead_letters_cannot_be_read(error: Exception, status: int, message: str) -> None:
    """Each reason has an answer, and a bug none."""
    with pytest.raises(HTTPError) as raised, handlers._explained():
        raise error
    assert (raised.value.response.status, orjson.loads(raised.value.response.body)["message"]) == (status, message)
    with pytest.raises(KeyError), handlers._explained():
        raise KeyError


@pytest.mark.parametrize(
    ("text", "limit"), [(None, 50), ("1", 1), ("100", 100), ("0", None), ("101", None), ("", None)]
)
def test_a_page_has_up_to_100_dead_letters(text: str | None, limit: int | None) -> None:
    """50 by default."""
    query = {} if text is None else {"limit": text}
    if limit is not None:
        found = query_parameters.validate(handlers.DeadLettersQuery, query)
        assert (found.limit, found.reason) == (limit, "")
    else:
        with pytest.raises(HTTPError):
            query_parameters.validate(handlers.DeadLettersQuery, query)


@pytest.mark.parametrize(
    ("ids", "reason", "valid"),
    [(["letter-1"], None, True), (None, "fault", True), (None, None, False), (["letter-1"], "fault", False)],
)
async def test_a_replay_is_of_ids_or_of_a_reason(
    dead: Queue, monkeypatch: pytest.MonkeyPatch, ids: list[str] | None, reason: str | None, *, valid: bool
) -> None:
    """For an admin of all organizations; what was named and not found is kept, with the reason."""
    sees_all = [True]

    async def sees(reader: object, caller: object) -> bool:
        assert (reader, caller) == ("reader", "alice's id")
        return sees_all[0]

    monkeypatch.setattr(fleet_queries, "sees_all", sees)
    api = SimpleNamespace(reader="reader", dead_letters=dead.queue)
    request = RequestContext(cast("Any", api), "POST", {}, {}, {}, SimpleNamespace(ids=ids, reason=reason))
    request.set_caller(cast("Any", SimpleNamespace(user_id="alice's id", username="alice")))
    if not valid:
        with pytest.raises(HTTPError) as raised:
            await handlers.replay(request)
        assert orjson.loads(raised.value.response.body)["validations"] == [
            {"field": "ids", "detail": "Expected either ids or a reason."}
        ]
    else:
        dead.replays = [letter(1)]
        body = orjson.loads((await handlers.replay(request)).body)
        assert body == {"replayed": 1, "kept": [], "stopped": None}
        dead.replays, dead.seconds_for_each = [letter(2, reason="invalid")], 0
        body = orjson.loads((await handlers.replay(request)).body)
        why = "it is not among the 1,000 oldest; someone else may have replayed it, or may be reading it right now"
        assert body == {"replayed": 0, "kept": [{"id": each, "why": why} for each in ids or ()], "stopped": None}
        dead.seconds_for_each = 10
        body = orjson.loads((await handlers.replay(request)).body)
        assert body["kept"] == [{"id": each, "why": "it was not reached"} for each in ids or ()]
        sees_all[0] = False
        with pytest.raises(HTTPError) as raised:
            await handlers.replay(request)
        assert raised.value.response.status == 404


def test_a_dead_letter_is_shown_with_all_that_is_known() -> None:
    """Its reason in words, if this release knows it."""
    assert documents.letter_json(letter(1, detail="no field", index=3, sender="runner")) == {
        "id": "letter-1",
        "reason": "fault",
        "meaning": "Processing failed because of a bug in taskherd; replay it once that is fixed.",
        "detail": "no field",
        "time": "2026-11-27T12:00:00.000000Z",
        "queue": "q",
        "exchange": "e",
        "routing_key": "k",
        "sender": "runner",
        "index": 3,
        "length": 10,
        "body": "x" * 10,
        "body_cut": False,
        "replay_obstacle": None,
        "only_by_id": False,
    }
    plain = documents.letter_json(letter(1, time=None, reason="of tomorrow", sender_checked=False, length=11))
    assert (plain["time"], plain["sender"], plain["meaning"], plain["only_by_id"]) == (None, None, None, True)
    assert (plain["body_cut"], plain["length"], plain["replay_obstacle"] is None) == (True, 11, False)


@pytest.mark.parametrize(
    ("body", "text", "cut"),
    [
        (b"x" * 4_096, "x" * 4_096, False),
        (b"x" * 4_097, "x" * 4_096, True),
        (b"x" * 4_095 + "ä".encode(), "x" * 4_095, True),
        (b"\xff\xc3", "\\xff\\xc3", False),
        (b"a\0b\n", "ab\n", False),
    ],
)
def test_a_body_is_shown_in_part(body: bytes, text: str, *, cut: bool) -> None:
    """What is no text is visible as that, but not a character that the part ends in."""
    found = documents.letter_json(letter(1, body=body, length=len(body)))
    assert (found["body"], found["body_cut"]) == (text, cut)


def test_what_a_producer_named_is_shown_in_part() -> None:
    """Names have 255 characters, and a detail 500."""
    for length, ending in ((255, ""), (256, "…")):
        name = "n" * length
        found = documents.letter_json(letter(1, reason=name, origin=Origin(name, name, name), sender=name))
        names = {found[each] for each in ("reason", "queue", "exchange", "routing_key", "sender")}
        assert names == {"n" * 255 + ending}
    assert documents.letter_json(letter(1, detail="d" * 500))["detail"] == "d" * 500
    assert documents.letter_json(letter(1, detail="d" * 501))["detail"] == "d" * 500 + "…"
