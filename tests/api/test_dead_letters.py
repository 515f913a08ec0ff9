"""Dead letters over HTTP: who may see them, what is shown of them, and replaying them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import aio_pika
import pytest

from taskherd import dead_letters as replays
from taskherd.api.app import ApiProcess
from taskherd.api.dead_letters import queue
from taskherd.api.dead_letters.queue import DeadLetterQueue
from taskherd.broker import dead_letters
from taskherd.broker.dead_letters import QueuedMessage
from taskherd.dead_letters import Replay, Selection
from taskherd.dev.services import Services
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages.dead_letters import DeadLetter, Origin, decode, encode
from taskherd.settings import Settings
from tests.api.conftest import StartApi
from tests.harness.api import OTHER, TIMEOUT, ApiHarness, running_api
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import WorkerHarness, make_report
from tests.worker.test_senders import as_user

pytestmark = [pytest.mark.timeout(240)]  # rabbitmqctl starts slowly on a busy machine

FAULT, INVALID, UNTRUSTED = DeadLetterReason.FAULT, DeadLetterReason.INVALID, DeadLetterReason.UNTRUSTED_SENDER
NOON, MINUTE = datetime(2026, 11, 27, 12, tzinfo=UTC), timedelta(minutes=1)


@pytest.fixture
async def harness(start_api: StartApi) -> AsyncIterator[ApiHarness]:
    """Yield a harness with an operator, ``carol``, whose dead letters nobody else consumes."""
    async with start_api() as started:
        await started.worker.stop_dead_letters()
        await started.worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        yield started


async def bury(
    worker: WorkerHarness,
    body: Any,
    reason: DeadLetterReason = FAULT,
    *,
    origin: Origin | None = None,
    headers: Mapping[str, Any] | None = None,
) -> None:
    """Put a dead letter into the queue, by default of a report."""
    reports = f"{worker.prefix}.reports"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    content, own = encode(content, reason, "why", origin or Origin(reports, reports, "key"))
    dead = await worker.channel.get_exchange(f"{worker.prefix}.dead", ensure=False)
    await dead.publish(aio_pika.Message(content, headers={**own, **(headers or {})}), "key", timeout=30)


async def letters(harness: ApiHarness, query: str = "") -> list[dict[str, Any]]:
    """Return the dead letters as an operator sees them."""
    response = await harness.carol.get(f"/dead-letters{query}")
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["dead_letters"]
    return found


async def replay(harness: ApiHarness, **body: Any) -> dict[str, Any]:
    """Replay dead letters as an operator, and return the answer."""
    response = await harness.carol.post("/dead-letters/replay", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_whose_connection_it_is_that_reads_them(
    harness: ApiHarness, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators see in RabbitMQ which process reads dead letters, while it does."""
    rabbit = services.rabbit
    assert rabbit is not None
    reading, listed, browse = asyncio.Event(), asyncio.Event(), dead_letters.browse

    async def browse_slowly(*arguments: Any, **options: Any) -> int:
        reading.set()
        await listed.wait()
        return await browse(*arguments, **options)

    monkeypatch.setattr(dead_letters, "browse", browse_slowly)
    request = asyncio.create_task(letters(harness))
    async with asyncio.timeout(30):
        await reading.wait()
    named = await asyncio.to_thread(rabbit.ctl, "list_connections", "client_properties", within=90)
    listed.set()
    assert await request == []
    assert f'"taskherd api {harness.api.id} dead letters"' in named, named


async def test_only_an_admin_of_all_organizations_sees_and_replays_them(start_api: StartApi) -> None:
    """A member, and an admin of one of two organizations, get the 404 of what does not exist; nothing is replayed."""
    async with start_api() as harness:
        await harness.worker.stop_dead_letters()
        await bury(harness.worker, {"type": "nonsense"}, INVALID)
        body = {"reason": "invalid"}
        assert (await harness.anonymous.get("/dead-letters")).status_code == 401
        assert (await harness.anonymous.post("/dead-letters/replay", json=body)).status_code == 401
        unknown = (await harness.alice.get("/tasks/me/no-such-task")).content
        for client in (harness.alice, harness.carol, harness.mallory):
            for response in (
                await client.get("/dead-letters"),
                await client.post("/dead-letters/replay", json=body),
                await client.post("/dead-letters/replay", json={"ids": ["0" * 12]}),
            ):
                assert (response.status_code, response.content) == (404, unknown)
        await harness.worker.database.execute(f"UPDATE organizations SET active = false WHERE id = '{OTHER}'")
        assert [each["reason"] for each in await letters(harness)] == ["invalid"]
        assert (await harness.alice.get("/dead-letters")).status_code == 404


async def test_they_are_shown_in_order_and_stay(harness: ApiHarness) -> None:
    """The oldest come first, by reason if asked; looking changes neither their number nor their order."""
    worker = harness.worker
    for number in range(5):
        await bury(worker, b"%d" % number, INVALID if number % 2 else FAULT)
    for _ in range(2):
        assert [each["body"] for each in await letters(harness)] == list("01234")
        assert [each["body"] for each in await letters(harness, "?limit=2")] == ["0", "1"]
        assert [each["body"] for each in await letters(harness, "?reason=invalid&limit=1")] == ["1"]
    response = (await harness.carol.get("/dead-letters?limit=2")).json()
    assert (response["read"], response["left"]) == (2, 3)
    first = response["dead_letters"][0]
    assert (first["reason"], first["detail"], first["length"]) == ("fault", "why", 1)
    assert (first["queue"], first["routing_key"]) == (f"{worker.prefix}.reports", "key")
    assert first["meaning"].startswith("Processing failed because of a bug in taskherd")
    for query in ("limit=0", "limit=101", "limit=x"):
        assert (await harness.carol.get(f"/dead-letters?{query}")).status_code == 400


async def test_a_real_one_names_its_sender_and_time(harness: ApiHarness) -> None:
    """What a worker dead-letters has the RabbitMQ user that sent it, and the fleet tells when the oldest died."""
    dead_before = (await harness.carol.get("/fleet")).json()["dead_letters"]
    assert (dead_before["messages"], dead_before["oldest_at"]) == (0, None)
    user = harness.worker.urls[1].partition("//")[2].partition(":")[0]
    reports = await harness.worker.channel.get_exchange(f"{harness.worker.prefix}.reports", ensure=False)
    await reports.publish(aio_pika.Message(b'{"type": "nonsense"}', user_id=user), "key", timeout=30)
    found: list[dict[str, Any]] = []
    while not found:
        found = await letters(harness)
    assert (found[0]["reason"], found[0]["sender"]) == ("unknown_type", user)
    oldest = None
    while oldest is None:
        oldest = (await harness.carol.get("/fleet")).json()["dead_letters"]["oldest_at"]
        await asyncio.sleep(0.1)
    assert oldest == found[0]["time"]


async def test_what_a_producer_wrote_is_bounded_and_harmless(harness: ApiHarness) -> None:
    """A body of a mebibyte, binary, with control characters or huge headers costs a few KiB of the answer."""
    worker = harness.worker
    await bury(worker, b"\xff\x00\xe2\x80\xae<script>" + b"\xf0\x9f\x90\x91" * 262_000, INVALID)
    hostile = {"x-taskherd-detail": "d" * 20_000, "x-taskherd-queue": "q\x1b[2J\u202e" + "q" * 20_000}
    hostile |= {"x-taskherd-index": "no", "x-taskherd-reason": "r" * 9_000}
    await bury(worker, b"{}", INVALID, headers=hostile)
    large, strange = await letters(harness)
    assert large["body"].startswith("\\xff\\u202e<script>")
    assert (large["body_cut"], large["length"], large["body"][-1]) == (True, 1_048_013, "\U0001f411")
    assert len(large["body"].encode()) < 5_000
    assert (len(strange["detail"]), len(strange["reason"]), strange["index"]) == (501, 256, None)
    assert strange["queue"].startswith("q[2J\\u202eqqq")
    assert len(strange["queue"]) < 300


async def test_a_replayed_report_takes_effect(harness: ApiHarness) -> None:
    """What is replayed by its id is processed and gone; an id that is not there is named, with why."""
    worker = harness.worker
    task_id = uuid.UUID((await harness.active(name="replay-one"))["id"])
    await bury(worker, make_report("app.status", task_id, build_number=1, state="idle", message="Replayed"))
    await bury(worker, b"stays", INVALID)
    found = await letters(harness)
    gone = "0" * 12
    answer = await replay(harness, ids=[found[0]["id"], gone])
    assert (answer["replayed"], answer["stopped"]) == (1, None)
    assert [each["id"] for each in answer["kept"]] == [gone]
    assert "not among the 1,000 oldest" in answer["kept"][0]["why"]
    await worker.until(lambda: worker.state(task_id).get("message") == "Replayed")
    assert [each["body"] for each in await letters(harness)] == ["stays"]


async def test_who_is_not_trusted_is_replayed_only_by_its_id(harness: ApiHarness) -> None:
    """A reason replays none of an untrusted sender; whoever names its id vouches for it."""
    worker = harness.worker
    await bury(worker, {"type": "nonsense"}, UNTRUSTED)
    [letter] = await letters(harness)
    assert letter["only_by_id"] is True
    answer = await replay(harness, reason="untrusted_sender")
    assert (answer["replayed"], [each["id"] for each in answer["kept"]]) == (0, [letter["id"]])
    assert "no trusted sender" in answer["kept"][0]["why"]
    assert (await replay(harness, ids=[letter["id"]]))["replayed"] == 1
    found: list[dict[str, Any]] = []
    while not found:
        found = await letters(harness)
    assert [each["reason"] for each in found] == ["unknown_type"]  # it was believed, and is as invalid as before


async def test_what_cannot_be_replayed_is_kept_with_the_reason(harness: ApiHarness) -> None:
    """A truncated body, and an exchange that is gone or takes it nowhere, keep a letter; the others are replayed."""
    worker = harness.worker
    await bury(worker, bytes(1024 * 1024 + 1))
    await bury(worker, b"gone", origin=Origin("q", f"{worker.prefix}.gone", "key"))
    await worker.channel.declare_exchange(f"{worker.prefix}.unbound")
    await bury(worker, b"unbound", origin=Origin("q", f"{worker.prefix}.unbound", "key"))
    await bury(worker, {"type": "nonsense"})
    truncated, gone, unbound, _ = await letters(harness)
    assert truncated["replay_obstacle"] == "only the beginning of its body was kept"
    answer = await replay(harness, reason="fault")
    assert answer["replayed"] == 1
    assert {each["id"]: each["why"] for each in answer["kept"]} == {
        truncated["id"]: "only the beginning of its body was kept",
        gone["id"]: "its original exchange no longer exists",
        unbound["id"]: "no queue is bound to its original exchange with its routing key",
    }
    assert (await harness.create())["status"] == "pending"  # commands go another way than what was refused


async def test_two_who_replay_the_same_at_once_replay_it_once(harness: ApiHarness) -> None:
    """Of several requests for one letter, also to another process, one replays it and the others do not find it."""
    worker = harness.worker
    task_id = uuid.UUID((await harness.active(name="replay-twice"))["id"])
    await bury(worker, make_report("app.status", task_id, build_number=1, state="idle", message="Once"))
    [letter] = await letters(harness)
    async with running_api(*worker.urls, worker.prefix) as other:
        url = f"http://127.0.0.1:{other.port}/api/v2/dead-letters/replay"
        body = {"ids": [letter["id"]]}
        posts = [harness.carol.post(target, json=body) for target in ("/dead-letters/replay", url) * 3]
        answers = [response.json() for response in await asyncio.gather(*posts)]
    assert sorted(answer["replayed"] for answer in answers) == [0, 0, 0, 0, 0, 1]
    assert await letters(harness) == []


async def test_a_request_looks_at_a_bounded_part(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many, or of large ones, only the oldest are looked at, and the answer says so."""
    worker = harness.worker
    for number in range(6):
        await bury(worker, b"%d" % number, INVALID)
    monkeypatch.setattr(queue, "MAX_READ", 4)
    response = (await harness.carol.get("/dead-letters?reason=fault")).json()
    assert (response["dead_letters"], response["read"], response["left"]) == ([], 4, 2)
    monkeypatch.setattr(queue, "MAX_READ_BYTES", 2)
    response = (await harness.carol.get("/dead-letters")).json()
    assert [each["body"] for each in response["dead_letters"]] == ["0", "1"]
    last = (await letters(harness))[1]["id"]
    answer = await replay(harness, ids=["0" * 12, last])
    assert (answer["replayed"], answer["kept"][0]["why"]) == (1, "it was not reached")
    assert answer["stopped"].startswith("It took too long or they were too large")


def new_queue(harness: ApiHarness, now: Callable[[], float]) -> DeadLetterQueue:
    """Return the dead letters of the harness with a clock of the test."""
    settings = Settings(amqp_url=harness.worker.urls[1], amqp_prefix=harness.worker.prefix)
    return DeadLetterQueue(settings, "tests", now)


@pytest.mark.parametrize(("seconds", "size"), [(2.5, 1), (0.0, 8 * 1024 * 1024)])
async def test_a_request_looks_at_ten_seconds_or_32_mib(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, seconds: float, size: int
) -> None:
    """It takes no further dead letter after that, and a replay says that something may be left."""
    clock, body = [1_000.0], bytes(size)
    looked: list[QueuedMessage] = []

    def decode_slowly(message: QueuedMessage) -> DeadLetter:
        looked.append(message)
        clock[0] += seconds
        return replace(decode(message), body=body)

    monkeypatch.setattr(queue, "decode", decode_slowly)
    monkeypatch.setattr(replays, "decode", decode_slowly)
    for number in range(6):
        await bury(harness.worker, b"%d" % number, INVALID)
    tested = new_queue(harness, lambda: clock[0])
    browsed = await tested.browse("fault", 100)
    assert (browsed.found, browsed.read, browsed.left, len(looked)) == ([], 4, 2, 4)
    state, stopped = await tested.replay(Selection(reason="fault"))
    assert (state.replayed, len(looked)) == ([], 8)
    assert stopped == "It took too long or they were too large: look again, and go on."


async def test_a_replay_of_ids_ends_with_the_last_of_them(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dead letter after it is looked at, and nothing was left out; a replay of a reason looks at all."""
    looked: set[bytes] = set()

    def noting_decode(message: QueuedMessage) -> DeadLetter:
        looked.add(message.body)
        return decode(message)

    monkeypatch.setattr(replays, "decode", noting_decode)
    for number in range(4):
        await bury(harness.worker, b"%d" % number, origin=Origin("q", f"{harness.worker.prefix}.gone", "key"))
    ids = [each["id"] for each in await letters(harness)]
    answer = await replay(harness, ids=[ids[1], ids[0]])
    assert (len(answer["kept"]), answer["stopped"], looked) == (2, None, {b"0", b"1"})
    answer = await replay(harness, reason="fault")
    assert (len(answer["kept"]), answer["stopped"], looked) == (4, None, {b"0", b"1", b"2", b"3"})


@pytest.mark.parametrize(("replayed", "kept"), [(["letter-1"], {}), ([], {"letter-1": "why"}), ([], {})])
async def test_a_replay_that_has_done_something_says_what(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, replayed: list[str], kept: dict[str, str]
) -> None:
    """When the broker is lost in the middle, what was done before is in the answer; if it was nothing, it fails."""

    async def fail(_connection: object, _settings: object, state: Replay, **_: object) -> None:
        state.replayed += replayed
        state.kept |= kept
        raise Unavailable("gone")

    monkeypatch.setattr(queue, "replay", fail)
    response = await harness.carol.post("/dead-letters/replay", json={"reason": "fault"})
    if replayed or kept:
        words = "The broker stopped answering (gone): the last one may be replayed and kept."
        assert (response.status_code, response.json()["stopped"]) == (200, words)
        assert response.json()["replayed"] == len(replayed)
    else:
        assert (response.status_code, response.json()["message"]) == (503, "The broker is unavailable.")


async def test_a_request_does_not_wait_for_long_for_another(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever would have to wait is told to repeat it; after the other one it is that request's turn."""
    await bury(harness.worker, b"{}", INVALID)
    reading, go_on, browse = asyncio.Event(), asyncio.Event(), dead_letters.browse

    async def browse_slowly(*arguments: Any, **options: Any) -> int:
        reading.set()
        await go_on.wait()
        return await browse(*arguments, **options)

    monkeypatch.setattr(dead_letters, "browse", browse_slowly)
    first = asyncio.create_task(letters(harness))
    async with asyncio.timeout(30):
        await reading.wait()
    with monkeypatch.context() as patched:
        patched.setattr(queue, "WAIT", 0.001)
        response = await harness.carol.get("/dead-letters")
    assert (response.status_code, response.json()["message"]) == (503, "Another request reads or replays dead letters.")
    go_on.set()
    assert len(await first) == len(await letters(harness)) == 1


async def test_the_time_of_the_oldest_is_used_for_half_a_minute(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that, and after each replay, it is looked up anew; in an outage it is unknown for as long."""
    monkeypatch.setattr(queue, "OLDEST_WAIT", TIMEOUT)
    clock, times = [1_000.0], {b"0": None, b"1": NOON, b"2": NOON - MINUTE, b"3": NOON}
    looked: list[bytes] = []

    def decode_with_time(message: QueuedMessage) -> DeadLetter:
        looked.append(message.body)
        return replace(decode(message), time=times[message.body])

    monkeypatch.setattr(queue, "decode", decode_with_time)
    tested = new_queue(harness, lambda: clock[0])
    assert await tested.oldest() is None
    for body in times:
        await bury(harness.worker, body)
    clock[0] += 30
    assert await tested.oldest() is None
    times[b"0"] = NOON + MINUTE
    clock[0] += 0.5
    assert [*await asyncio.gather(tested.oldest(), tested.oldest())] == [NOON + MINUTE] * 2
    assert looked == [b"0"]  # the first in the queue, once for both
    times[b"0"] = None
    assert (await tested.browse(None, 100)).oldest == NOON - MINUTE
    assert await tested.oldest() == NOON + MINUTE
    await tested.replay(Selection(frozenset({"0" * 12})))
    assert await tested.oldest() is None
    times[b"0"] = NOON
    clock[0] += 31
    with monkeypatch.context() as patched:
        patched.setattr(queue, "open_connection", no_broker)
        assert await tested.oldest() is None
    assert await tested.oldest() is None
    clock[0] += 31
    assert await tested.oldest() == NOON


def no_broker(*_: object) -> NoReturn:
    """Fail as in an outage of the broker."""
    raise Unavailable("no broker")


@pytest.mark.parametrize(
    "body",
    [{}, {"ids": []}, {"ids": ["x"]}, {"ids": ["0" * 12] * 101}, {"reason": ""}, {"ids": ["0" * 12], "reason": "x"}],
)
async def test_a_replay_names_either_ids_or_a_reason(harness: ApiHarness, body: dict[str, Any]) -> None:
    """Anything else is refused, so that nothing is replayed by mistake."""
    await bury(harness.worker, b"{}", INVALID)
    assert (await harness.carol.post("/dead-letters/replay", json=body)).status_code == 400
    assert len(await letters(harness)) == 1


@asynccontextmanager
async def api_as(services: Services, worker: WorkerHarness, write: str, read: str) -> AsyncIterator[ApiProcess]:
    """Run an API whose RabbitMQ user may only write to and read these, beside its own queues."""
    assert services.rabbit is not None
    name, own = f"api-{uuid.uuid4().hex[:6]}", "amq\\.gen-.*"
    prefix = f"{worker.prefix}\\."
    rights = {"configure": own, "write": f"^({prefix}({write})|{own})$", "read": f"^({prefix}({read})|{own})$"}
    definitions = {
        "users": [{"name": name, "password": "pw", "tags": []}],
        "permissions": [{"user": name, "vhost": "/", **rights}],
    }
    await asyncio.to_thread(services.rabbit.import_definitions, json.dumps(definitions).encode())
    async with running_api(worker.urls[0], as_user(worker.urls[1], name, "pw"), worker.prefix) as api:
        yield api
    await asyncio.to_thread(services.rabbit.ctl, "delete_user", name)


async def test_without_the_right_the_rest_works(harness: ApiHarness, services: Services) -> None:
    """An API whose RabbitMQ user may not read the dead letters says so, and keeps its connections."""
    worker = harness.worker
    await bury(worker, {"type": "nonsense"})
    async with api_as(services, worker, "commands|reports", "wakeups") as api:
        base = f"http://127.0.0.1:{api.port}/api/v2"
        for response in (
            await harness.carol.get(f"{base}/dead-letters"),
            await harness.carol.post(f"{base}/dead-letters/replay", json={"reason": "fault"}),
        ):
            assert response.status_code == 403
            assert response.json()["message"] == "The API's RabbitMQ user may not read the dead letters."
        dead: dict[str, Any] = (await harness.carol.get(f"{base}/fleet")).json()["dead_letters"]
        assert (dead["messages"], dead["oldest_at"]) == (1, None)
        body = {"template_version_id": "00000000-0000-0000-0000-000000000000", "input": "x"}
        assert (await harness.alice.post(f"{base}/tasks/me", json=body)).status_code == 400  # the worker answered
        value = api.metrics.registry.get_sample_value
        assert [value("taskherd_reconnects_total", {"connection": each}) for each in ("publish", "consume")] == [0, 0]
    assert len(await letters(harness)) == 1


async def test_what_its_user_may_not_publish_is_kept(harness: ApiHarness, services: Services) -> None:
    """Without the right to write claims, those are kept with the reason, and what comes after them is replayed."""
    worker = harness.worker
    claims = f"{worker.prefix}.claims"
    await bury(worker, {"type": "nonsense"}, origin=Origin(claims, claims, "build.claim"))
    await bury(worker, {"type": "nonsense"})
    claim, _ = await letters(harness)
    async with api_as(services, worker, "commands|reports", "dead|wakeups") as api:
        url = f"http://127.0.0.1:{api.port}/api/v2/dead-letters/replay"
        answer = (await harness.carol.post(url, json={"reason": "fault"})).json()
    assert answer["replayed"] == 1
    why = "the RabbitMQ user may not publish to its original exchange"
    assert answer["kept"] == [{"id": claim["id"], "why": why}]


async def test_a_broker_that_hangs_is_given_up(harness: ApiHarness) -> None:
    """The answer is a 503 within bounds, and what was being read is there again."""
    worker = harness.worker
    await bury(worker, {"type": "nonsense"})
    proxy = await TcpProxy.before(worker.urls[1])
    async with running_api(worker.urls[0], through(worker.urls[1], proxy), worker.prefix) as api:
        url = f"http://127.0.0.1:{api.port}/api/v2/dead-letters"
        assert (await harness.carol.get(url)).status_code == 200
        proxy.freeze()
        response = await harness.carol.get(url)
        assert (response.status_code, response.json()["message"]) == (503, "The broker is unavailable.")
        proxy.cut()
        proxy.thaw()
    await proxy.stop()
    assert len(await letters(harness)) == 1


async def test_a_broker_that_hangs_is_passed_by(harness: ApiHarness) -> None:
    """With another host in the URL, dead letters are read there; the one that hangs costs its time once."""
    worker = harness.worker
    await bury(worker, {"type": "nonsense"})
    hung, good = await TcpProxy.before(worker.urls[1]), await TcpProxy.before(worker.urls[1])
    hung.freeze()
    async with running_api(worker.urls[0], through(worker.urls[1], hung, good), worker.prefix) as api:
        url = f"http://127.0.0.1:{api.port}/api/v2/dead-letters"
        assert (await harness.carol.get(url)).status_code == 200
        tried = hung.accepted
        assert (await harness.carol.get(url)).status_code == 200
        assert hung.accepted == tried
    await hung.stop()
    await good.stop()
