"""Organizations and what tasks can be made from in them: templates, their versions and presets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from pydantic import Field

from taskherd.api.directory import users
from taskherd.api.http import search_query
from taskherd.api.http.ids import findable, uuid_of
from taskherd.api.http.responses import Answer, json, not_found
from taskherd.api.query import QueryModel
from taskherd.api.tasks import search
from taskherd.store import directory_queries, task_queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.api.context import Ask
    from taskherd.store.reader import Row

MESSAGE: Final = "Invalid template search query."
DEFAULT: Final = "default"
_TERMS: Final = ("name", "exact_name", "organization", "has-ai-task", "deprecated")
_TRUTHS: Final[Mapping[str, bool]] = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


class TemplatesQuery(QueryModel):
    """The parameters of a list of templates."""

    q: str = Field(
        "",
        description="Terms organization:<name, UUID or default>, has-ai-task:<bool>, exact_name:<name>,"
        " name:<part of it>.",
    )


async def organization(ask: Ask) -> Answer:
    """One organization: by name, id, or as the default one."""
    row, default = await _organization(ask)
    return json(users.organization(row, default=default))


async def of_organization(ask: Ask) -> Answer:
    """The templates of an organization."""
    row, _ = await _organization(ask)
    return await _listed(ask, row["id"])


async def listed(ask: Ask) -> Answer:
    """The templates of all the caller's organizations."""
    return await _listed(ask, None)


async def get(ask: Ask) -> Answer:
    """One template of an organization."""
    return json(_template(await _found(ask)))


async def version_by_name(ask: Ask) -> Answer:
    """A version of a template, by name."""
    template = await _found(ask)
    name = ask.params["version"]
    row = None
    if findable(name):
        row = await directory_queries.version_of(ask.house.reader, ask.caller.user_id, template["id"], name)
    return json(_version(row))


async def version(ask: Ask) -> Answer:
    """A version, by id."""
    version_id = uuid_of(ask.params["version"])
    row = None
    if version_id is not None:
        row = await directory_queries.version(ask.house.reader, ask.caller.user_id, version_id)
    return json(_version(row))


async def presets(ask: Ask) -> Answer:
    """The presets of a version, the default first."""
    version_id = uuid_of(ask.params["version"])
    rows = None
    if version_id is not None:
        rows = await directory_queries.presets(ask.house.reader, ask.caller.user_id, version_id)
    if rows is None:
        raise not_found()
    return json([_preset(row) for row in rows])


async def _organization(ask: Ask) -> tuple[Row, bool]:
    """The organization that the path names, and whether it is the caller's default one."""
    said = ask.params["organization"]
    caller = ask.caller.user_id
    default = await task_queries.default_organization(ask.house.reader, caller)
    which = default if said.lower() == DEFAULT else uuid_of(said) or said
    row = None
    if isinstance(which, UUID) or (which and findable(which)):
        row = await directory_queries.organization(ask.house.reader, caller, which)
    if row is None:
        raise not_found()
    return row, row["id"] == default


async def _found(ask: Ask) -> Row:
    organization_row, _ = await _organization(ask)
    said = ask.params["template"]
    which = uuid_of(said) or said
    row = None
    if isinstance(which, UUID) or findable(which):
        row = await directory_queries.template(ask.house.reader, ask.caller.user_id, organization_row["id"], which)
    if row is None:
        raise not_found()
    return row


async def _listed(ask: Ask, organization_id: UUID | None) -> Answer:
    said = search_query.read(ask.parameters(TemplatesQuery).q, bare="name", known=_TERMS, message=MESSAGE)
    for name in ("name", "exact_name"):
        if name in said and not findable(said[name]):
            raise search_query.bad_value(MESSAGE, name, "printable characters were expected")
    wanted_here = True
    if "organization" in said:
        asked = await search.organization(ask, said["organization"], MESSAGE)
        wanted_here = organization_id in {None, asked}
        organization_id = asked
    tasks = _truth(said, "has-ai-task", otherwise=True)
    deprecated = _truth(said, "deprecated", otherwise=False)
    rows: Any = ()
    if wanted_here and tasks and not deprecated:
        most = ask.house.settings.api_list_most
        wanted = directory_queries.Templates(most, organization_id, said.get("exact_name"), said.get("name"))
        rows = await directory_queries.templates(ask.house.reader, ask.caller.user_id, wanted)
    return json([_template(row) for row in rows])


def _truth(said: Mapping[str, str], name: str, *, otherwise: bool) -> bool:
    """A term that is true or false, in the forms that Go's strconv.ParseBool takes."""
    if name not in said:
        return otherwise
    if said[name] not in _TRUTHS:
        raise search_query.bad_value(MESSAGE, name, f'"{said[name]}" is neither true nor false')
    return _TRUTHS[said[name]]


def _template(row: Row) -> dict[str, Any]:
    return {**dict(row), "deprecated": False}


def _version(row: Row | None) -> dict[str, Any]:
    if row is None:
        raise not_found()
    return {
        "id": row["id"],
        "template_id": row["template_id"],
        "organization_id": row["organization_id"],
        "name": row["name"],
        "message": "",
        "archived": not row["active"],
        "job": {"id": row["id"], "status": "succeeded"},
    }


def _preset(row: Row) -> dict[str, Any]:
    parameters = orjson.loads(row["parameters"])
    return {
        "ID": row["id"],
        "Name": row["name"],
        "Default": row["is_default"],
        "Description": "",
        "Icon": "",
        "Parameters": [{"Name": name, "Value": _text(value)} for name, value in sorted(parameters.items())],
    }


def _text(value: Any) -> str:
    """A parameter's value as the text that Coder's are."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
