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
    """A UUID that is easy to tell apart."""
    return str(UUID(int=number))


def file() -> dict[str, Any]:
    """Two organizations, two users, a template with two versions."""
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
    """Apply the file as a person would."""
    async with transaction(engine) as conn:
        return await directory.apply(conn, directory.parse(yaml.safe_dump(content)))


async def test_applying_twice_changes_nothing(engine: AsyncEngine) -> None:
    """The same file again creates, updates and deactivates nothing and leaves the revision alone."""
    first = await apply(engine, file())
    assert (first.created, first.updated, first.deactivated, first.revision) == (10, 0, 0, 1)
    again = await apply(engine, file())
    assert (again.changed, again.revision) == (False, 1)
    async with transaction(engine) as conn:
        assert await directory.revision(conn) == 1


async def test_what_is_left_out_is_deactivated_and_comes_back(engine: AsyncEngine) -> None:
    """Leaving out deactivates and never deletes; putting it back restores it."""
    await apply(engine, file())
    content = file()
    content["users"] = content["users"][:1]
    content["users"][0]["organizations"] = {}
    content["templates"][0]["versions"][1]["presets"] = []
    content["templates"][0]["versions"] = content["templates"][0]["versions"][1:]
    changes = await apply(engine, content)
    assert (changes.created, changes.updated, changes.deactivated) == (0, 0, 5)
    async with transaction(engine) as conn:
        owners = await directory.owner(conn, [UUID(int=11), UUID(int=12), UUID(int=99)])
        versions = await directory.template_version(conn, [UUID(int=31), UUID(int=32)])
        pair = (UUID(int=12), UUID(int=31))
        assert (await directory.names(conn, [pair]))[pair].owner_name == "bob"
    assert {key.int: (owner.active, owner.organizations) for key, owner in owners.items()} == {
        11: (True, frozenset()),
        12: (False, frozenset()),
    }
    assert {key.int: (version.usable, version.presets) for key, version in versions.items()} == {
        31: (False, frozenset()),
        32: (True, frozenset()),
    }
    assert (await apply(engine, file())).updated == 5
    async with transaction(engine) as conn:
        (version,) = (await directory.template_version(conn, [UUID(int=32)])).values()
    assert dict(version.run) == {"pool": "gpu"}
    assert version.presets == {UUID(int=41)}
    assert version.usable


async def test_two_can_swap_their_names(engine: AsyncEngine) -> None:
    """Names are judged as the file has them in the end, not in the order in which they are written."""
    await apply(engine, file())
    content = file()
    content["users"][0]["username"], content["users"][1]["username"] = "Bob", "alice"
    assert (await apply(engine, content)).updated == 2
    async with transaction(engine) as conn:
        found = await conn.execute(text("SELECT username FROM users ORDER BY id"))
        assert list(found.scalars()) == ["Bob", "alice"]


def _set(content: dict[str, Any], path: str, value: object) -> None:
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("/"))
    target: Any = content
    for step in steps:
        target = target[step]
    target[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
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
def test_a_wrong_file_is_refused_with_the_place(path: str, value: object, said: str) -> None:
    """The message names the path in the file and what is wrong there."""
    content = file()
    _set(content, path, value)
    with pytest.raises(InvalidDirectory) as refused:
        directory.parse(yaml.safe_dump(content))
    assert said in str(refused.value)


@pytest.mark.parametrize("content", ["a: [", "- 1", "users: 3", "users: []\nusers: []", "a: &a [*a]", "? [1]\n: 2"])
def test_what_is_no_directory_is_refused(content: str) -> None:
    """Broken YAML, another shape and a key given twice are refused, not guessed at."""
    with pytest.raises(InvalidDirectory):
        directory.parse(content)


async def test_nothing_moves_to_another_parent(engine: AsyncEngine) -> None:
    """A template stays in its organization; the refusal leaves everything as it was."""
    await apply(engine, file())
    content = file()
    content["templates"][0]["organization"] = "other"
    content["users"][0]["name"] = "Someone"
    with pytest.raises(InvalidDirectory, match="can't move"):
        await apply(engine, content)
    assert not (await apply(engine, file())).changed


async def test_a_name_stays_with_its_id(engine: AsyncEngine) -> None:
    """A name that a left-out entry bears can't be given to another id, since tasks still show it."""
    await apply(engine, file())
    content = file()
    content["users"][1]["id"] = identity(13)
    with pytest.raises(InvalidDirectory, match="leaves out"):
        await apply(engine, content)


async def test_names_are_those_of_the_pairs(engine: AsyncEngine, tmp_path: Path) -> None:
    """Documents get owner and template names; a pair that the directory never had is missing."""
    (tmp_path / "directory.yaml").write_text(yaml.safe_dump(file()))
    async with transaction(engine) as conn:
        await directory.apply(conn, directory.parse((tmp_path / "directory.yaml").read_bytes()))
        pair = (UUID(int=11), UUID(int=32))
        found = await directory.names(conn, [pair, (UUID(int=98), UUID(int=99))])
    assert found == {
        pair: directory.DirectoryNames(
            "alice", "", UUID(int=1), UUID(int=21), "claude", "Claude Code", "/icon/claude.svg"
        )
    }
