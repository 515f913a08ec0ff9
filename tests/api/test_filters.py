"""Lists of tasks by every filter, in both orders, and the totals: the same before and after the index is up to date."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from taskherd.api.tasks import search
from taskherd.store import task_lists
from tests.api.conftest import StartApi
from tests.harness.api import VERSION, ApiHarness
from tests.harness.sse import sse_client
from tests.harness.worker import build_report, make_report, running_worker

MESSAGE = "Invalid task search query."


async def found(client: httpx.AsyncClient, query: str, **params: Any) -> list[str]:
    """Return the names of the tasks that a query finds, in order."""
    response = await client.get("/tasks", params={"q": query, **params})
    assert response.status_code == 200, response.text
    return [task["name"] for task in response.json()["tasks"]]


async def refused(client: httpx.AsyncClient, path: str, query: str, **params: Any) -> tuple[str, str]:
    """Return the field and the detail of the only validation of a refused query."""
    response = await client.get(path, params={"q": query, **params})
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["message"] == MESSAGE
    (validation,) = body["validations"]
    return validation["field"], validation["detail"]


async def index_settles(api_harness: ApiHarness) -> None:
    """Wait until a worker has applied all changes to the index."""
    await api_harness.worker.until_row("SELECT count(*) FROM task_index_changes", is_=0)


async def fleet(api_harness: ApiHarness) -> None:
    """Create five tasks of two owners, of which two are active: ``fix-1`` works on a runner, ``fix-2`` is idle."""
    worker = api_harness.worker
    first = await api_harness.create(name="fix-1", labels={"repo": "acme/app", "team": "Blue"})
    second = await api_harness.create(name="fix-2", labels={"repo": "acme/app"})
    await api_harness.create(name="docs", labels={"repo": "acme/docs"})
    await api_harness.create(api_harness.clients["bob"], name="fix-of-bob")
    await api_harness.create(api_harness.clients["carol"], name="of-carol")
    for task, state, runner in ((first, "working", "rack-1"), (second, "idle", "rack-2")):
        of = task["id"]
        await worker.report(
            build_report(of, 1, "start", "succeeded", runner=runner),
            make_report("agent.lifecycle", of, lifecycle="ready"),
            make_report("agent.heartbeat", of),
            make_report("app.status", of, state=state, message=f"{state} now", uri=""),
        )
        await worker.until_row(
            "SELECT document #>> '{current_state,message}' FROM tasks WHERE id = $1", of, is_=f"{state} now"
        )


FOUND = {
    "status:active": ["fix-2", "fix-1"],
    "status:pending": ["docs"],
    "state:working": ["fix-1"],
    "status:active state:idle": ["fix-2"],
    "status:pending state:idle": [],
    "health:healthy": ["fix-2", "fix-1"],
    "health:none": ["docs"],
    "health:unhealthy": [],
    "health:lost": [],
    "runner:rack-1": ["fix-1"],
    "runner:RACK-2 status:active": ["fix-2"],
    "runner:rack-2 state:working": [],
    "label:repo=acme/app": ["fix-2", "fix-1"],
    "label:TEAM=blue": ["fix-1"],
    "label:repo=acme/app state:idle": ["fix-2"],
    "label:repo=acme/none": [],
    "waiting:true": [],
    "waiting:false": ["docs", "fix-2", "fix-1"],
    "failed:true": [],
    "failed:false": ["docs", "fix-2", "fix-1"],
    "failed:false state:working": ["fix-1"],
    "stalled:true": [],
    "stalled:false status:pending": ["docs"],
    "name:fix": ["fix-2", "fix-1"],
    "name:FIX-1": ["fix-1"],
    "name:fix state:working": ["fix-1"],
    "name:fix label:repo=acme/app": ["fix-2", "fix-1"],
    "name:ix": [],
    "created:<2h": ["docs", "fix-2", "fix-1"],
    "created:>2h": [],
    "created:<1h created:>0s": ["docs", "fix-2", "fix-1"],
    "status:active created:<1d": ["fix-2", "fix-1"],
    "status:active created:>1d": [],
    "changed:>2h": [],
    "changed:<7d status:pending": ["docs"],
    "owner:me status:active": ["fix-2", "fix-1"],
    "owner:bob status:pending": [],
    "organization:acme status:active": ["fix-2", "fix-1"],
}


async def check(api_harness: ApiHarness) -> None:
    """Check every filter for a member, and some for an admin and for who is in another organization."""
    alice, carol, mallory = api_harness.alice, api_harness.clients["carol"], api_harness.mallory
    pool = await api_harness.worker.database.fetchval(
        "SELECT COALESCE(run ->> 'pool', 'default') FROM template_versions LIMIT 1"
    )
    template = (await alice.get("/templates")).json()[0]["name"]
    for query, names in FOUND.items():
        assert await found(alice, query) == names, query
        if "bob" not in query:
            assert await found(mallory, query.replace("organization:acme ", "")) == [], query
    assert sorted(await found(alice, "changed:<7d")) == ["docs", "fix-1", "fix-2"]
    assert await found(alice, f"pool:{pool} status:active") == ["fix-2", "fix-1"]
    assert await found(alice, "pool:nowhere") == []
    assert await found(alice, f"template:{template} state:idle") == ["fix-2"]
    assert await found(carol, "status:active") == ["fix-2", "fix-1"]
    assert await found(carol, "status:pending") == ["of-carol", "fix-of-bob", "docs"]
    assert await found(carol, "owner:bob status:pending") == ["fix-of-bob"]
    assert await found(carol, "name:fix") == ["fix-of-bob", "fix-2", "fix-1"]
    assert await found(carol, "name:fix owner:bob") == ["fix-of-bob"]
    assert await found(carol, "label:repo=acme/app") == ["fix-2", "fix-1"]


async def test_every_filter_finds_its_tasks_before_and_after_the_index_has_them(start_api: StartApi) -> None:
    """A list has a committed task at once, whether or not a worker has brought the index up to date."""
    async with start_api(worker=False) as api_harness:
        async with running_worker(api_harness.worker, sweep_every=60):
            await fleet(api_harness)
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM task_index_changes") > 0
            await check(api_harness)
        async with running_worker(api_harness.worker):
            await index_settles(api_harness)
            await check(api_harness)


@pytest.mark.parametrize(
    ("query", "params", "field", "detail"),
    [
        (
            "health:ill",
            {},
            "health",
            'Query param "health" has invalid value: "ill" is not a valid value. Valid values: ',
        ),
        ("waiting:yes", {}, "waiting", 'Query param "waiting" has invalid value: "yes" is not a valid value. '),
        ("failed:1", {}, "failed", 'Query param "failed" has invalid value: "1" is not a valid value. '),
        ("stalled:1", {}, "stalled", 'Query param "stalled" has invalid value: "1" is not a valid value. '),
        ("created:7d", {}, "created", 'Query param "created" has invalid value: "7d" is not an age. Expected at most '),
        ("created:<7", {}, "created", 'Query param "created" has invalid value: "<7" is not an age. '),
        ("created:<7d created:<8d", {}, "created", 'Query param "created" has invalid value: "<8d" is not an age. '),
        ("changed:>999999d", {}, "changed", 'Query param "changed" has invalid value: ">999999d" is not an age. '),
        ("label:repo", {}, "label", 'Query param "label" has invalid value: expected a key and a value, such as '),
        ("label:=x", {}, "label", 'Query param "label" has invalid value: expected a key and a value, such as '),
        ("label:a=b label:c=d", {}, "q", 'Query parameter "label" provided more than once, found 2 times'),
        ("runner:a\0b", {}, "runner", 'Query param "runner" has invalid value: expected at most 256 printable '),
        ("name:a\0b", {}, "name", 'Query param "name" has invalid value: expected at most 256 printable characters'),
        ("runner:rack-1 label:repo=acme/app", {}, "runner", "A list has a label or a runner, not both: leave out one"),
        ("created:<1d changed:<1d", {}, "created", "A list by the last change has no condition on the creation: leave"),
        ("created:<1d", {"sort": "changed"}, "created", "A list by the last change has no condition on the creation: "),
        ("changed:<1d", {"sort": "created"}, "changed", "A list by creation has no condition on the last change: "),
    ],
)
async def test_what_cannot_be_served_is_refused_with_what_to_do(
    api_harness: ApiHarness, query: str, params: dict[str, str], field: str, detail: str
) -> None:
    """A value that does not exist, and a list that no index serves, are a 400 that names the term."""
    got_field, got_detail = await refused(api_harness.alice, "/tasks", query, **params)
    assert got_field == field
    assert got_detail.startswith(detail)


async def test_a_sort_that_does_not_exist_is_refused(api_harness: ApiHarness) -> None:
    """The error names those that do."""
    response = await api_harness.alice.get("/tasks", params={"sort": "name"})
    validations = [{"field": "sort", "detail": "Expected created, changed or changed-asc."}]
    assert (response.status_code, response.json()["validations"]) == (400, validations)


async def test_totals_and_streams_refuse_what_they_do_not_know(api_harness: ApiHarness) -> None:
    """Totals are kept by some terms only, and a change does not say where its task runs."""
    for query in ("runner:rack-1", "label:repo=acme/app", "name:fix", "created:<1d", "changed:<1d"):
        term = query.partition(":")[0]
        field, detail = await refused(api_harness.alice, "/task-totals", query)
        assert (field, detail.partition(":")[0]) == (term, "Totals are not kept by it")
    for query in ("runner:rack-1", "pool:gpu", "created:<1d", "changed:<1d"):
        field, detail = await refused(api_harness.alice, "/tasks/watch", query)
        assert (field, detail.partition(":")[0]) == (query.partition(":")[0], "A change does not say it")


async def test_a_beginning_that_too_many_names_have_is_refused(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are sorted by time, so the names of few may match; more of the name, or an owner, makes them few."""
    monkeypatch.setattr(task_lists, "MAX_NAMES", 2)
    monkeypatch.setattr(search, "MAX_NAMES", 2)
    for name in ("nightly-1", "nightly-2", "nightly-20"):
        await api_harness.create(name=name)
    field, detail = await refused(api_harness.alice, "/tasks", "name:nightly")
    assert field == "name"
    assert detail.endswith("the names of more than 2 tasks begin with it; give more of the name, or an owner")
    assert await found(api_harness.alice, "name:nightly-2") == ["nightly-20", "nightly-2"]
    first = (await api_harness.alice.get("/tasks", params={"q": "name:nightly-2", "limit": "1"})).json()
    assert [task["name"] for task in first["tasks"]] == ["nightly-20"]
    second = {"limit": "1", "after": first["next"]}
    assert await found(api_harness.alice, "name:nightly-2", **second) == ["nightly-2"]
    assert await found(api_harness.alice, "name:nightly-2 created:>1d", limit="1") == []


async def test_a_page_of_named_tasks_is_of_those_that_match(api_harness: ApiHarness) -> None:
    """Neither another filter nor another order is applied only to the newest tasks with such a name."""
    await fleet(api_harness)
    for number in (3, 4):
        await api_harness.create(name=f"fix-{number}")
    assert await found(api_harness.alice, "name:fix state:working", limit="1") == ["fix-1"]
    assert await found(api_harness.alice, "name:fix", limit="1", sort="changed-asc") == ["fix-1"]
    assert await found(api_harness.alice, "name:fix", limit="1") == ["fix-4"]


async def test_a_page_of_named_tasks_goes_on_after_those_that_are_not_found(api_harness: ApiHarness) -> None:
    """A task with such a name may be deleted before the page is read, or not be indexed yet; older ones still are."""
    tasks = {name: (await api_harness.create(name=name))["id"] for name in ("fix-1", "fix-2", "fix-3", "fix-4")}
    await index_settles(api_harness)
    for missing, pages in (("fix-4", [["fix-3"], ["fix-2"], ["fix-1"]]), ("fix-3", [["fix-2"], ["fix-1"]])):
        await api_harness.worker.database.execute("DELETE FROM task_index WHERE task_id = $1", tasks[missing])
        read: list[list[str]] = []
        page: dict[str, Any] = {"next": ""}
        while page["next"] is not None:
            query = {"q": "name:fix", "limit": "1", **({"after": page["next"]} if page["next"] else {})}
            page = (await api_harness.alice.get("/tasks", params=query)).json()
            read.append([task["name"] for task in page["tasks"]])
        assert read == pages


async def test_a_list_by_age_has_what_was_created_in_that_time(api_harness: ApiHarness) -> None:
    """To the second, unlike the last change."""
    for name in ("of-today", "of-an-hour-ago"):
        await api_harness.create(name=name)
    earlier = "UPDATE tasks SET created_at = created_at - interval '61 min' WHERE name = 'of-an-hour-ago'"
    await api_harness.worker.database.execute(earlier)
    for age, names in (("<60m", ["of-today"]), ("<2h", ["of-today", "of-an-hour-ago"]), (">60m", ["of-an-hour-ago"])):
        assert await found(api_harness.alice, f"created:{age}") == names


@pytest.mark.parametrize("sort", ["changed", "changed-asc"])
async def test_pages_by_the_last_change_have_every_task_once(api_harness: ApiHarness, sort: str) -> None:
    """The last changed task comes first, or last; pages continue where the one before ended, with a filter too."""
    names = [f"page-{number}" for number in range(7)]
    created = [await api_harness.create(name=name) for name in names]
    for number in (3, 1):
        await api_harness.worker.make_active(uuid.UUID(created[number]["id"]))
    for query, expected in (
        ("", ["page-1", "page-3", "page-6", "page-5", "page-4", "page-2", "page-0"]),
        ("status:pending", ["page-6", "page-5", "page-4", "page-2", "page-0"]),
    ):
        got: list[str] = []
        after: str | None = ""
        while after is not None:
            params = {"q": query, "sort": sort, "limit": "2", "after": after}
            body = (await api_harness.alice.get("/tasks", params=params)).json()
            got += [task["name"] for task in body["tasks"]]
            after = body["next"]
        assert got == (expected if sort == "changed" else expected[::-1])


async def totals(client: httpx.AsyncClient, query: str = "") -> dict[str, Any]:
    """Return the totals of a query, without what is 0."""
    response = await client.get("/task-totals", params={"q": query})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return {
        name: value if isinstance(value, int) else {key: count for key, count in value.items() if count}
        for name, value in body.items()
    }


async def test_totals_count_what_the_caller_sees(api_harness: ApiHarness) -> None:
    """A member's totals are of own tasks, an admin's of all; they follow each change, and a failure needs a person."""
    await fleet(api_harness)
    alice, carol = api_harness.alice, api_harness.clients["carol"]
    assert await totals(alice) == {
        "total": 3,
        "working": 1,
        "by_status": {"active": 2, "pending": 1},
        "by_state": {"working": 1, "idle": 1, "none": 1},
        "by_health": {"healthy": 2, "none": 1},
        "attention": {"idle": 1},
    }
    assert (await totals(carol))["by_status"] == {"active": 2, "pending": 3}
    assert (await totals(carol, "owner:bob"))["total"] == 1
    assert (await totals(alice, "status:active state:idle health:healthy"))["total"] == 1
    assert (await totals(api_harness.mallory))["total"] == 0
    failed = await api_harness.get("fix-1")
    await api_harness.worker.report(make_report("app.status", failed["id"], state="failed", message="broken", uri=""))
    await api_harness.worker.until_row(
        "SELECT document #>> '{current_state,state}' FROM tasks WHERE id = $1", failed["id"], is_="failed"
    )
    assert (await totals(alice))["attention"] == {"idle": 1, "failed": 1}
    await index_settles(api_harness)
    assert (await totals(alice))["attention"] == {"idle": 1, "failed": 1}
    response = await alice.get("/task-totals")
    unchanged = await alice.get("/task-totals", headers={"If-None-Match": response.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    await alice.delete("/tasks/me/fix-1")
    assert (await totals(alice))["total"] == 2
    assert (await totals(alice))["attention"] == {"idle": 1}


async def test_nobody_has_the_nil_id(api_harness: ApiHarness) -> None:
    """It owns no tasks in totals and lists, also for an admin, before and after the totals are up to date."""
    await fleet(api_harness)
    carol, nobody = api_harness.carol, f"owner:{uuid.UUID(int=0)}"
    for _ in range(2):
        assert (await totals(carol))["total"] == 5
        assert (await totals(carol, nobody))["total"] == 0
        assert (await totals(carol, f"{nobody} status:active"))["total"] == 0
        assert await found(carol, f"{nobody} status:active") == []
        await index_settles(api_harness)


async def test_failed_tasks_are_those_that_the_totals_count(api_harness: ApiHarness) -> None:
    """A build that failed and an agent that failed are found with one term; a stream tells when one is resumed."""
    await fleet(api_harness)
    alice, worker = api_harness.alice, api_harness.worker
    tasks = {name: (await api_harness.get(name))["id"] for name in ("docs", "fix-1")}
    await worker.report(
        make_report("app.status", tasks["fix-1"], state="failed", message="broken", uri=""),
        build_report(tasks["docs"], 1, "start", "failed", error="quota"),
    )
    await worker.until_row("SELECT status FROM tasks WHERE id = $1", tasks["docs"], is_="error")
    await worker.until_row(
        "SELECT document #>> '{current_state,state}' FROM tasks WHERE id = $1", tasks["fix-1"], is_="failed"
    )
    for _ in range(2):
        assert await found(alice, "failed:true") == ["docs", "fix-1"]
        assert await found(alice, "owner:me failed:true name:fix") == ["fix-1"]
        assert sorted(await found(alice, "failed:true changed:<1d")) == ["docs", "fix-1"]
        assert await found(alice, "failed:false") == ["fix-2"]
        assert (await totals(alice, "failed:true"))["total"] == 2
        await index_settles(api_harness)
    async with sse_client(alice, "/tasks/watch", q="failed:true") as stream:
        await stream.ready()
        assert [each.task["name"] for each in stream.events] == ["docs", "fix-1"]
        await worker.report(make_report("app.status", tasks["fix-1"], state="working", message="again", uri=""))
        await stream.until(lambda: len(stream.events) == 3)
        assert stream.events[-1].task["current_state"]["state"] == "working"


async def test_an_action_and_a_stream_have_the_same_language(api_harness: ApiHarness) -> None:
    """An action selects by label and state, and a stream has the changes of the tasks that match, or did."""
    await fleet(api_harness)
    body = {"action": "pause", "q": "label:repo=acme/app state:idle", "dry_run": True}
    preview = (await api_harness.alice.post("/task-actions", json=body)).json()
    assert [task["name"] for task in preview["tasks"]] == ["fix-2"]
    query = "label:repo=acme/app health:healthy name:fix"
    async with sse_client(api_harness.alice, "/tasks/watch", q=query) as stream:
        await stream.ready()
        assert [each.task["name"] for each in stream.events] == ["fix-2", "fix-1"]
        await api_harness.alice.patch("/tasks/me/docs/labels", json={"labels": {"repo": "acme/app"}})
        await api_harness.alice.patch("/tasks/me/fix-1/labels", json={"labels": {"repo": None}})
        await stream.until(lambda: len(stream.events) == 3)
        assert (stream.events[-1].task["name"], stream.events[-1].task["labels"]) == ("fix-1", {"team": "Blue"})
    assert await found(api_harness.alice, "label:repo=acme/app") == ["docs", "fix-2"]


async def test_labels_are_shown_and_changed(api_harness: ApiHarness) -> None:
    """A change of labels raises the version and is in the history; the same labels again change nothing."""
    alice = api_harness.alice
    labels = {"repo": "acme/app", "note": "über 1:2, 'x'"}
    created = await api_harness.create(name="labelled", labels=labels)
    assert created["labels"] == labels
    plain = await api_harness.create(name="plain")
    assert "labels" not in plain
    assert await found(alice, "label:\"note=ÜBER 1:2, 'x'\"") == ["labelled"]
    for _ in range(2):
        response = await alice.patch("/tasks/me/labelled/labels", json={"labels": {"repo": "acme/docs", "note": None}})
        assert response.status_code == 200
        assert response.json()["labels"] == {"repo": "acme/docs"}
    assert (await api_harness.get("labelled"))["labels"] == {"repo": "acme/docs"}
    version = await api_harness.worker.database.fetchval("SELECT version FROM tasks WHERE name = 'labelled'")
    assert version == 2
    timeline = (await alice.get("/tasks/me/labelled/events")).json()
    assert list(timeline["events"][-1]["changes"]) == ["labels"]
    response = await alice.patch("/tasks/me/labelled/labels", json={"labels": {"repo": None}})
    assert "labels" not in response.json()
    for path, body, detail in (
        ("/tasks/me/labelled/labels", {"labels": {"a=b": "c"}}, "A key has 1 to 64 letters, digits, "),
        ("/tasks/me/labelled/labels", {"labels": {f"k{n}": "v" for n in range(17)}}, "A task has at most 16 labels."),
        ("/tasks/me", {"input": "x", "template_version_id": str(VERSION), "labels": {"k": ""}}, "A value has 1 to 64 "),
    ):
        method = "POST" if path == "/tasks/me" else "PATCH"
        refusal = await alice.request(method, path, json=body)
        assert (refusal.status_code, refusal.json()["message"]) == (400, "Invalid labels."), refusal.text
        (validation,) = refusal.json()["validations"]
        assert validation["field"] == "labels"
        assert validation["detail"].startswith(detail)
    for invalid in ("{}", '{"labels": {}}', '{"labels": {"k": 1}}', '{"labels": ["k"]}'):
        assert (await alice.patch("/tasks/me/labelled/labels", content=invalid)).status_code == 400
    for client, name in ((alice, "missing"), (api_harness.bob, "labelled")):
        refusal = await client.patch(f"/tasks/alice/{name}/labels", json={"labels": {"a": "b"}})
        assert refusal.status_code == 404


async def test_a_batch_creates_labelled_tasks(api_harness: ApiHarness) -> None:
    """Each task of a batch has its own labels."""
    entries = [
        {"input": f"Task {number}", "template_version_id": str(VERSION), "labels": {"number": str(number)}}
        for number in range(2)
    ]
    results = (await api_harness.alice.post("/task-batches", json={"tasks": entries})).json()["results"]
    assert [result["task"]["labels"] for result in results] == [{"number": "0"}, {"number": "1"}]
