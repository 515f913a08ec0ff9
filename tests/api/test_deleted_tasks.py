"""The list of deleted tasks: who deleted each, what callers see of it, and that erasure empties it."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from taskherd.store import deleted_tasks
from tests.harness.api import ALICE, ApiHarness


async def listed(client: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    """Return the deleted tasks that a caller sees."""
    response = await client.get("/deleted-tasks", params=params)
    assert response.status_code == 200, response.text
    tasks: list[dict[str, Any]] = response.json()["tasks"]
    return tasks


async def test_a_deleted_task_says_who_deleted_it(api_harness: ApiHarness) -> None:
    """The newest deletion is first, with the person who asked for it, who may be another than the owner."""
    own = await api_harness.create(name="own", display_name="My own")
    other = await api_harness.create(name="other")
    await api_harness.create(name="stays")
    assert await listed(api_harness.alice) == []
    assert (await api_harness.alice.delete("/tasks/me/own")).status_code == 202
    assert (await api_harness.carol.delete("/tasks/alice/other")).status_code == 202
    newest, oldest = await listed(api_harness.alice)
    assert (newest["id"], newest["name"], newest["deleted_by"]) == (other["id"], "other", "carol")
    assert (oldest["id"], oldest["display_name"], oldest["deleted_by"]) == (own["id"], "My own", "alice")
    assert (oldest["owner_name"], oldest["template_name"]) == ("alice", own["template_name"])
    assert newest["deleted_at"] > oldest["deleted_at"] >= oldest["created_at"]


async def test_callers_see_only_deleted_tasks_that_they_saw_before(api_harness: ApiHarness) -> None:
    """Members see their own, admins those of their organization, other tenants none."""
    await api_harness.create(name="of-alice")
    await api_harness.create(api_harness.bob, name="of-bob")
    await api_harness.alice.delete("/tasks/me/of-alice")
    await api_harness.bob.delete("/tasks/me/of-bob")
    assert [each["name"] for each in await listed(api_harness.alice)] == ["of-alice"]
    assert [each["name"] for each in await listed(api_harness.carol)] == ["of-bob", "of-alice"]
    assert await listed(api_harness.mallory) == []
    assert [each["name"] for each in await listed(api_harness.carol, limit=1)] == ["of-bob"]
    assert [each["name"] for each in await listed(api_harness.carol, q="owner:alice")] == ["of-alice"]
    assert [each["name"] for each in await listed(api_harness.carol, q="name:OF-B")] == ["of-bob"]
    assert await listed(api_harness.alice, q="name:of%_") == []
    assert (await api_harness.anonymous.get("/deleted-tasks")).status_code == 401
    for query in ({"q": "owner:mallory"}, {"q": "status:active"}, {"limit": 0}, {"limit": 101}):
        assert (await api_harness.alice.get("/deleted-tasks", params=query)).status_code == 400


async def test_pages_follow_each_other_through_one_moment(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page begins after the last task of the one before, also among tasks that were deleted at one moment.

    No more tasks are looked at than a page needs.
    """
    monkeypatch.setattr(deleted_tasks, "MAX_SCANNED", 4)
    names = [f"gone-{number}" for number in range(5)]
    for name in names:
        await api_harness.create(name=name)
        await api_harness.alice.delete(f"/tasks/me/{name}")
    await api_harness.worker.database.execute(
        "UPDATE tasks SET deleted_at = (SELECT max(deleted_at) FROM tasks) WHERE name <> 'gone-0'"
    )
    found: list[str] = []
    after: str | None = ""
    for size in (2, 2, 1):
        page = (await api_harness.alice.get("/deleted-tasks", params={"limit": 2, "after": after})).json()
        assert len(page["tasks"]) == size
        found += [each["name"] for each in page["tasks"]]
        after = page["next"]
    assert after is None
    assert sorted(found) == names
    assert found[-1] == "gone-0"
    first = (await api_harness.alice.get("/deleted-tasks", params={"limit": 2})).json()["next"]
    monkeypatch.undo()
    assert (await api_harness.alice.get("/deleted-tasks", params={"limit": 5})).json()["next"] is None
    others = await api_harness.mallory.get("/deleted-tasks", params={"after": first})
    assert others.json() == {"tasks": [], "next": None}
    assert (await api_harness.alice.get("/deleted-tasks", params={"after": "nonsense"})).status_code == 400


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_others_delete_hides_nothing(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """A page that finds too few leads on to older ones, in order and once each; it tells no task of somebody else."""
    monkeypatch.setattr(deleted_tasks, "MAX_SCANNED", 3)
    await api_harness.create(name="oldest")
    await api_harness.create(name="newest")
    others = [(await api_harness.create(api_harness.bob, name=f"of-bob-{number}"))["id"] for number in range(8)]
    await api_harness.alice.delete("/tasks/me/oldest")
    for other in others[:4]:
        await api_harness.bob.delete(f"/tasks/me/{other}")
    await api_harness.alice.delete("/tasks/me/newest")
    for other in others[4:]:
        await api_harness.bob.delete(f"/tasks/me/{other}")
    if at_once:
        await api_harness.worker.database.execute("UPDATE tasks SET deleted_at = (SELECT max(deleted_at) FROM tasks)")
    found: list[str] = []
    after: str | None = ""
    for _ in range(10):
        page = (await api_harness.alice.get("/deleted-tasks", params={"after": after})).json()
        found += [each["name"] for each in page["tasks"]]
        after = page["next"]
        if after is None:
            break
        assert not any(UUID(other).bytes in urlsafe_b64decode(after) for other in others)
    assert after is None
    assert sorted(found) == ["newest", "oldest"]
    assert at_once or found == ["newest", "oldest"]


async def test_an_erased_task_is_not_listed(api_harness: ApiHarness) -> None:
    """Nothing is left to tell of a task whose contents were erased; one whose history was pruned names nobody."""
    await api_harness.create(name="erased")
    await api_harness.create(name="pruned")
    await api_harness.alice.delete("/tasks/me/erased")
    await api_harness.alice.delete("/tasks/me/pruned")
    database = api_harness.worker.database
    await database.execute("UPDATE tasks SET erased_at = now() WHERE name = 'erased'")
    await database.execute("DELETE FROM task_events WHERE kind = 'deleted'")
    (pruned,) = await listed(api_harness.alice)
    assert (pruned["name"], pruned["deleted_by"]) == ("pruned", None)


async def test_the_list_scans_no_table(api_harness: ApiHarness) -> None:
    """Deleted tasks come from the index of those that are not erased, and history only from where the deletion is."""
    database = api_harness.worker.database
    last = datetime.now(UTC), ALICE
    text, values = deleted_tasks.select(ALICE, 100, owner=ALICE, prefix="of", after=last)
    async with database.transaction():
        for other in ("seqscan", "bitmapscan"):  # may cost less, in a table of a page
            await database.execute(f"SET LOCAL enable_{other} = off")
        plan = "\n".join(row[0] for row in await database.fetch(f"EXPLAIN {text}", *values))
    assert "Index Scan Backward using tasks_unerased_idx" in plan
    assert "Presorted Key: tasks.deleted_at" in plan  # so that it stops after as many as it looks at
    assert "One-Time Filter" in plan  # so that a full page does not look for how far it has looked
    assert "Seq Scan" not in plan
