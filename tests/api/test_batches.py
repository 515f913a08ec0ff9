"""Creating many tasks with one request: each create is judged, limited and answered by itself."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from taskherd.api import command_slots
from taskherd.api.tasks import batches
from taskherd.api.tasks.schemas import MAX_BATCH
from tests.api.conftest import StartApi
from tests.api.test_tasks import GOLDEN
from tests.harness.api import ALICE, BOB, OTHER_VERSION, VERSION, ApiHarness
from tests.harness.worker import running_worker


def entry(text: str, **fields: Any) -> dict[str, Any]:
    """Return a task of a batch."""
    return {"template_version_id": str(VERSION), "input": text, **fields}


async def post(api_harness: ApiHarness, tasks: list[Any], key: str | None = None, user: str = "alice") -> Any:
    """Create tasks with one request, and return the body of the response."""
    headers = {"Idempotency-Key": key} if key else {}
    response = await api_harness.clients[user].post("/task-batches", json={"tasks": tasks}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def repeat(api_harness: ApiHarness, tasks: list[Any], key: str) -> None:
    """Create tasks with one key until all are confirmed."""
    async with asyncio.timeout(45):
        while 503 in statuses(body := await post(api_harness, tasks, key)):
            continue
    assert set(statuses(body)) <= {200, 201}


def statuses(body: Any) -> list[int]:
    """Return the status of each result."""
    return [result["status"] for result in body["results"]]


async def test_each_create_is_answered_as_a_create_of_its_own(api_harness: ApiHarness) -> None:
    """A result has the status and the body that a single create has, and a refusal leaves the others alone."""
    await api_harness.create(name="taken", input="Has the name")
    tasks: list[Any] = [
        entry("Count the lines", name="lines"),
        entry("Wants the name of another", name="taken"),
        entry(" "),
        entry("Of a version of another tenant", template_version_id=str(OTHER_VERSION)),
        entry("For a stranger", owner="mallory"),
        entry("For nobody", owner="nobody"),
        entry("Bad name", name="two--hyphens"),
        entry("Bad version", template_version_id="seven"),
        "not an object",
        entry("Count the words"),
    ]
    body = await post(api_harness, tasks)
    assert statuses(body) == [201, 409, 400, 400, 404, 404, 400, 400, 400, 201]
    assert (body["count"], body["created"]) == (10, 2)
    assert body["results"][0]["task"]["name"] == "lines"
    assert body["results"][9]["task"]["initial_prompt"] == "Count the words"
    for task, result in zip(tasks, body["results"], strict=True):
        if "error" not in result:
            assert (await api_harness.get(result["task"]["id"]))["id"] == result["task"]["id"]
            continue
        owner = task.get("owner", "me") if isinstance(task, dict) else "me"
        single = await api_harness.alice.post(f"/tasks/{owner}", json=task)
        assert (single.status_code, single.json()) == (result["status"], result["error"])


async def test_the_document_of_a_batch(api_harness: ApiHarness) -> None:
    """All fields of the results are those of the golden file; a task is the document that it has elsewhere."""
    await api_harness.create(name="taken")  # before the batch, whose creates are in flight together
    tasks = [entry("Golden", name="golden"), entry("Taken", name="taken"), entry("Of another", owner="mallory")]
    body = await post(api_harness, tasks, "golden batch")
    assert body["results"][0]["task"] == await api_harness.get("golden")
    body["results"][0]["task"] = "<task>"
    assert body == json.loads((GOLDEN / "batch.json").read_text())


async def test_an_admin_creates_tasks_for_members(api_harness: ApiHarness) -> None:
    """Each task has its own owner, whom the rules of a single create allow."""
    tasks = [entry("Of Carol"), entry("Of Bob", owner="bob"), entry("Of Bob, by id", owner=str(BOB))]
    body = await post(api_harness, tasks, user="carol")
    assert statuses(body) == [201, 201, 201]
    assert [result["task"]["owner_name"] for result in body["results"]] == ["carol", "bob", "bob"]
    assert statuses(await post(api_harness, tasks)) == [201, 404, 404]


async def test_repeating_a_batch_creates_nothing_twice(api_harness: ApiHarness) -> None:
    """The same Idempotency-Key gives the same tasks; a task may also be repeated alone, with the key of its result."""
    tasks = [entry(f"Step {number} of the plan") for number in range(150)]
    first = await post(api_harness, tasks, "a plan")
    assert statuses(first) == [201] * 150
    assert len({result["task"]["name"] for result in first["results"]}) == 150
    again = await post(api_harness, tasks, "a plan")
    assert statuses(again) == [200] * 150
    assert [result["task"]["id"] for result in again["results"]] == [
        result["task"]["id"] for result in first["results"]
    ]
    third = first["results"][2]
    assert third["idempotency_key"] == "a plan/2"
    single = await api_harness.alice.post("/tasks/me", json=tasks[2], headers={"Idempotency-Key": "a plan/2"})
    assert (single.status_code, single.json()["id"]) == (200, third["task"]["id"])
    changed = await post(api_harness, [entry("Another step")], "a plan")
    assert statuses(changed) == [409]
    assert changed["results"][0]["error"]["message"] == "Idempotency-Key was used for another request."
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 150


async def test_each_task_of_a_batch_can_be_repeated_alone(api_harness: ApiHarness) -> None:
    """A key of a batch that would be too long with the index of a task is refused, with the limit."""
    task = entry("Repeat it alone")
    for length in (252, 255, 256):
        refused = await api_harness.alice.post(
            "/task-batches", json={"tasks": [task]}, headers={"Idempotency-Key": "k" * length}
        )
        assert refused.status_code == 400
        assert refused.json()["validations"] == [
            {"field": "Idempotency-Key", "detail": "Expected 1 to 251 printable ASCII characters."}
        ]
    entries = ["not an object"] * (MAX_BATCH - 1)
    made = (await post(api_harness, [*entries, task], "k" * 251))["results"][-1]
    assert made["idempotency_key"] == f"{'k' * 251}/999"
    alone = await api_harness.alice.post("/tasks/me", json=task, headers={"Idempotency-Key": made["idempotency_key"]})
    assert (alone.status_code, alone.json()["id"]) == (200, made["task"]["id"])


async def test_each_task_may_have_a_key_of_its_own(api_harness: ApiHarness) -> None:
    """A key of a task counts whatever the batch it is in; without any, the result has one that makes a repeat safe."""
    first = await post(api_harness, [entry("Keep it", idempotency_key="keep"), entry("No key")])
    assert statuses(first) == [201, 201]
    key = first["results"][1]["idempotency_key"]
    second = await post(
        api_harness,
        [
            entry("Another one first"),
            entry("No key", idempotency_key=key),
            entry("Keep it", idempotency_key="keep"),
            entry("Keep it", idempotency_key="keep"),
            entry("Bad key", idempotency_key="\n"),
            entry("No text", idempotency_key=7),
        ],
    )
    assert statuses(second) == [201, 200, 200, 400, 400, 400]
    assert second["results"][1]["task"]["id"] == first["results"][1]["task"]["id"]
    assert second["results"][3]["error"]["validations"] == [
        {"field": "idempotency_key", "detail": "Another task of this batch has the same key."}
    ]


async def test_a_batch_is_limited(api_harness: ApiHarness) -> None:
    """An empty batch, more than 1,000 tasks, or more than 4 MiB are refused as a whole, with the limit."""
    for tasks in ([], [entry("Too many")] * 1_001, "tasks", None):
        response = await api_harness.alice.post("/task-batches", json={"tasks": tasks})
        assert response.status_code == 400, tasks
        assert response.json()["validations"][0]["field"] == "tasks"
    large = [entry(str(number) + "x" * 250_000) for number in range(17)]
    response = await api_harness.alice.post("/task-batches", json={"tasks": large})
    assert (response.status_code, response.json()["detail"]) == (413, "The limit is 4194304 bytes.")
    assert statuses(await post(api_harness, large[:16])) == [201] * 16
    assert (await api_harness.anonymous.post("/task-batches", json={"tasks": large[:1]})).status_code == 401


async def test_every_create_pays_the_rate(start_api: StartApi) -> None:
    """The first tasks get what is left of the rate, the others a 429 that says what to do; repeats go on from there."""
    async with start_api(api_create_rate=60, api_create_burst=3) as api_harness:
        tasks = ["costs nothing", *(entry(f"One of five {number}") for number in range(5))]
        body = await post(api_harness, tasks, "five")
        assert statuses(body) == [400, 201, 201, 201, 429, 429]
        refused = body["results"][5]
        assert refused["retry_after"] >= 1
        assert refused["error"] == {
            "message": "You have created too many tasks. Please wait.",
            "detail": f"The next one is accepted in {refused['retry_after']} s. Repeat the create with the same"
            " idempotency key: a task that was created is not created again.",
        }
        bob = await post(api_harness, [entry("Of another member")], user="bob")
        assert statuses(bob) == [201]

        async def is_complete() -> bool:
            return 429 not in statuses(await post(api_harness, tasks, "five"))

        async with asyncio.timeout(30):
            while not await is_complete():
                continue
        assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 6
        assert statuses(await post(api_harness, tasks, "five")) == [400, *[200] * 5]


async def test_running_tasks_beyond_the_maximum_are_refused_each_by_itself(start_api: StartApi) -> None:
    """The maximum of running tasks holds within a batch too."""
    async with start_api(tasks_running_most=2) as api_harness:
        body = await post(api_harness, [entry(f"Task {number}") for number in range(4)])
        assert sorted(statuses(body)) == [201, 201, 409, 409]
        error = next(result["error"] for result in body["results"] if result["status"] == 409)
        assert error["message"] == "Too many tasks are running."
        assert "Pause or delete one" in error["detail"]


async def test_without_a_worker_every_result_is_a_503_and_a_repeat_is_safe(start_api: StartApi) -> None:
    """What was not confirmed in time says so in its own result; a repeat creates each task once."""
    tasks = [entry(f"Patient task {number}") for number in range(command_slots.MAX_BULK + 40)]
    async with start_api(worker=False, api_command_timeout=2) as api_harness:
        async with running_worker(api_harness.worker):
            await repeat(api_harness, tasks[:3], "patient")
        database = api_harness.worker.database  # where they are old enough to be an earlier request's for sure
        await database.execute("UPDATE command_log SET created_at = created_at - interval '1 minute'")
        loop = asyncio.get_running_loop()
        started = loop.time()
        body = await post(api_harness, tasks, "patient")
        assert loop.time() - started < 30
        assert set(statuses(body)[:3]) <= {200, 503}  # the replies to these are in the database
        assert set(statuses(body)[3:]) == {503}
        first, last = body["results"][3], body["results"][-1]
        assert first["error"]["message"] == "The change was not confirmed in time."
        assert last["error"]["message"] == "The create was not sent in time."
        for result in (first, last):
            assert "Repeat the create with the same idempotency key" in result["error"]["detail"]
            assert result["retry_after"] >= 1
        async with running_worker(api_harness.worker):
            await repeat(api_harness, tasks, "patient")
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == len(tasks)


async def test_a_batch_ends_in_time_while_others_get_no_reply_either(start_api: StartApi) -> None:
    """While single commands of others wait too, few of a batch are in flight, and the rest is not sent one by one."""
    tasks = [entry(f"Patient task {number}") for number in range(command_slots.MAX_BULK)]
    async with start_api(worker=False, api_command_timeout=1) as api_harness:

        async def post_singles() -> None:
            while True:
                await api_harness.clients["bob"].post("/tasks/me", json=entry("Single"))

        singles: list[asyncio.Task[None]] = []
        for _ in range(6):  # one after the other, so that one was always sent less than QUIET ago
            singles.append(asyncio.create_task(post_singles()))
            await asyncio.wait(singles, timeout=0.2)
        async with asyncio.timeout(30):
            body = await post(api_harness, tasks)
        assert not any(each.done() for each in singles)
        for each in singles:
            each.cancel()
        await asyncio.gather(*singles, return_exceptions=True)
    messages = Counter(result["error"]["message"] for result in body["results"])
    assert set(statuses(body)) == {503}
    assert messages["The create was not sent in time."] > 300


async def test_an_owner_that_cannot_be_looked_up_fails_only_its_own_create(start_api: StartApi) -> None:
    """While the database does not answer for one create, that one has a 503, and the others are sent."""
    async with start_api(worker=False, api_command_timeout=20) as api_harness:
        tasks = [entry("Of Carol"), entry("Of Bob", owner="bob"), entry("Of Carol too")]
        async with api_harness.worker.database.transaction():
            await api_harness.worker.database.execute("LOCK TABLE memberships IN ACCESS EXCLUSIVE MODE")
            posting = asyncio.create_task(post(api_harness, tasks, user="carol"))
            registry = api_harness.api.metrics.registry
            async with asyncio.timeout(30):
                while registry.get_sample_value("taskherd_api_commands_waiting") != 2:  # noqa: ASYNC110 - no notification
                    await asyncio.sleep(0.01)
        async with running_worker(api_harness.worker):
            body = await posting
    assert statuses(body) == [201, 503, 201]
    error = body["results"][1]["error"]
    assert error["message"] == "The service is temporarily unavailable."
    assert "Repeat the create with the same idempotency key" in error["detail"]


async def test_an_owner_that_no_user_can_have_fails_only_its_own_create(api_harness: ApiHarness) -> None:
    """A name that the database cannot store is the name of no user."""
    tasks = [entry("Of a name with a null byte", owner="al\x00ice"), entry("Of Alice herself")]
    body = await post(api_harness, tasks)
    assert statuses(body) == [404, 201]


async def test_batches_in_progress_are_limited(start_api: StartApi) -> None:
    """A user's third batch at a time is refused; those of other users go on until the process is full."""
    async with start_api(worker=False, api_command_timeout=60) as api_harness:
        waiting = [asyncio.create_task(post(api_harness, [entry(f"Waits {number}")])) for number in range(2)]
        registry = api_harness.api.metrics.registry
        async with asyncio.timeout(30):
            while registry.get_sample_value("taskherd_api_commands_waiting") != 2:  # noqa: ASYNC110 - no notification
                await asyncio.sleep(0.01)
        third = await api_harness.alice.post("/task-batches", json={"tasks": [entry("Third")]})
        assert (third.status_code, third.json()["message"]) == (429, batches.TOO_MANY)
        assert third.headers["Retry-After"] == "1"
        async with running_worker(api_harness.worker):
            assert statuses(await post(api_harness, [entry("Of Bob")], user="bob")) == [201]
            assert [statuses(body) for body in await asyncio.gather(*waiting)] == [[201], [201]]
            assert statuses(await post(api_harness, [entry("Fourth")])) == [201]


async def test_a_batch_leaves_room_for_other_users(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one user's batch of 1,000 is executed, another's creates are executed, not only after it."""
    monkeypatch.setattr(command_slots, "QUIET", 20.0)  # also when this process is slow between two of them
    async with start_api(api_command_timeout=20) as api_harness:
        tasks = [entry(f"One of many {number}") for number in range(1_000)]
        batch = asyncio.create_task(post(api_harness, tasks, "many"))
        await api_harness.worker.until_row("SELECT EXISTS (SELECT FROM tasks)")
        for number in range(3):
            await api_harness.create(api_harness.bob, input=f"In between {number}")
        assert statuses(await batch) == [201] * 1_000
        last = "SELECT max(created_at) FROM tasks WHERE owner_id = $1"
        database = api_harness.worker.database
        assert await database.fetchval(last, BOB) < await database.fetchval(last, ALICE)
