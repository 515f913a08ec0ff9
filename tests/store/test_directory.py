from __future__ import annotations

import asyncio
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
from tests.store.conftest import waits_for_lock


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


STORED = {
    "organizations": "id, name, display_name",
    "users": "id, username, name, email, avatar_url, github_com_user_id",
    "memberships": "user_id, organization_id, role",
    "templates": "id, organization_id, name, display_name, icon, description, active_version_id",
    "template_versions": "id, template_id, name, run",
    "runners": "name, pool",
    "presets": "id, template_version_id, name, is_default, parameters",
}


async def stored(engine: AsyncEngine) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of each table, with the numbers of ids, and whether they are active at the end."""

    def shown(value: object) -> object:
        return value.int if isinstance(value, UUID) else value

    async with transaction(engine) as connection:
        return {
            table: [
                tuple(map(shown, row))
                for row in await connection.execute(text(f"SELECT {columns}, active FROM {table} ORDER BY 1, 2"))
            ]
            for table, columns in STORED.items()
        }


async def test_all_entries_are_stored_as_the_file_has_them(engine: AsyncEngine) -> None:
    """With every field, each below its parent; what the file leaves out has its default."""
    content = file()
    content["runners"] = [{"name": "r1", "pool": "gpu"}]
    content["users"][1]["organizations"]["OTHER"] = "member"
    await apply(engine, content)
    expected: dict[str, list[tuple[Any, ...]]] = {
        "organizations": [(1, "acme", "Acme", True), (2, "other", "other", True)],
        "users": [
            (11, "alice", "Alice", "alice@example.com", "", 1, True), (12, "bob", "", "bob@example.com", "", 0, True)
        ],
        "memberships": [(11, 1, "member", True), (12, 1, "admin", True), (12, 2, "member", True)],
        "templates": [(21, 1, "claude", "Claude Code", "/icon/claude.svg", "", 32, True)],
        "template_versions": [
            (31, 21, "v1", {"command": ["agent"]}, True), (32, 21, "v2", {"pool": "gpu", "command": ["agent"]}, True)
        ],
        "runners": [("r1", "gpu", True)],
        "presets": [(41, 32, "Default", True, {"a": [1]}, True)],
    }  # fmt: skip
    found = await stored(engine)
    assert found.pop("users")[0][:6] == expected.pop("users")[0][:6]
    assert found == expected
    content["runners"][0]["pool"] = "cpu"
    content["users"][1]["organizations"] = {"acme": "member"}
    content["organizations"][0].pop("display_name")
    content["templates"][0] |= {"name": "Codex", "description": "Tests", "active_version": identity(31)}
    content["templates"][0].pop("display_name")
    preset = content["templates"][0]["versions"][1]["presets"][0]
    preset |= {"name": "Small", "default": False, "parameters": {"b": 2}}
    assert counts(await apply(engine, content)) == (0, 5, 0, 1)
    assert await stored(engine) == {
        **expected,
        "users": (await stored(engine))["users"],
        "organizations": [(1, "acme", "acme", True), (2, "other", "other", True)],
        "memberships": [(11, 1, "member", True), (12, 1, "member", True), (12, 2, "member", False)],
        "templates": [(21, 1, "Codex", "Codex", "/icon/claude.svg", "Tests", 31, True)],
        "runners": [("r1", "cpu", True)],
        "presets": [(41, 32, "Small", False, {"b": 2}, True)],
    }


def template(number: int, organization: str, name: str) -> dict[str, Any]:
    """Return a template with one version, which has a preset."""
    version = {
        "id": identity(10 * number + 1),
        "name": "v1",
        "run": {"command": ["agent"]},
        "presets": [{"id": identity(10 * number + 2), "name": "p1", "parameters": {}}],
    }
    return {
        "id": identity(10 * number),
        "organization": organization,
        "name": name,
        "active_version": version["id"],
        "versions": [version],
    }


async def test_names_are_unique_below_their_parents(engine: AsyncEngine) -> None:
    """Templates of two organizations may have the same name; two of one can swap theirs, in any case."""
    content = file()
    content["templates"] = [template(7, "acme", "same"), template(8, "other", "same"), template(9, "acme", "third")]
    await apply(engine, content)
    content["templates"][0]["name"], content["templates"][2]["name"] = "Third", "SAME"
    assert counts(await apply(engine, content)) == (0, 2, 0, 0)
    assert [row[2] for row in (await stored(engine))["templates"]] == ["Third", "same", "SAME"]
    content["templates"] = [template(6, "other", "third"), *content["templates"][1:]]
    content["templates"][2] = template(9, "acme", "free")
    assert counts(await apply(engine, content)) == (3, 1, 0, 3)
    content["templates"].append(template(5, "acme", "THIRD"))
    with pytest.raises(
        InvalidDirectory, match=rf"templates {identity(50)}: the name 'THIRD' belongs to {identity(70)},"
    ):
        await apply(engine, content)


async def test_no_entry_moves_to_another_parent(engine: AsyncEngine) -> None:
    """All such mistakes are reported at once, in the order of their lines, and nothing is changed."""
    content = file()
    content["templates"] = [template(7, "acme", "one"), template(8, "acme", "two")]
    await apply(engine, content)
    before = await stored(engine)
    one, two = content["templates"]
    one["versions"], two["versions"] = two["versions"], one["versions"]
    one["active_version"], two["active_version"] = two["active_version"], one["active_version"]
    with pytest.raises(InvalidDirectory) as refused:
        await apply(engine, content)
    assert [problem.split(": ", 1)[1] for problem in refused.value.problems] == [
        f"template_versions {identity(child)}: belongs to {identity(old)} and can't move to {identity(new)}; "
        "give it a new id there"
        for child, old, new in ((81, 80, 70), (71, 70, 80))
    ]
    one["versions"], two["versions"] = two["versions"], one["versions"]
    one["active_version"], two["active_version"] = two["active_version"], one["active_version"]
    presets = [each["versions"][0]["presets"] for each in (one, two)]
    one["versions"][0]["presets"], two["versions"][0]["presets"] = presets[::-1]
    with pytest.raises(InvalidDirectory) as refused:
        await apply(engine, content)
    assert [problem.split(": ")[1] for problem in refused.value.problems] == [
        f"presets {identity(82)}", f"presets {identity(72)}"
    ]  # fmt: skip
    assert await stored(engine) == before


async def test_one_file_is_applied_at_a_time(engine: AsyncEngine) -> None:
    """The second one waits, and then finds what the first one has stored."""

    async def apply_again() -> directory.AppliedChanges:
        return await apply(engine, file())

    async with transaction(engine) as connection:
        await directory.apply(connection, parse(yaml.safe_dump(file()).encode()), allow_deactivate=True)
        waiting = asyncio.create_task(apply_again())
        assert await waits_for_lock(engine, waiting)
    assert not (await waiting).changed


async def test_what_is_read_of_the_directory_is_of_what_is_asked_for(engine: AsyncEngine) -> None:
    """Names, runs and owners each of its own; variables that any version inherits."""
    content = file()
    content["users"][1]["organizations"]["other"] = "member"
    content["templates"].append(template(7, "other", "codex"))
    content["templates"][1]["versions"][0]["run"] = {"command": ["x"], "env": {"inherit": ["HOME", "LANG"]}}
    content["templates"][0]["versions"][0]["run"] = {"command": ["y"], "env": {"inherit": ["LANG", "TERM"]}}
    await apply(engine, content)
    pairs = [(UUID(int=12), UUID(int=71)), (UUID(int=11), UUID(int=31)), (UUID(int=12), UUID(int=32))]
    async with transaction(engine) as connection:
        names = await directory.names(connection, [*pairs, (UUID(int=11), UUID(int=99))])
        assert {
            pair: (each.owner_name, each.organization_id.int, each.template_name) for pair, each in names.items()
        } == dict(zip(pairs, [("bob", 2, "codex"), ("alice", 1, "claude"), ("bob", 1, "claude")], strict=True))
        runs = await directory.runs(connection, [UUID(int=71), UUID(int=32), UUID(int=99)])
        assert {version.int: (each.run["command"], *each.template_pool) for version, each in runs.items()} == {
            71: (["x"], "codex", "default"), 32: (["agent"], "claude", "gpu")
        }  # fmt: skip
        owners = await directory.owners(connection, [UUID(int=12)])
        assert owners == {
            UUID(int=12): directory.Owner(
                UUID(int=12), "bob", active=True, organizations=frozenset({UUID(int=1), UUID(int=2)})
            )
        }
        versions = await directory.template_versions(connection, [UUID(int=32)])
        assert versions == {
            UUID(int=32): directory.TemplateVersion(
                UUID(int=32),
                UUID(int=21),
                UUID(int=1),
                "v2",
                {"pool": "gpu", "command": ["agent"]},
                usable=True,
                presets={UUID(int=41): directory.Preset("Default", {"a": [1]})},
            )
        }
        assert await directory.inherited_variables(connection) == {"HOME", "LANG", "TERM"}


async def test_mistakes_are_reported_in_the_order_of_the_file(engine: AsyncEngine) -> None:
    """Whatever they are about: the file has templates before users."""
    content = file()
    await apply(engine, content)
    content["users"][1]["id"] = identity(13)
    content["templates"][0]["organization"] = "other"
    written = yaml.safe_dump(content)
    assert written.index("templates:") < written.index("users:")
    with pytest.raises(InvalidDirectory) as refused:
        await apply(engine, content)
    assert [problem.split(": ")[1] for problem in refused.value.problems] == [
        f"templates {identity(21)}", f"users {identity(13)}"
    ]  # fmt: skip
