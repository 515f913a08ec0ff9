"""Organizations and what tasks can be made from in them: templates, their versions and presets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from pydantic import Field

from taskherd.api.directory import users
from taskherd.api.http import search_query
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.http.responses import BufferedResponse, json, not_found
from taskherd.api.query import QueryModel
from taskherd.api.tasks import search
from taskherd.store import directory_queries, task_queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.api.context import RequestContext
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


async def organization(request: RequestContext) -> BufferedResponse:
    """One organization: by name, id, or as the default one."""
    row, default = await _organization(request)
    return json(users.organization_json(row, default=default))


async def list_of_organization(request: RequestContext) -> BufferedResponse:
    """The templates of an organization."""
    row, _ = await _organization(request)
    return await _list(request, row["id"])


async def list_templates(request: RequestContext) -> BufferedResponse:
    """The templates of all the caller's organizations."""
    return await _list(request, None)


async def get(request: RequestContext) -> BufferedResponse:
    """One template of an organization."""
    return json(_template(await _get_or_404(request)))


async def version_by_name(request: RequestContext) -> BufferedResponse:
    """A version of a template, by name."""
    template = await _get_or_404(request)
    name = request.params["version"]
    row = None
    if is_searchable(name):
        row = await directory_queries.version_of(request.api.reader, request.caller.user_id, template["id"], name)
    return json(_version(row))


async def version(request: RequestContext) -> BufferedResponse:
    """A version, by id."""
    version_id = parse_uuid(request.params["version"])
    row = None
    if version_id is not None:
        row = await directory_queries.version(request.api.reader, request.caller.user_id, version_id)
    return json(_version(row))


async def presets(request: RequestContext) -> BufferedResponse:
    """The presets of a version, the default first."""
    version_id = parse_uuid(request.params["version"])
    rows = None
    if version_id is not None:
        rows = await directory_queries.presets(request.api.reader, request.caller.user_id, version_id)
    if rows is None:
        raise not_found()
    return json([_preset(row) for row in rows])


async def _organization(request: RequestContext) -> tuple[Row, bool]:
    """The organization that the path names, and whether it is the caller's default one."""
    text = request.params["organization"]
    caller = request.caller.user_id
    default = await task_queries.default_organization(request.api.reader, caller)
    which = default if text.lower() == DEFAULT else parse_uuid(text) or text
    row = None
    if isinstance(which, UUID) or (which and is_searchable(which)):
        row = await directory_queries.organization(request.api.reader, caller, which)
    if row is None:
        raise not_found()
    return row, row["id"] == default


async def _get_or_404(request: RequestContext) -> Row:
    organization_row, _ = await _organization(request)
    text = request.params["template"]
    which = parse_uuid(text) or text
    row = None
    if isinstance(which, UUID) or is_searchable(which):
        row = await directory_queries.template(
            request.api.reader, request.caller.user_id, organization_row["id"], which
        )
    if row is None:
        raise not_found()
    return row


async def _list(request: RequestContext, organization_id: UUID | None) -> BufferedResponse:
    text = search_query.read(request.parameters(TemplatesQuery).q, bare="name", known=_TERMS, message=MESSAGE)
    for name in ("name", "exact_name"):
        if name in text and not is_searchable(text[name]):
            raise search_query.bad_value(MESSAGE, name, "printable characters were expected")
    wanted_here = True
    if "organization" in text:
        asked = await search.organization(request, text["organization"], MESSAGE)
        wanted_here = organization_id in {None, asked}
        organization_id = asked
    tasks = _truth(text, "has-ai-task", otherwise=True)
    deprecated = _truth(text, "deprecated", otherwise=False)
    rows: Any = ()
    if wanted_here and tasks and not deprecated:
        limit = request.api.settings.api_list_most
        wanted = directory_queries.TemplateFilter(limit, organization_id, text.get("exact_name"), text.get("name"))
        rows = await directory_queries.templates(request.api.reader, request.caller.user_id, wanted)
    return json([_template(row) for row in rows])


def _truth(text: Mapping[str, str], name: str, *, otherwise: bool) -> bool:
    """A term that is true or false, in the forms that Go's strconv.ParseBool takes."""
    if name not in text:
        return otherwise
    if text[name] not in _TRUTHS:
        raise search_query.bad_value(MESSAGE, name, f'"{text[name]}" is neither true nor false')
    return _TRUTHS[text[name]]


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
