"""Creates of many tasks with one request, without servers: their order, their rate, and what each result says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

import orjson
import pytest

from taskherd.api.command_slots import MAX_BULK, CommandSlots
from taskherd.api.commands import CommandResult
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.api.tasks import batches
from taskherd.domain.command_results import COMMAND_ID_REUSED, CommandRefused
from taskherd.errors import Unavailable
from taskherd.store import command_log, task_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import ApiContext
    from taskherd.domain.commands import Create

ALICE, BOB, VERSION = UUID(int=1), UUID(int=2), UUID(int=3)
RETRY = "Repeat the create with the same idempotency key: a task that was created is not created again."


class Worker:
    """A worker that answers creates as a test says, by their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.executed: list[UUID] = []
        self.fetched: list[Any] = []
        self.sent: list[Create] = []
        self.answers: dict[str, Any] = {}
        self.owners: dict[str, Any] = {"bob": (BOB, True)}
        self.lookups: list[Any] = []
        self.in_flight = 0
        self.gate: asyncio.Event | None = None
        self.time = 0.0
        self.burst = 1_000
        monkeypatch.setattr(batches, "execute", self._execute)
        monkeypatch.setattr(task_queries, "find_owner", self._find_owner)

    async def fetch(self, statement: str, ids: list[UUID]) -> list[tuple[UUID]]:
        """Return which of these commands were executed before."""
        assert statement == command_log.EXECUTED
        self.fetched.append(ids)
        return [(each,) for each in ids if each in self.executed]

    async def create(self, *entries: Any, key: str | None = "batch") -> list[dict[str, Any]]:
        """Create tasks, and return the results."""
        loop = asyncio.get_running_loop()
        api = SimpleNamespace(
            reads=SimpleNamespace(reader=lambda *_: self),
            reader=self,
            settings=SimpleNamespace(api_command_timeout=10),
            rate_limits=SimpleNamespace(creates=RateLimiter(1, self.burst, lambda: self.time)),
            command_slots=CommandSlots(loop.time),
            nullable_ids_as_objects=False,
        )
        headers = {} if key is None else {"idempotency-key": key}
        body = SimpleNamespace(tasks=list(entries))
        request = RequestContext(cast("ApiContext", api), "POST", {}, {}, headers, body)
        request.set_caller(Caller(ALICE, "alice", "token"))
        response = await batches.create(request)
        found = orjson.loads(response.body)
        created = sum(result["status"] in {200, 201} for result in found["results"])
        assert (response.status, found["count"], found["created"]) == (200, len(entries), created)
        assert request.log_fields == {"tasks": len(entries), "created": created}
        results: list[dict[str, Any]] = found["results"]
        return results

    async def _execute(self, _api: object, command: Create) -> CommandResult | CommandRefused:
        self.sent.append(command)
        self.in_flight += 1
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        self.in_flight -= 1
        answer = self.answers.get(command.name or "")
        if isinstance(answer, Exception):
            raise answer
        return answer or CommandResult({"name": command.name}, queued=False, repeated=False)

    async def _find_owner(self, _reader: object, caller: UUID, user: str, version: UUID) -> Any:
        self.lookups.append((caller, user, version))
        answer = self.owners.get(user)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Return a worker."""
    return Worker(monkeypatch)


def entry(name: str, **fields: Any) -> dict[str, Any]:
    """Return a task to create."""
    return {"name": name, "input": f"Do {name}", "template_version_id": str(VERSION), **fields}


async def test_each_result_is_in_the_place_of_its_task(worker: Worker) -> None:
    """With the key by which it can be repeated alone, and the status that a create of its own has."""
    worker.answers = {
        "two": CommandResult({"name": "two"}, queued=False, repeated=True),
        "three": CommandRefused(409, "No.", "Why not."),
        "four": CommandRefused(COMMAND_ID_REUSED.status, COMMAND_ID_REUSED.message),
    }
    entries = [entry("one"), entry("two", idempotency_key="mine"), entry("three"), entry("four"), "no task"]
    assert await worker.create(*entries) == [
        {"status": 201, "idempotency_key": "batch/0", "task": {"name": "one"}},
        {"status": 200, "idempotency_key": "mine", "task": {"name": "two"}},
        {"status": 409, "idempotency_key": "batch/2", "error": {"message": "No.", "detail": "Why not."}},
        {
            "status": COMMAND_ID_REUSED.status,
            "idempotency_key": "batch/3",
            "error": {"message": "Idempotency-Key was used for another request."},
        },
        {
            "status": 400,
            "idempotency_key": "batch/4",
            "error": {"message": "Request body must be valid JSON.", "detail": "Expected an object."},
        },
    ]
    keys = ["batch/0", "mine", "batch/2", "batch/3"]
    assert [each.command_id for each in worker.sent] == [uuid5(ALICE, key) for key in keys]
    assert [each.task_id for each in worker.sent] == [uuid5(each.command_id, "task") for each in worker.sent]
    assert worker.fetched == [[uuid5(ALICE, key) for key in [*keys, "batch/4"]]]


async def test_a_key_that_is_none_or_used_twice(worker: Worker) -> None:
    """Only its own task is refused, and its result has no key to repeat it with."""
    results = await worker.create(
        entry("one", idempotency_key=""), entry("two", idempotency_key="a"), entry("three", idempotency_key="a")
    )
    assert [(each["status"], each.get("idempotency_key")) for each in results] == [(400, None), (201, "a"), (400, None)]
    assert results[0]["error"]["validations"][0]["field"] == "idempotency_key"


@pytest.mark.parametrize(
    ("key", "entries", "looks"),
    [
        (None, [entry("one"), "no task"], 0),
        (None, [entry("one"), entry("two", idempotency_key="mine")], 1),
        ("batch", [entry("one")], 1),
    ],
)
async def test_what_can_be_a_repetition_is_looked_up(
    worker: Worker, key: str | None, entries: Sequence[Any], looks: int
) -> None:
    """Nothing can, without a key of the request or of a task."""
    await worker.create(*entries, key=key)
    assert len(worker.fetched) == looks


async def test_only_new_tasks_count_against_the_rate(worker: Worker) -> None:
    """In the order of the request; those beyond it are told when to be repeated."""
    worker.burst = 2
    worker.executed = [uuid5(ALICE, "batch/1")]
    results = await worker.create(*(entry(name) for name in ("one", "two", "three", "four", "five")))
    assert [each["status"] for each in results] == [201, 201, 201, 429, 429]
    assert results[3]["retry_after"] == 1
    assert results[3]["error"] == {
        "message": "You have created too many tasks. Please wait.",
        "detail": f"The next one is accepted in 1 s. {RETRY}",
    }
    assert [each.name for each in worker.sent] == ["one", "two", "three"]


async def test_an_owner_is_looked_up_once(worker: Worker) -> None:
    """For each version of a template; one that is not there, is not there for each of its tasks."""
    entries = [entry("one", owner="bob"), entry("two", owner="bob"), entry("three", owner="nobody")]
    others = [entry("four", owner="nobody"), entry("five"), {"name": "six", "input": "Do six", "owner": "bob"}]
    results = await worker.create(*entries, *others)
    assert [each["status"] for each in results] == [201, 201, 404, 404, 201, 201]
    nil = UUID(int=0)
    assert worker.lookups == [(ALICE, "bob", VERSION), (ALICE, "nobody", VERSION), (ALICE, "bob", nil)]
    assert [each.owner_id for each in worker.sent] == [BOB, BOB, ALICE, BOB]


async def test_an_owner_that_cannot_be_looked_up_now(worker: Worker) -> None:
    """The next task with it is tried again, and each is told to be repeated."""
    worker.owners["bob"] = Unavailable("no database")
    results = await worker.create(entry("one", owner="bob"), entry("two", owner="bob"), entry("three"))
    assert [each["status"] for each in results] == [503, 503, 201]
    assert results[0]["retry_after"] == 2
    assert results[0]["error"]["message"] == "The service is temporarily unavailable."
    assert len(worker.lookups) == 2


async def test_after_an_outage_no_more_is_sent(worker: Worker) -> None:
    """What is in flight ends by itself; the rest may be repeated."""
    worker.answers = {"task-0": Unavailable("no reply")}
    results = await worker.create(*(entry(f"task-{number}") for number in range(500)))
    statuses = [each["status"] for each in results]
    assert (statuses[0], statuses[1]) == (503, 201)
    assert statuses.count(503) > 1
    assert results[0]["error"]["message"] == "The change was not confirmed in time."
    assert results[-1] == {
        "status": 503,
        "idempotency_key": "batch/499",
        "error": {
            "message": "The create was not sent in time.",
            "detail": f"Please try again in a moment. {RETRY}",
        },
        "retry_after": 2,
    }


async def test_a_batch_has_a_limited_number_of_commands_in_flight(worker: Worker) -> None:
    """The next ones are prepared once there is room for all that are sent together."""
    worker.gate = asyncio.Event()
    creating = asyncio.create_task(worker.create(*(entry(f"task-{number}") for number in range(500))))
    async with asyncio.timeout(30):
        for _ in range(100):
            await asyncio.sleep(0)
        assert MAX_BULK - batches.SENT_TOGETHER < worker.in_flight <= MAX_BULK
        assert worker.in_flight % batches.SENT_TOGETHER == 0
        worker.gate.set()
        assert [each["status"] for each in await creating] == [201] * 500
    assert [each.name for each in worker.sent] == [f"task-{number}" for number in range(500)]


@pytest.mark.parametrize(("seconds", "status", "sent"), [(19, 201, 2), (21, 503, 0)])
async def test_commands_are_not_sent_for_too_long(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, seconds: float, status: int, sent: int
) -> None:
    """They are sent for 20 seconds, twice as long as one may wait for its reply."""
    loop, fetch = asyncio.get_running_loop(), worker.fetch
    real, shift = loop.time, [0.0]

    async def fetch_slowly(statement: str, ids: list[UUID]) -> list[tuple[UUID]]:
        shift[0] += seconds
        return await fetch(statement, ids)

    monkeypatch.setattr(loop, "time", lambda: real() + shift[0])
    monkeypatch.setattr(worker, "fetch", fetch_slowly)
    results = await worker.create(entry("one"), entry("two"))
    message = None if status == 201 else "The create was not sent in time."
    assert [(each["status"], each.get("error", {}).get("message")) for each in results] == [(status, message)] * 2
    assert len(worker.sent) == sent


@pytest.mark.parametrize(("length", "accepted"), [(251, True), (252, False)])
async def test_a_key_of_a_batch_leaves_room_for_an_index(worker: Worker, length: int, *, accepted: bool) -> None:
    """Each task can then be repeated alone, with a key that a single create accepts."""
    if accepted:
        (result,) = await worker.create(entry("one"), key="k" * length)
        assert result["idempotency_key"] == "k" * length + "/0"
    else:
        with pytest.raises(HTTPError) as raised:
            await worker.create(entry("one"), key="k" * length)
        assert orjson.loads(raised.value.response.body)["validations"] == [
            {"field": "Idempotency-Key", "detail": "Expected 1 to 251 printable ASCII characters."}
        ]


def test_batches_in_progress_are_counted_by_user() -> None:
    """A batch counts from before its body is read, and not for other users."""
    limit = ConcurrencyLimit(8, 1, "Too many.")
    request = RequestContext(cast("ApiContext", SimpleNamespace(batches=limit)), "POST", {}, {}, {})
    request.set_caller(Caller(ALICE, "alice", "token"))
    with batches.admit(request):
        assert [limit.is_full(each) for each in (ALICE, BOB)] == [True, False]
