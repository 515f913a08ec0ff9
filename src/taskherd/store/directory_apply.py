"""Apply a directory file: make the tables match the file, and deactivate entries that are missing from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Table, bindparam, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store import tables
from taskherd.store.directory_file import Directory, InvalidDirectory

Key: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """Number of entries created, updated and deactivated, and the revision of the directory afterwards."""

    created: int
    updated: int
    deactivated: int
    revision: int

    @property
    def changed(self) -> bool:
        """True if any entry was created, updated or deactivated."""
        return bool(self.created or self.updated or self.deactivated)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of the directory: its columns that never change, and the scope in which its name is unique."""

    table: Table
    fixed: tuple[str, ...] = ()
    name: str | None = None
    scope: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the primary key's columns."""
        return tuple(column.name for column in self.table.primary_key)


# Parents first, so that foreign keys find them.
TABLE_SPECS: Final = (
    TableSpec(tables.organizations, name="name"),
    TableSpec(tables.users, name="username"),
    TableSpec(tables.memberships),
    TableSpec(tables.templates, fixed=("organization_id",), name="name", scope=("organization_id",)),
    TableSpec(tables.template_versions, fixed=("template_id",), name="name", scope=("template_id",)),
    TableSpec(tables.runners),
    TableSpec(tables.presets, fixed=("template_version_id",), name="name", scope=("template_version_id",)),
)

LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd directory', 0))")
REVISION: Final = text("UPDATE directory_revision SET revision = revision + :by RETURNING revision")


async def apply(connection: AsyncConnection, directory: Directory) -> AppliedChanges:
    """Make the tables match ``directory``. Idempotent: a repeat leaves the revision as it is.

    Raises:
        InvalidDirectory: an entry would move to another parent, or take the name of an entry missing from the file.
    """
    await connection.execute(LOCK)
    created = updated = deactivated = 0
    for spec, desired in zip(TABLE_SPECS, _desired_rows(directory), strict=True):
        existing = await _existing_rows(connection, spec)
        problems = [*_parent_changes(spec, desired, existing), *_name_conflicts(spec, desired, existing)]
        if problems:
            raise InvalidDirectory(problems)
        new = [row for key, row in desired.items() if key not in existing]
        changed_keys = [key for key, row in desired.items() if key in existing and existing[key] != row]
        missing_keys = [key for key, row in existing.items() if key not in desired and row["active"]]
        await _free_names(
            connection, spec, [key for key in changed_keys if _is_renamed(spec, desired[key], existing[key])]
        )
        await _update(connection, spec, [dict(desired[key]) for key in changed_keys])
        await _update(connection, spec, [{**existing[key], "active": False} for key in missing_keys])
        if new:
            await connection.execute(insert(spec.table), [dict(row) for row in new])
        created, updated, deactivated = created + len(new), updated + len(changed_keys), deactivated + len(missing_keys)
    changed = bool(created or updated or deactivated)
    revision = (await connection.execute(REVISION, {"by": int(changed)})).scalar_one()
    return AppliedChanges(created, updated, deactivated, revision)


async def _existing_rows(connection: AsyncConnection, spec: TableSpec) -> Rows:
    rows = (await connection.execute(select(spec.table))).mappings()
    return {tuple(row[column] for column in spec.key): dict(row) for row in rows}


def _parent_changes(spec: TableSpec, desired: Rows, existing: Rows) -> Iterator[str]:
    """Yield an error message for each entry that would move to another parent."""
    for key, row in desired.items():
        for column in spec.fixed:
            if key in existing and existing[key][column] != row[column]:
                yield (
                    f"{spec.table.name} {row['id']}: belongs to {existing[key][column]} and can't move to "
                    f"{row[column]}; give it a new id there"
                )


def _name_conflicts(spec: TableSpec, desired: Rows, existing: Rows) -> Iterator[str]:
    """Yield an error message for each name in the file that an entry missing from the file still has."""
    if spec.name is None:
        return
    kept_names = {_scoped_name(spec, row): row["id"] for key, row in existing.items() if key not in desired}
    for row in desired.values():
        kept_id = kept_names.get(_scoped_name(spec, row))
        if kept_id is not None:
            yield (
                f"{spec.table.name} {row['id']}: the name {row[spec.name]!r} belongs to {kept_id}, which the file "
                "leaves out and which is kept for the tasks that refer to it; use that id, or another name"
            )


def _scoped_name(spec: TableSpec, row: Mapping[str, Any]) -> Key:
    return (*(row[column] for column in spec.scope), str(row[spec.name or "id"]).lower())


def _is_renamed(spec: TableSpec, desired: Mapping[str, Any], existing: Mapping[str, Any]) -> bool:
    return spec.name is not None and _scoped_name(spec, desired) != _scoped_name(spec, existing)


async def _free_names(connection: AsyncConnection, spec: TableSpec, keys: Sequence[Key]) -> None:
    """Set the name of entries to be renamed to their id for now, so that two entries can swap names."""
    if keys and spec.name is not None:
        rows = [{"key_id": key[0], spec.name: str(key[0])} for key in keys]
        await connection.execute(update(spec.table).where(spec.table.c.id == bindparam("key_id")), rows)


async def _update(connection: AsyncConnection, spec: TableSpec, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    statement = update(spec.table)
    for column in spec.key:
        statement = statement.where(spec.table.c[column] == bindparam(f"key_{column}"))
    parameters = [{**row, **{f"key_{column}": row[column] for column in spec.key}} for row in rows]
    await connection.execute(statement, parameters)


def _desired_rows(directory: Directory) -> Iterator[Rows]:
    """Yield the rows of each table, by key, in the order of ``TABLE_SPECS``."""
    organization_ids = {organization.name.lower(): organization.id for organization in directory.organizations}
    yield _organizations(directory)
    yield {(user.id,): {**user.model_dump(exclude={"organizations"}), "active": True} for user in directory.users}
    yield _memberships(directory, organization_ids)
    yield _templates(directory, organization_ids)
    yield _template_versions(directory)
    yield {(each.name,): {"name": each.name, "pool": each.pool, "active": True} for each in directory.runners}
    yield _presets(directory)


def _organizations(directory: Directory) -> Rows:
    return {
        (organization.id,): {
            "id": organization.id,
            "name": organization.name,
            "display_name": organization.display_name or organization.name,
            "active": True,
        }
        for organization in directory.organizations
    }


def _memberships(directory: Directory, organization_ids: Mapping[str, UUID]) -> Rows:
    return {
        (user.id, organization_ids[name.lower()]): {
            "user_id": user.id,
            "organization_id": organization_ids[name.lower()],
            "role": role,
            "active": True,
        }
        for user in directory.users
        for name, role in user.organizations.items()
    }


def _templates(directory: Directory, organization_ids: Mapping[str, UUID]) -> Rows:
    return {
        (template.id,): {
            "id": template.id,
            "organization_id": organization_ids[template.organization.lower()],
            "name": template.name,
            "display_name": template.display_name or template.name,
            "icon": template.icon,
            "description": template.description,
            "active_version_id": template.active_version,
            "active": True,
        }
        for template in directory.templates
    }


def _template_versions(directory: Directory) -> Rows:
    return {
        (version.id,): {
            "id": version.id,
            "template_id": template.id,
            "name": version.name,
            "run": version.run,
            "active": True,
        }
        for template in directory.templates
        for version in template.versions
    }


def _presets(directory: Directory) -> Rows:
    return {
        (preset.id,): {
            "id": preset.id,
            "template_version_id": version.id,
            "name": preset.name,
            "is_default": preset.default,
            "parameters": preset.parameters,
            "active": True,
        }
        for template in directory.templates
        for version in template.versions
        for preset in version.presets
    }
