"""Apply a directory file: make the tables match the file, and deactivate entries that are missing from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Table, bindparam, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.directory_file.model import Directory
from taskherd.directory_file.parse import InvalidDirectory, problem_at
from taskherd.store import tables, tokens
from taskherd.store.directory_changes import (
    ORGANIZATION,
    SHOWN_FIELDS,
    DirectoryChanges,
    EntryAction,
    EntryChange,
    TooManyDeactivated,
    shown_value,
)

Key: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """What was changed, and the revision of the directory afterwards."""

    changes: DirectoryChanges
    revision: int

    @property
    def changed(self) -> bool:
        """True if any entry was changed."""
        return bool(self.changes.changes)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table of the directory.

    ``kind``: what a row is. ``fixed``: columns that never change. ``scope``: in which ``name`` is unique.
    """

    table: Table
    kind: str
    fixed: tuple[str, ...] = ()
    name: str | None = None
    scope: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the primary key's columns."""
        return tuple(column.name for column in self.table.primary_key)


# Parents first, so that foreign keys find them.
TABLE_SPECS: Final = (
    TableSpec(tables.organizations, ORGANIZATION, name="name"),
    TableSpec(tables.users, "user", name="username"),
    TableSpec(tables.memberships, "membership"),
    TableSpec(tables.templates, "template", fixed=("organization_id",), name="name", scope=("organization_id",)),
    TableSpec(tables.template_versions, "version", fixed=("template_id",), name="name", scope=("template_id",)),
    TableSpec(tables.runners, "runner"),
    TableSpec(tables.presets, "preset", fixed=("template_version_id",), name="name", scope=("template_version_id",)),
)


@dataclass(frozen=True, slots=True)
class TablePlan:
    """The rows that a table has, and those that it should have, by key."""

    spec: TableSpec
    existing: Rows
    desired: Rows

    @property
    def new(self) -> list[Key]:
        """The keys of rows to insert."""
        return [key for key in self.desired if key not in self.existing]

    @property
    def different(self) -> list[Key]:
        """The keys of rows to update."""
        return [key for key, row in self.desired.items() if key in self.existing and self.existing[key] != row]

    @property
    def missing(self) -> list[Key]:
        """The keys of rows to deactivate."""
        return [key for key, row in self.existing.items() if key not in self.desired and row["active"]]


LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd directory', 0))")
REVISION: Final = text("UPDATE directory_revision SET revision = revision + :by RETURNING revision")


async def plan(connection: AsyncConnection, directory: Directory) -> DirectoryChanges:
    """Return what ``apply`` would change. Raise ``InvalidDirectory`` as it would."""
    return await _describe(connection, await _plan(connection, directory))


async def apply(connection: AsyncConnection, directory: Directory, *, allow_deactivate: bool = False) -> AppliedChanges:
    """Make the tables match ``directory``. Idempotent: a repeat leaves the revision as it is.

    Raises:
        InvalidDirectory: an entry would move to another parent, or take the name of an entry missing from the file.
        TooManyDeactivated: an organization, all its members or templates, or more than a tenth of the entries of a kind
            would be deactivated, and ``allow_deactivate`` is not set.
    """
    plans = await _plan(connection, directory)
    changes = await _describe(connection, plans)
    if changes.excessive and not allow_deactivate:
        raise TooManyDeactivated(changes.excessive)
    for each in plans:
        await _execute(connection, each)
    revision = (await connection.execute(REVISION, {"by": int(bool(changes.changes))})).scalar_one()
    return AppliedChanges(changes, revision)


async def _plan(connection: AsyncConnection, directory: Directory) -> list[TablePlan]:
    await connection.execute(LOCK)
    plans = [
        TablePlan(spec, await _existing_rows(connection, spec), desired)
        for spec, desired in zip(TABLE_SPECS, _desired_rows(directory), strict=True)
    ]
    problems = [
        (directory.line_of(each.spec.kind, entry_id), f"{each.spec.table.name} {entry_id}: {problem}")
        for each in plans
        for find in (_parent_changes, _name_conflicts)
        for entry_id, problem in find(each.spec, each.desired, each.existing)
    ]
    if problems:
        problems.sort(key=lambda located: located[0] or 0)
        raise InvalidDirectory(problem_at(line, problem) for line, problem in problems)
    return plans


async def _execute(connection: AsyncConnection, plan: TablePlan) -> None:
    spec, desired, existing = plan.spec, plan.desired, plan.existing
    different = plan.different
    await _free_names(connection, spec, [key for key in different if _is_renamed(spec, desired[key], existing[key])])
    await _update(connection, spec, [dict(desired[key]) for key in different])
    await _update(connection, spec, [{**existing[key], "active": False} for key in plan.missing])
    if new := [dict(desired[key]) for key in plan.new]:
        await connection.execute(insert(spec.table), new)


async def _describe(connection: AsyncConnection, plans: Sequence[TablePlan]) -> DirectoryChanges:
    labels = _Labels(plans)
    active = {each.spec.kind: sum(row["active"] for row in each.existing.values()) for each in plans}
    changes = tuple(change for each in plans for change in _table_changes(each, labels))
    return DirectoryChanges(changes, active, tuple(_emptied(plans, labels)), await _kept_tokens(connection, plans))


async def _kept_tokens(connection: AsyncConnection, plans: Sequence[TablePlan]) -> int:
    """Return how many tokens of users who are reactivated have not ended for good meanwhile."""
    (users,) = (each for each in plans if each.spec.table is tables.users)
    returning = [user_id for (user_id,) in users.different if not users.existing[user_id,]["active"]]
    return await tokens.count_kept(connection, returning) if returning else 0


def _emptied(plans: Sequence[TablePlan], labels: _Labels) -> Iterator[str]:
    """Yield what organizations that stay would have none of any more."""
    by_kind = {each.spec.kind: each for each in plans}
    for kind in ("membership", "template"):
        before = {row["organization_id"] for row in by_kind[kind].existing.values() if row["active"]}
        after = {row["organization_id"] for row in by_kind[kind].desired.values()}
        for organization_id in sorted(before - after):
            if (organization_id,) in by_kind[ORGANIZATION].desired:
                yield f"{kind}s of the organization {labels.of(ORGANIZATION, (organization_id,))}"


def _table_changes(plan: TablePlan, labels: _Labels) -> Iterator[EntryChange]:
    kind = plan.spec.kind
    for key in plan.new:
        yield EntryChange(EntryAction.ADDED, kind, labels.of(kind, key))
    for key in plan.different:
        before, after = plan.existing[key], plan.desired[key]
        action = EntryAction.CHANGED if before["active"] else EntryAction.REACTIVATED
        fields = tuple(_changed_fields(before, after))
        values = {
            name: (shown_value(before[name]), shown_value(after[name])) for name in fields if name in SHOWN_FIELDS
        }
        yield EntryChange(action, kind, labels.of(kind, key), fields, values)
    for key in plan.missing:
        yield EntryChange(EntryAction.DEACTIVATED, kind, labels.of(kind, key))


def _changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of changed columns, and of the changed fields of ``run``, which may have secrets as values."""
    for column in after:
        if column == "active" or before[column] == after[column]:
            continue
        if column == "run":
            names = sorted({*before[column], *after[column]})
            yield from (f"run.{name}" for name in names if before[column].get(name) != after[column].get(name))
        else:
            yield column


class _Labels:
    """The names of entries with the names around them, from the file if it has the entry, else from the table."""

    def __init__(self, plans: Sequence[TablePlan]) -> None:
        self._rows = {each.spec.kind: {**each.existing, **each.desired} for each in plans}

    def of(self, kind: str, key: Key) -> str:
        row = self._rows[kind][key]
        match kind:
            case "membership":
                user, organization = (self.of("user", key[:1]), self.of(ORGANIZATION, key[1:]))
                return f"{user} in {organization}"
            case "user":
                return str(row["username"])
            case "template":
                parents = self.of(ORGANIZATION, (row["organization_id"],))
            case "version":
                parents = self.of("template", (row["template_id"],))
            case "preset":
                parents = self.of("version", (row["template_version_id"],))
            case _:
                return str(row["name"])
        return f"{parents}/{row['name']}"


async def _existing_rows(connection: AsyncConnection, spec: TableSpec) -> Rows:
    rows = (await connection.execute(select(spec.table))).mappings()
    return {tuple(row[column] for column in spec.key): dict(row) for row in rows}


def _parent_changes(spec: TableSpec, desired: Rows, existing: Rows) -> Iterator[tuple[UUID, str]]:
    """Yield the id of each entry that would move to another parent, and an error message."""
    for key, row in desired.items():
        for column in spec.fixed:
            if key in existing and existing[key][column] != row[column]:
                yield (
                    row["id"],
                    f"belongs to {existing[key][column]} and can't move to {row[column]}; give it a new id there",
                )


def _name_conflicts(spec: TableSpec, desired: Rows, existing: Rows) -> Iterator[tuple[UUID, str]]:
    """Yield the id of each entry whose name an entry missing from the file still has, and an error message."""
    if spec.name is None:
        return
    kept_names = {_scoped_name(spec, row): row["id"] for key, row in existing.items() if key not in desired}
    for row in desired.values():
        kept_id = kept_names.get(_scoped_name(spec, row))
        if kept_id is not None:
            problem = (
                f"the name {row[spec.name]!r} belongs to {kept_id}, which the file leaves out and which is kept for "
                "the tasks that refer to it; use that id, or another name"
            )
            yield row["id"], problem


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
