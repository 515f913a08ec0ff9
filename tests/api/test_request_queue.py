"""The queue of all that agents ask and wait for: whose requests are in it, in which order, and how it is searched."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.harness.api import BOB, ORGANIZATION, ApiHarness
from tests.harness.asking import active, approval, asked, give, requests_of, titles
from tests.harness.worker import make_report


async def queue(client: httpx.AsyncClient, q: str = "", **query: Any) -> dict[str, Any]:
    """Return a page of the queue."""
    response = await client.get("/requests", params={"q": q, **query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_the_queue_is_oldest_first(api_harness: ApiHarness) -> None:
    """Members see the requests of their tasks, admins those of their organizations, with all that answering needs."""
    of_alice = await active(api_harness, name="one", display_name="The one")
    of_bob = uuid.UUID((await api_harness.create(api_harness.bob, name="two"))["id"])
    await api_harness.worker.make_active(of_bob)
    await asked(api_harness, of_alice, title="First")
    request_id = await approval(api_harness, of_bob, title="Second", detail="Why", tool={"kind": "edit"})
    await asked(api_harness, of_alice, title="Third")
    assert titles(await queue(api_harness.carol)) == ["First", "Second", "Third"]
    assert titles(await queue(api_harness.alice)) == ["First", "Third"]
    assert titles(await queue(api_harness.bob)) == ["Second"]
    assert (await queue(api_harness.mallory)) == {"requests": [], "next": None}
    (request,) = (await queue(api_harness.bob))["requests"]
    (of_task,) = await requests_of(api_harness.bob, of_bob)
    assert request == {
        **of_task,
        "task_id": str(of_bob),
        "task_name": "two",
        "task_display_name": request["task_display_name"],
        "owner_id": str(BOB),
        "owner_name": "bob",
        "organization_id": str(ORGANIZATION),
        "template_name": "claude",
        "template_display_name": "Claude Code",
    }
    assert (request["detail"], request["tool"]["kind"], len(request["options"])) == ("Why", "edit", 3)
    assert (await give(api_harness.carol, of_bob, request_id, option_id="no")).status_code == 204
    assert titles(await queue(api_harness.carol)) == ["First", "Third"]


async def test_the_queue_has_pages(api_harness: ApiHarness) -> None:
    """Each request is on one page, whatever is answered meanwhile."""
    tasks = [await active(api_harness) for _ in range(3)]
    ids = [await asked(api_harness, tasks[number % 3], title=f"Number {number}") for number in range(7)]
    first = await queue(api_harness.alice, limit=3)
    assert titles(first) == ["Number 0", "Number 1", "Number 2"]
    assert (await give(api_harness.alice, tasks[2], ids[2], text="Done")).status_code == 204
    second = await queue(api_harness.alice, limit=3, after=first["next"])
    assert titles(second) == ["Number 3", "Number 4", "Number 5"]
    third = await queue(api_harness.alice, limit=3, after=second["next"])
    assert (titles(third), third["next"]) == (["Number 6"], None)
    refused = await api_harness.alice.get("/requests", params={"after": "nonsense"})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("owner:me", ["Mine"]),
        ("owner:bob", ["His"]),
        ("bob", ["His"]),
        ("organization:acme", ["Mine", "His"]),
        ("template:claude", ["Mine", "His"]),
        ("template:codex", []),
        ("pool:default", ["Mine", "His"]),
        ("runner:r1", ["Mine", "His"]),
        ("runner:r2", []),
        ("name:mi", ["Mine"]),
        ("label:team=blue", ["Mine"]),
        ("status:active waiting:true", ["Mine", "His"]),
        ("status:paused", []),
        ("created:<1h owner:bob", ["His"]),
        ("created:>1h", []),
        ("changed:<1h owner:me", ["Mine"]),
        ("state:idle", ["Mine", "His"]),
    ],
)
async def test_the_queue_is_searched_like_the_tasks(api_harness: ApiHarness, q: str, found: list[str]) -> None:
    """Every term of the list of tasks selects the tasks whose requests are returned."""
    mine = await active(api_harness, name="mine", labels={"team": "blue"})
    his = uuid.UUID((await api_harness.create(api_harness.bob, name="his"))["id"])
    await api_harness.worker.make_active(his)
    for task_id, title in ((mine, "Mine"), (his, "His")):
        status = make_report("app.status", task_id, state="idle", message=title, build_number=1)
        await api_harness.worker.report(status)
        await asked(api_harness, task_id, title=title)
    await api_harness.worker.until(lambda: api_harness.worker.state(his).get("state") == "idle")
    await active(api_harness, name="mi-asks-nothing", labels={"team": "blue"})
    assert titles(await queue(api_harness.carol, q.replace("owner:me", "owner:alice"))) == found


@pytest.mark.parametrize(
    ("q", "field"),
    [
        ("waiting:false", "waiting"),
        ("waiting:maybe", "waiting"),
        ("owner:nobodyx", "owner"),
        ("color:red", "color"),
        ("label:team=blue runner:r1", "runner"),
        ("created:<1h changed:<1h", "created"),
    ],
)
async def test_a_search_that_no_index_serves(api_harness: ApiHarness, q: str, field: str) -> None:
    """A 400 names the term, as for the list of tasks."""
    refused = await api_harness.alice.get("/requests", params={"q": q})
    assert refused.status_code == 400
    assert [each["field"] for each in refused.json()["validations"]] == [field]


async def test_waiting_counts_open_requests(api_harness: ApiHarness) -> None:
    """``waiting:true`` finds tasks with open requests, in lists and totals, and no longer once they are answered."""
    task_id, other = await active(api_harness, name="asking"), await active(api_harness, name="quiet")
    request_id = await asked(api_harness, task_id)

    async def waiting(value: str) -> list[str]:
        response = await api_harness.alice.get("/tasks", params={"q": f"waiting:{value}"})
        return [each["id"] for each in response.json()["tasks"]]

    assert (await waiting("true"), await waiting("false")) == ([str(task_id)], [str(other)])
    totals = (await api_harness.alice.get("/task-totals")).json()
    assert totals["attention"]["waiting"] == 1
    assert (await give(api_harness.alice, task_id, request_id, text="This")).status_code == 204
    assert (await waiting("true"), sorted(await waiting("false"))) == ([], sorted([str(task_id), str(other)]))


async def test_requests_that_are_over_cost_nothing(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue reads open requests only, however many others there are, and of a task's list one page only."""
    task_id = await active(api_harness)
    request_ids = [await asked(api_harness, task_id, title=f"Number {number}") for number in range(3)]
    database = api_harness.worker.database
    await database.execute(
        """INSERT INTO agent_requests
           SELECT r.task_id, gen_random_uuid(), r.organization_id, r.owner_id, r.build_number, 'withdrawn',
                  replace(CAST(r.report AS text), '"open"', '"withdrawn"')::json,
               r.since - make_interval(secs => n), r.received_at
           FROM agent_requests AS r CROSS JOIN generate_series(1, 10000) AS n WHERE r.request_id = $1""",
        request_ids[0],
    )
    await database.execute("ANALYZE agent_requests")
    sent: list[tuple[Any, ...]] = []
    reader = api_harness.api._reader
    fetch = reader.fetch

    async def noted(*statement: Any) -> Any:
        sent.append(statement)
        return await fetch(*statement)

    monkeypatch.setattr(reader, "fetch", noted)
    assert titles(await queue(api_harness.carol)) == ["Number 0", "Number 1", "Number 2"]
    assert len(await requests_of(api_harness.alice, task_id, limit=5)) == 5
    read = []
    for statement, *values in (each for each in sent if "agent_requests" in each[0]):
        explained = await database.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values)
        read.append(sum(rows_read(json.loads(explained)[0]["Plan"])))
    assert read[0] <= 10, read
    assert read[1] <= 10_100, read


def rows_read(plan: dict[str, Any]) -> Iterator[float]:
    """Yield how many rows each scan of the requests in a plan has read."""
    if plan.get("Relation Name") == "agent_requests" and "Scan" in plan["Node Type"]:
        yield (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    for child in plan.get("Plans", ()):
        yield from rows_read(child)
