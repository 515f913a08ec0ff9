from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.directory_file.parse import InvalidDirectory, parse
from taskherd.store import directory
from taskherd.store.directory_changes import EntryAction, EntryChange
from taskherd.store.engine import transaction


def identity(number: int) -> str:
    """Return a UUID that is easy to recognize."""
    return str(UUID(int=number))


def file() -> dict[str, Any]:
    """Return a directory file with two organizations, two users and a template with two versions."""
    return {
        "organizations": [
            {"id": identity(1), "name": "acme", "display_name": "Acme"},
            {"id": identity(2), "name": "other"},
        ],
        "users": [
            {
                "id": identity(11),
                "username": "alice",
                "name": "Alice",
                "email": "alice@example.com",
                "avatar_url": "",
                "github_com_user_id": 1,
                "organizations": {"acme": "member"},
            },
            {"id": identity(12), "username": "bob", "email": "bob@example.com", "organizations": {"acme": "admin"}},
        ],
        "templates": [
            {
                "id": identity(21),
                "organization": "acme",
                "name": "claude",
                "display_name": "Claude Code",
                "icon": "/icon/claude.svg",
                "active_version": identity(32),
                "versions": [
                    {"id": identity(31), "name": "v1", "run": {"command": ["agent"]}},
                    {
                        "id": identity(32),
                        "name": "v2",
                        "presets": [{"id": identity(41), "name": "Default", "default": True, "parameters": {"a": [1]}}],
                        "run": {"pool": "gpu", "command": ["agent"]},
                    },
                ],
            }
        ],
    }


async def apply(engine: AsyncEngine, content: dict[str, Any], *, allow: bool = True) -> directory.AppliedChanges:
    """Parse and apply the file, as the command does."""
    async with transaction(engine) as connection:
        return await directory.apply(connection, parse(yaml.safe_dump(content).encode()), allow_deactivate=allow)


def counts(applied: directory.AppliedChanges) -> tuple[int, ...]:
    """Return how many entries were added, changed, reactivated and deactivated."""
    return tuple(applied.changes.count(action) for action in EntryAction)


async def test_applying_twice_changes_nothing(engine: AsyncEngine) -> None:
    """Applying the same file again creates, updates and deactivates nothing and keeps the revision."""
    first = await apply(engine, file())
    assert (counts(first), first.revision) == ((10, 0, 0, 0), 1)
    again = await apply(engine, file())
    assert (again.changed, again.revision) == (False, 1)
    async with transaction(engine) as connection:
        assert await directory.revision(connection) == 1


async def test_missing_entries_are_deactivated_and_can_return(engine: AsyncEngine) -> None:
    """An entry missing from the file is deactivated, never deleted; adding it again restores it."""
    await apply(engine, file())
    content = file()
    content["users"] = content["users"][:1]
    content["users"][0]["organizations"] = {}
    content["templates"][0]["versions"][1]["presets"] = []
    content["templates"][0]["versions"] = content["templates"][0]["versions"][1:]
    changes = await apply(engine, content)
    assert counts(changes) == (0, 0, 0, 5)
    async with transaction(engine) as connection:
        owners = await directory.owners(connection, [UUID(int=11), UUID(int=12), UUID(int=99)])
        versions = await directory.template_versions(connection, [UUID(int=31), UUID(int=32)])
        pair = (UUID(int=12), UUID(int=31))
        assert (await directory.names(connection, [pair]))[pair].owner_name == "bob"
    assert {key.int: (owner.active, owner.organizations) for key, owner in owners.items()} == {
        11: (True, frozenset()),
        12: (False, frozenset()),
    }
    assert {key.int: (version.usable, frozenset(version.presets)) for key, version in versions.items()} == {
        31: (False, frozenset()),
        32: (True, frozenset()),
    }
    assert counts(await apply(engine, file())) == (0, 0, 5, 0)
    async with transaction(engine) as connection:
        (version,) = (await directory.template_versions(connection, [UUID(int=32)])).values()
    assert dict(version.run) == {"pool": "gpu", "command": ["agent"]}
    assert version.presets.keys() == {UUID(int=41)}
    assert version.usable


@pytest.mark.parametrize("table", ["organizations", "templates", "template_versions", "presets", "memberships"])
async def test_whatever_is_deactivated_takes_what_belongs_to_it_along(engine: AsyncEngine, table: str) -> None:
    """A version is usable with its template and organization only, and a user belongs to active organizations."""
    await apply(engine, file())
    async with transaction(engine) as connection:
        await connection.execute(text(f"UPDATE {table} SET active = false"))
        (version,) = (await directory.template_versions(connection, [UUID(int=32)])).values()
        (owner,) = (await directory.owners(connection, [UUID(int=11)])).values()
    assert version.usable is (table in {"presets", "memberships"})
    assert set(version.presets) == (set() if table == "presets" else {UUID(int=41)})
    assert (owner.active, owner.organizations) == (
        True,
        frozenset() if table in {"organizations", "memberships"} else frozenset({UUID(int=1)}),
    )


async def test_two_can_swap_their_names(engine: AsyncEngine) -> None:
    """Two users can swap their usernames: only the result must be unique."""
    await apply(engine, file())
    content = file()
    content["users"][0]["username"], content["users"][1]["username"] = "Bob", "alice"
    assert counts(await apply(engine, content)) == (0, 2, 0, 0)
    async with transaction(engine) as connection:
        rows = await connection.execute(text("SELECT username FROM users ORDER BY id"))
        assert list(rows.scalars()) == ["Bob", "alice"]


def crowd(size: int) -> dict[str, Any]:
    """Return a directory file with an organization of this many users."""
    users = [
        {"id": identity(100 + number), "username": f"user{number}", "email": "u@x", "organizations": {"acme": "member"}}
        for number in range(size)
    ]
    return {"organizations": [{"id": identity(1), "name": "acme"}], "users": users}


async def test_more_than_a_tenth_is_not_deactivated_unless_allowed(engine: AsyncEngine) -> None:
    """Exactly a tenth of the users and their memberships may go; one more is refused, and then nothing changes."""
    content = crowd(20)
    await apply(engine, content)
    content["users"] = content["users"][:18]
    assert counts(await apply(engine, content, allow=False)) == (0, 0, 0, 4)
    content["users"] = [{**user, "name": "Renamed"} for user in content["users"][:16]]
    with pytest.raises(directory.TooManyDeactivated) as refused:
        await apply(engine, content, allow=False)
    assert refused.value.reasons == (
        "2 of 18 active user entries, more than a tenth",
        "2 of 18 active membership entries, more than a tenth",
    )
    async with transaction(engine) as connection:
        assert await directory.revision(connection) == 2
        rows = await connection.execute(text("SELECT count(*) FROM users WHERE active AND name = ''"))
        assert rows.scalar_one() == 18
    assert counts(await apply(engine, content)) == (0, 16, 0, 4)


async def test_a_whole_organization_is_not_deactivated_unless_allowed(engine: AsyncEngine) -> None:
    """One of many organizations, less than a tenth of them, must be allowed too."""
    content = crowd(1)
    content["organizations"] += [{"id": identity(50 + number), "name": f"o{number}"} for number in range(20)]
    await apply(engine, content)
    content["organizations"].pop()
    with pytest.raises(directory.TooManyDeactivated, match=r"^the organization o19 as a whole$"):
        await apply(engine, content, allow=False)
    assert counts(await apply(engine, content)) == (0, 0, 0, 1)


async def test_an_organization_is_not_emptied_unless_allowed(engine: AsyncEngine) -> None:
    """That its entry stays, and that it is one of many, does not matter; others may have no members or templates."""
    content = crowd(40)
    content["organizations"].append({"id": identity(2), "name": "small"})
    content["organizations"].append({"id": identity(3), "name": "empty"})
    content["users"][0]["organizations"] = {"small": "admin"}
    run = {"command": ["agent"]}
    content["templates"] = [
        {
            "id": identity(200 + number),
            "organization": "acme" if number else "small",
            "name": f"t{number}",
            "active_version": identity(300 + number),
            "versions": [{"id": identity(300 + number), "name": "v1", "run": run}],
        }
        for number in range(20)
    ]
    await apply(engine, content)
    small_template = content["templates"].pop(0)
    with pytest.raises(directory.TooManyDeactivated, match=r"^all templates of the organization small$"):
        await apply(engine, content, allow=False)
    content["templates"].append(small_template)
    content["users"][0]["organizations"] = {"acme": "member"}
    with pytest.raises(directory.TooManyDeactivated, match=r"^all memberships of the organization small$"):
        await apply(engine, content, allow=False)
    content["users"][1]["organizations"] = {"small": "member"}
    assert counts(await apply(engine, content, allow=False)) == (2, 0, 0, 2)


async def test_a_plan_names_what_would_change_and_changes_nothing(engine: AsyncEngine) -> None:
    """It has every entry that changes, with kind, name and fields, and values that are certainly no secrets."""
    await apply(engine, file())
    content = file()
    bob = content["users"].pop()
    await apply(engine, content)
    content["users"] = [{**content["users"][0], "username": "Alicia"}, {**bob, "name": "Bob"}]
    content["users"][0]["organizations"] = {"other": "member"}
    version = content["templates"][0]["versions"][1]
    version["presets"] = []
    version["run"] = {"command": ["agent"], "env": {"set": {"KEY": "s3cr3t"}}}
    async with transaction(engine) as connection:
        changes = await directory.plan(connection, parse(yaml.safe_dump(content).encode()))
    assert changes.changes == (
        EntryChange(EntryAction.CHANGED, "user", "Alicia", ("username",), {"username": ("alice", "Alicia")}),
        EntryChange(EntryAction.REACTIVATED, "user", "bob", ("name",), {"name": ("", "Bob")}),
        EntryChange(EntryAction.ADDED, "membership", "Alicia in other"),
        EntryChange(EntryAction.REACTIVATED, "membership", "bob in acme"),
        EntryChange(EntryAction.DEACTIVATED, "membership", "Alicia in acme"),
        EntryChange(EntryAction.CHANGED, "version", "acme/claude/v2", ("run.env", "run.pool")),
        EntryChange(EntryAction.DEACTIVATED, "preset", "acme/claude/v2/Default"),
    )
    async with transaction(engine) as connection:
        assert await directory.revision(connection) == 2
    assert (await apply(engine, content)).changes == changes
    assert not (await apply(engine, content)).changed


async def test_an_entry_cannot_move_to_another_parent(engine: AsyncEngine) -> None:
    """A template stays in its organization; a rejected file changes nothing."""
    await apply(engine, file())
    content = file()
    content["templates"][0]["organization"] = "other"
    content["users"][0]["name"] = "Someone"
    with pytest.raises(InvalidDirectory, match="can't move"):
        await apply(engine, content)
    assert not (await apply(engine, file())).changed


async def test_a_name_cannot_move_to_another_id(engine: AsyncEngine) -> None:
    """The name of an entry missing from the file cannot be used for another id, because tasks still show it.

    All such mistakes are reported at once.
    """
    await apply(engine, file())
    content = file()
    content["users"][1]["id"] = identity(13)
    content["organizations"][1]["id"] = identity(3)
    with pytest.raises(InvalidDirectory) as refused:
        await apply(engine, content)
    assert [problem.split(": ")[1] for problem in refused.value.problems] == [
        f"organizations {identity(3)}",
        f"users {identity(13)}",
    ]
    assert all("leaves out" in problem for problem in refused.value.problems)


async def test_names_are_returned_for_known_pairs(engine: AsyncEngine, tmp_path: Path) -> None:
    """A pair of owner and version has its names; a pair that the directory never contained is missing."""
    (tmp_path / "directory.yaml").write_text(yaml.safe_dump(file()))
    async with transaction(engine) as connection:
        await directory.apply(connection, parse((tmp_path / "directory.yaml").read_bytes()))
        pair = (UUID(int=11), UUID(int=32))
        names = await directory.names(connection, [pair, (UUID(int=98), UUID(int=99))])
    assert names == {
        pair: directory.DirectoryNames(
            "alice", "", UUID(int=1), UUID(int=21), "claude", "Claude Code", "/icon/claude.svg"
        )
    }
