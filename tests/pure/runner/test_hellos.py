"""What a runner does with the answer to its hello, and without one; and how it asks whose tasks are on its disk."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.topology import TopologyNames
from taskherd.errors import Malformed, Misconfigured, Unavailable
from taskherd.messages.claims import RunnerHello
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.runner import orphans
from taskherd.runner.hello import Hellos
from taskherd.runner.orphans import find_orphans


class Worker:
    """A worker that answers what a test says, or not."""

    def __init__(self) -> None:
        self.answers: list[bytes | Exception] = []
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    async def call(self, routing_key: str, body: bytes, **how: Any) -> Any:
        """Answer a call."""
        self.asked.append((routing_key, json.loads(body), how))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(body=answer)


@pytest.fixture
def worker() -> Worker:
    """Return a worker."""
    return Worker()


QUEUES = ["herd.work.linux", "herd.work.r-1"]
OK = b'{"ok": true}'


class Saying:
    """The hellos of a runner, the time, and which looks for its queues fail."""

    def __init__(self, worker: Worker) -> None:
        self.now = 0.0
        self.checked: list[list[str]] = []
        self.missing: list[Exception] = []
        given: Any = worker
        hello = RunnerHello("r-1", "linux")
        self.hellos = Hellos(given, self._check, TopologyNames("herd"), hello, clock=lambda: self.now)

    async def _check(self, queues: list[str]) -> None:
        self.checked.append(queues)
        if self.missing:
            raise self.missing.pop(0)


@pytest.fixture
def saying(worker: Worker) -> Saying:
    """Return the hellos of a runner to the worker."""
    return Saying(worker)


async def test_an_answered_hello_has_declared_the_queues(worker: Worker, saying: Saying) -> None:
    """They are looked for nevertheless; a hello does not expire."""
    for _ in range(2):
        worker.answers = [OK]
        assert await saying.hellos.obtain_queues() == QUEUES
    said = ("runner.hello", {"type": "runner.hello", "runner": "r-1", "pool": "linux"}, {"no_expiry": True})
    assert (worker.asked, saying.checked) == ([said] * 2, [QUEUES] * 2)
    worker.answers, saying.missing = [OK], [Unavailable("no exchange")]
    with pytest.raises(Unavailable, match=r"^no exchange$"):
        await saying.hellos.obtain_queues()


async def test_a_refused_hello_is_a_mistake_of_the_settings(worker: Worker, saying: Saying) -> None:
    """Nothing is looked for then."""
    worker.answers = [b'{"ok": false, "error": {"message": "taken"}}']
    with pytest.raises(Misconfigured, match="the worker refused runner r-1 of pool linux: taken") as raised:
        await saying.hellos.obtain_queues()
    assert "runner_name" in str(raised.value).lower()
    assert saying.checked == []


@pytest.mark.parametrize("answer", [Unavailable("too late"), Malformed("not_a_reply"), b"[]"])
async def test_queues_of_an_earlier_time_are_used_without_an_answer(
    worker: Worker, saying: Saying, answer: bytes | Exception
) -> None:
    """All of them must exist."""
    worker.answers = [answer]
    assert await saying.hellos.obtain_queues() == QUEUES
    assert saying.checked == [QUEUES]
    later = Saying(worker)
    worker.answers, later.missing = [answer], [Unavailable("no queue")]
    with pytest.raises(Unavailable, match=r"^waiting for a worker to declare herd\.work\.linux and herd\.work\.r-1: "):
        await later.hellos.obtain_queues()


async def test_hellos_that_nobody_answers_are_repeated_seldom(worker: Worker, saying: Saying) -> None:
    """After 10 seconds, 20, and so on up to 10 minutes; an answer begins anew, and without one the queues are used."""
    hellos = saying.hellos
    for wait in (10, 20, 40, 80, 160, 320, 600, 600):
        worker.answers = [Unavailable("nobody")]
        assert await hellos.obtain_queues() == QUEUES
        assert worker.answers == []
        saying.now += wait - 0.5
        assert await hellos.obtain_queues() == QUEUES
        saying.missing = [Unavailable("no queue")]
        with pytest.raises(Unavailable, match=r"no worker has answered runner\.hello yet"):
            await hellos.obtain_queues()
        saying.now += 0.5
    for answers in ([OK], [Unavailable("nobody again")]):
        worker.answers = [*answers]
        assert await hellos.obtain_queues() == QUEUES
        assert worker.answers == []
    saying.now += 10
    worker.answers = [OK]
    assert await hellos.obtain_queues() == QUEUES
    assert worker.answers == []


IDS = [UUID(int=number) for number in range(1, MAX_ELEMENTS + 6)]


def owned(tasks: dict[UUID, str], *unknown: UUID) -> bytes:
    """Return the answer about these tasks."""
    told = {str(task_id): owner for task_id, owner in tasks.items()}
    return json.dumps({"ok": True, "tasks": told, "unknown": [*map(str, unknown)]}).encode()


async def test_all_tasks_are_asked_for(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at a time as a message may name, and again until there is an answer."""
    monkeypatch.setattr(orphans, "RETRY_AFTER", 0)
    first, rest = IDS[:MAX_ELEMENTS], IDS[MAX_ELEMENTS:]
    told = dict.fromkeys(first[3:], "owned") | {first[0]: "gone", first[1]: "elsewhere"}
    worker.answers = [
        owned(told, first[2]),
        Unavailable("nobody"),
        b"{}",
        owned({rest[0]: "elsewhere", rest[1]: "owned", rest[2]: "gone"}, rest[3]),
    ]
    errors: list[str] = []
    given: Any = worker
    found = await find_orphans(given, "r-1", IDS, errors.append)
    assert found.deleted == [first[0], rest[2]]
    assert found.elsewhere == [first[1], rest[0]]
    assert found.unknown == [first[2], rest[3], rest[4]]
    asked = [(key, body["runner"], body["task_ids"]) for key, body, _ in worker.asked]
    assert asked == [("task.owned", "r-1", [*map(str, each)]) for each in (first, rest, rest, rest)]
    words = f"no worker answered whether {len(rest)} tasks on this disk still exist: "
    assert [error.startswith(words) for error in errors] == [True, True]
    assert errors[0] == f"{words}nobody"
