from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import directory
from taskherd.store.directory import InvalidDirectory
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
                    {"id": identity(31), "name": "v1", "run": {}},
                    {
                        "id": identity(32),
                        "name": "v2",
                        "presets": [{"id": identity(41), "name": "Default", "default": True, "parameters": {"a": [1]}}],
                        "run": {"pool": "gpu"},
                    },
                ],
            }
        ],
    }


async def apply(engine: AsyncEngine, content: dict[str, Any]) -> directory.AppliedChanges:
    """Parse and apply the file, as the command does."""
    async with transaction(engine) as connection:
        return await directory.apply(connection, directory.parse(yaml.safe_dump(content)))


async def test_applying_twice_changes_nothing(engine: AsyncEngine) -> None:
    """Applying the same file again creates, updates and deactivates nothing and keeps the revision."""
    first = await apply(engine, file())
    assert (first.created, first.updated, first.deactivated, first.revision) == (10, 0, 0, 1)
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
    assert (changes.created, changes.updated, changes.deactivated) == (0, 0, 5)
    async with transaction(engine) as connection:
        owners = await directory.owners(connection, [UUID(int=11), UUID(int=12), UUID(int=99)])
        versions = await directory.template_versions(connection, [UUID(int=31), UUID(int=32)])
        pair = (UUID(int=12), UUID(int=31))
        assert (await directory.names(connection, [pair]))[pair].owner_name == "bob"
    assert {key.int: (owner.active, owner.organizations) for key, owner in owners.items()} == {
        11: (True, frozenset()),
        12: (False, frozenset()),
    }
    assert {key.int: (version.usable, version.presets) for key, version in versions.items()} == {
        31: (False, frozenset()),
        32: (True, frozenset()),
    }
    assert (await apply(engine, file())).updated == 5
    async with transaction(engine) as connection:
        (version,) = (await directory.template_versions(connection, [UUID(int=32)])).values()
    assert dict(version.run) == {"pool": "gpu"}
    assert version.presets == {UUID(int=41)}
    assert version.usable


async def test_two_can_swap_their_names(engine: AsyncEngine) -> None:
    """Two users can swap their usernames: only the result must be unique."""
    await apply(engine, file())
    content = file()
    content["users"][0]["username"], content["users"][1]["username"] = "Bob", "alice"
    assert (await apply(engine, content)).updated == 2
    async with transaction(engine) as connection:
        rows = await connection.execute(text("SELECT username FROM users ORDER BY id"))
        assert list(rows.scalars()) == ["Bob", "alice"]


def _set(content: dict[str, Any], path: str, value: object) -> None:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    target: Any = content
    for step in steps:
        target = target[step]
    target[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "users/0/organizations",
            {"nowhere": "member"},
            "users[0].organizations.nowhere: the file has no organization",
        ),
        ("users/0/organizations", {"acme": "owner"}, "users[0].organizations.acme: Input should be"),
        ("users/1/username", "ALICE", "users[1].username: ALICE is already at users[0].username"),
        ("users/1/id", identity(11), "users[1].id: 00000000-0000-0000-0000-00000000000b is already at users[0].id"),
        ("users/0/usrname", "x", "users[0].usrname: Extra inputs are not permitted"),
        ("organizations/0/id", identity(0), "organizations[0].id: Value error, the nil UUID"),
        ("templates/0/organization", "nowhere", "templates[0].organization: the file has no organization 'nowhere'"),
        ("templates/0/active_version", identity(77), "templates[0].active_version: "),
        ("templates/0/versions/0/name", "V2", "templates[0].versions[1].name: v2 is already at"),
        ("templates/0/versions/0/run", {"pool": "No!"}, "templates[0].versions[0].run: Value error, pool must be"),
    ],
)
def test_an_invalid_file_is_rejected_with_the_path(path: str, value: object, message: str) -> None:
    """The error names the path in the file and what is wrong there."""
    content = file()
    _set(content, path, value)
    with pytest.raises(InvalidDirectory) as error:
        directory.parse(yaml.safe_dump(content))
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", "users: 3", "users: []\nusers: []", "a: &a [*a]", "? [1]\n: 2"])
def test_content_that_is_no_directory_is_rejected(content: str) -> None:
    """Invalid YAML, another structure and a repeated key are rejected."""
    with pytest.raises(InvalidDirectory):
        directory.parse(content)


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
    """The name of an entry missing from the file cannot be used for another id, because tasks still show it."""
    await apply(engine, file())
    content = file()
    content["users"][1]["id"] = identity(13)
    with pytest.raises(InvalidDirectory, match="leaves out"):
        await apply(engine, content)


async def test_names_are_returned_for_known_pairs(engine: AsyncEngine, tmp_path: Path) -> None:
    """A pair of owner and version has its names; a pair that the directory never contained is missing."""
    (tmp_path / "directory.yaml").write_text(yaml.safe_dump(file()))
    async with transaction(engine) as connection:
        await directory.apply(connection, directory.parse((tmp_path / "directory.yaml").read_bytes()))
        pair = (UUID(int=11), UUID(int=32))
        names = await directory.names(connection, [pair, (UUID(int=98), UUID(int=99))])
    assert names == {
        pair: directory.DirectoryNames(
            "alice", "", UUID(int=1), UUID(int=21), "claude", "Claude Code", "/icon/claude.svg"
        )
    }
