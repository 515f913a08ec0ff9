"""Applies a directory file: the tables become what the file says, and what it leaves out is deactivated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlalchemy import Table, bindparam, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import tables
from taskherd.store.directory_file import Directory, InvalidDirectory

Key: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """How many entries an apply created, updated and deactivated, and the directory's revision after it."""

    created: int
    updated: int
    deactivated: int
    revision: int

    @property
    def changed(self) -> bool:
        """Whether anything is different now."""
        return bool(self.created or self.updated or self.deactivated)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What apply must know of a table: which columns never change, and which name is unique within which scope."""

    table: Table
    fixed: tuple[str, ...] = ()
    name: str | None = None
    scope: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return tuple(column.name for column in self.table.primary_key)


# In the order of their references: an entry's parent comes before it.
TABLE_SPECS: Final = (
    TableSpec(tables.organizations, name="name"),
    TableSpec(tables.users, name="username"),
    TableSpec(tables.memberships),
    TableSpec(tables.templates, fixed=("organization_id",), name="name", scope=("organization_id",)),
    TableSpec(tables.template_versions, fixed=("template_id",), name="name", scope=("template_id",)),
    TableSpec(tables.presets, fixed=("template_version_id",), name="name", scope=("template_version_id",)),
)

LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd directory', 0))")
REVISION: Final = text("UPDATE directory_revision SET revision = revision + :by RETURNING revision")


async def apply(conn: AsyncConnection, directory: Directory) -> AppliedChanges:
    """Make the tables say what `directory` says; doing it again changes nothing and leaves the revision as it is.

    Raises:
        DirectoryRefused: an entry would move to another parent, or take a name that a left-out entry still has.
    """
    await conn.execute(LOCK)
    created = updated = deactivated = 0
    for shape, wanted in zip(TABLE_SPECS, _wanted_rows(directory), strict=True):
        existing = await _existing(conn, shape)
        problems = [*_moves(shape, wanted, existing), *_clashes(shape, wanted, existing)]
        if problems:
            raise InvalidDirectory(problems)
        new = [row for key, row in wanted.items() if key not in existing]
        different = [key for key, row in wanted.items() if key in existing and existing[key] != row]
        left_out = [key for key, row in existing.items() if key not in wanted and row["active"]]
        await _free_names(conn, shape, [key for key in different if _renamed(shape, wanted[key], existing[key])])
        await _update(conn, shape, [dict(wanted[key]) for key in different])
        await _update(conn, shape, [{**existing[key], "active": False} for key in left_out])
        if new:
            await conn.execute(insert(shape.table), [dict(row) for row in new])
        created, updated, deactivated = created + len(new), updated + len(different), deactivated + len(left_out)
    changed = bool(created or updated or deactivated)
    revision = (await conn.execute(REVISION, {"by": int(changed)})).scalar_one()
    return AppliedChanges(created, updated, deactivated, revision)


async def _existing(conn: AsyncConnection, shape: TableSpec) -> Rows:
    found = (await conn.execute(select(shape.table))).mappings()
    return {tuple(row[column] for column in shape.key): dict(row) for row in found}


def _moves(shape: TableSpec, wanted: Rows, existing: Rows) -> Iterator[str]:
    for key, row in wanted.items():
        for column in shape.fixed:
            if key in existing and existing[key][column] != row[column]:
                yield (
                    f"{shape.table.name} {row['id']}: belongs to {existing[key][column]} and can't move to "
                    f"{row[column]}; give it a new id there"
                )


def _clashes(shape: TableSpec, wanted: Rows, existing: Rows) -> Iterator[str]:
    """Names that the file gives to one entry while an entry it leaves out still bears them."""
    if shape.name is None:
        return
    stamped = {_name(shape, row): row["id"] for key, row in existing.items() if key not in wanted}
    for row in wanted.values():
        holder = stamped.get(_name(shape, row))
        if holder is not None:
            yield (
                f"{shape.table.name} {row['id']}: the name {row[shape.name]!r} belongs to {holder}, which the file "
                "leaves out and which is kept for the tasks that refer to it; use that id, or another name"
            )


def _name(shape: TableSpec, row: Mapping[str, Any]) -> Key:
    return (*(row[column] for column in shape.scope), str(row[shape.name or "id"]).lower())


def _renamed(shape: TableSpec, wanted: Mapping[str, Any], existing: Mapping[str, Any]) -> bool:
    return shape.name is not None and _name(shape, wanted) != _name(shape, existing)


async def _free_names(conn: AsyncConnection, shape: TableSpec, keys: Sequence[Key]) -> None:
    """Give entries that are renamed their id as name for a moment, so that two can swap names."""
    if keys and shape.name is not None:
        rows = [{"key_id": key[0], shape.name: str(key[0])} for key in keys]
        await conn.execute(update(shape.table).where(shape.table.c.id == bindparam("key_id")), rows)


async def _update(conn: AsyncConnection, shape: TableSpec, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    statement = update(shape.table)
    for column in shape.key:
        statement = statement.where(shape.table.c[column] == bindparam(f"key_{column}"))
    keyed = [{**row, **{f"key_{column}": row[column] for column in shape.key}} for row in rows]
    await conn.execute(statement, keyed)


def _wanted_rows(directory: Directory) -> Iterator[Rows]:
    """The rows of each table, in the order of `TABLE_SPECS`."""
    by_name = {organization.name.lower(): organization.id for organization in directory.organizations}
    yield {
        (part.id,): {"id": part.id, "name": part.name, "display_name": part.display_name or part.name, "active": True}
        for part in directory.organizations
    }
    yield {(part.id,): {**part.model_dump(exclude={"organizations"}), "active": True} for part in directory.users}
    yield {
        (part.id, by_name[name.lower()]): {
            "user_id": part.id,
            "organization_id": by_name[name.lower()],
            "role": role,
            "active": True,
        }
        for part in directory.users
        for name, role in part.organizations.items()
    }
    yield {
        (part.id,): {
            "id": part.id,
            "organization_id": by_name[part.organization.lower()],
            "name": part.name,
            "display_name": part.display_name or part.name,
            "icon": part.icon,
            "description": part.description,
            "active_version_id": part.active_version,
            "active": True,
        }
        for part in directory.templates
    }
    versions = [(template.id, version) for template in directory.templates for version in template.versions]
    yield {
        (part.id,): {"id": part.id, "template_id": template_id, "name": part.name, "run": part.run, "active": True}
        for template_id, part in versions
    }
    yield {
        (part.id,): {
            "id": part.id,
            "template_version_id": version.id,
            "name": part.name,
            "is_default": part.default,
            "parameters": part.parameters,
            "active": True,
        }
        for _, version in versions
        for part in version.presets
    }
