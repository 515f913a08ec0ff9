"""Handlers for organizations, and for the templates, versions and presets in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from pydantic import Field

from taskherd.api.directory import users
from taskherd.api.http import search_query
from taskherd.api.http.errors import not_found
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.http.query_parameters import QueryModel
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import search
from taskherd.api.workspaces.builds import job_json
from taskherd.store import directory_queries, task_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MESSAGE: Final = "Invalid template search query."
PROMPT_PARAMETER: Final = "AI Prompt"
"""The parameter that is a task's prompt, as in Coder's templates for tasks."""
_DEFAULT: Final = "default"
_NOT_IN_THE_DIRECTORY: Final[Mapping[str, Any]] = {
    "organization_icon": "",
    "active_user_count": -1,
    "build_time_stats": {},
    "deprecated": False,
    "deprecation_message": "",
    "deleted": False,
    "default_ttl_ms": 0,
    "activity_bump_ms": 0,
    "time_til_autostop_notify_ms": 0,
    "autostop_requirement": {"days_of_week": [], "weeks": 0},
    "autostart_requirement": {"days_of_week": []},
    "allow_user_autostart": False,
    "allow_user_autostop": False,
    "allow_user_cancel_workspace_jobs": False,
    "failure_ttl_ms": 0,
    "time_til_dormant_ms": 0,
    "time_til_dormant_autodelete_ms": 0,
    "require_active_version": False,
    "max_port_share_level": "owner",
    "cors_behavior": "simple",
    "use_classic_parameter_flow": True,
    "disable_module_cache": False,
}
"""What a template of Coder's also has, as for a template without any of it; a user count of -1 is one not known."""
_TERMS: Final = ("name", "exact_name", "organization", "has-ai-task", "deprecated")
_BOOLEANS: Final[Mapping[str, bool]] = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


class TemplatesQuery(QueryModel):
    """Query parameters of a list of templates."""

    q: str = Field(
        "",
        description=(
            "Search terms, separated by spaces: `organization:<name, ID or default>`, `has-ai-task:<bool>`,"
            " `deprecated:<bool>`, `exact_name:<name>`, `name:<part of the name>`. A word without a colon is a part of"
            " the name. At most 4,096 characters."
        ),
    )


async def organization(request: RequestContext) -> BufferedResponse:
    """Return one organization, by name, by id or as the caller's default one."""
    row, default = await _organization(request)
    return json(users.organization_json(row, default=default))


async def list_of_organization(request: RequestContext) -> BufferedResponse:
    """Return the templates of an organization."""
    row, _ = await _organization(request)
    return await _list(request, row["id"])


async def list_templates(request: RequestContext) -> BufferedResponse:
    """Return the templates of all organizations of the caller."""
    return await _list(request, None)


async def get(request: RequestContext) -> BufferedResponse:
    """Return one template of an organization."""
    return json(_template_json(await _get_or_404(request)))


async def version_by_name(request: RequestContext) -> BufferedResponse:
    """Return a version of a template, by name."""
    template = await _get_or_404(request)
    name = request.params["version"]
    row = None
    if is_searchable(name):
        row = await directory_queries.version_of(request.reader, request.caller.user_id, template["id"], name)
    return json(_version_json(row))


async def version(request: RequestContext) -> BufferedResponse:
    """Return a version, by id."""
    version_id = parse_uuid(request.params["version"])
    row = None
    if version_id is not None:
        row = await directory_queries.version(request.reader, request.caller.user_id, version_id)
    return json(_version_json(row))


async def presets(request: RequestContext) -> BufferedResponse:
    """Return the presets of a version, the default first."""
    return json([_preset_json(row) for row in await _presets_or_404(request)])


async def _presets_or_404(request: RequestContext) -> Sequence[Row]:
    version_id = parse_uuid(request.params["version"])
    rows = None
    if version_id is not None:
        rows = await directory_queries.presets(request.reader, request.caller.user_id, version_id)
    if rows is None:
        raise not_found()
    return rows


async def by_id(request: RequestContext) -> BufferedResponse:
    """Return one template, by id."""
    template_id = parse_uuid(request.params["template"])
    row = None
    if template_id is not None:
        row = await directory_queries.template_by_id(request.reader, request.caller.user_id, template_id)
    if row is None:
        raise not_found()
    return json(_template_json(row))


async def rich_parameters(request: RequestContext) -> BufferedResponse:
    """Return the parameters of a version: the prompt, and those that its presets set, with the default preset's values.

    Templates declare no parameters of their own; a runner passes on those of the task's preset.
    """
    defaults: dict[str, str] = {}
    for row in await _presets_or_404(request):
        for name, value in preset_parameters(row["parameters"]).items():
            defaults.setdefault(name, value if row["is_default"] else "")
    defaults.pop(PROMPT_PARAMETER, None)
    parameters = [_parameter_json(name, value) for name, value in sorted(defaults.items())]
    return json([_parameter_json(PROMPT_PARAMETER, "", form="textarea"), *parameters])


def _parameter_json(name: str, default: str, *, form: str = "input") -> dict[str, Any]:
    text = "The prompt of the task." if name == PROMPT_PARAMETER else "Set by presets."
    return {
        "name": name,
        "display_name": "",
        "description": text,
        "description_plaintext": text,
        "type": "string",
        "form_type": form,
        "mutable": name == PROMPT_PARAMETER,
        "default_value": default,
        "icon": "",
        "options": [],
        "required": False,
        "ephemeral": False,
    }


async def organization_id(request: RequestContext) -> UUID:
    """Return the id of the organization that the path names. Raise a 404 if the caller is not a member."""
    row, _ = await _organization(request)
    found: UUID = row["id"]
    return found


async def _organization(request: RequestContext) -> tuple[Row, bool]:
    """Return the organization that the path names, and whether it is the caller's default one."""
    text = request.params["organization"]
    caller = request.caller.user_id
    default = await task_queries.default_organization_id(request.reader, caller)
    name_or_id = default if text.lower() == _DEFAULT else parse_uuid(text) or text
    row = None
    if isinstance(name_or_id, UUID) or (name_or_id and is_searchable(name_or_id)):
        row = await directory_queries.organization(request.reader, caller, name_or_id)
    if row is None:
        raise not_found()
    return row, row["id"] == default


async def _get_or_404(request: RequestContext) -> Row:
    organization_row, _ = await _organization(request)
    text = request.params["template"]
    name_or_id = parse_uuid(text) or text
    row = None
    if isinstance(name_or_id, UUID) or is_searchable(name_or_id):
        row = await directory_queries.template(
            request.reader, request.caller.user_id, organization_row["id"], name_or_id
        )
    if row is None:
        raise not_found()
    return row


async def _list(request: RequestContext, organization_id: UUID | None) -> BufferedResponse:
    terms = search_query.read(request.parameters(TemplatesQuery).q, bare="name", allowed=_TERMS, message=MESSAGE)
    for name in ("name", "exact_name"):
        if name in terms and not is_searchable(terms[name]):
            raise search_query.invalid_value(MESSAGE, name, "expected printable characters")
    other_organization = False
    if "organization" in terms:
        term_id = await search.organization(request, terms["organization"], MESSAGE)
        other_organization = organization_id not in {None, term_id}
        organization_id = term_id
    has_ai_task = _boolean(terms, "has-ai-task", default=True)
    deprecated = _boolean(terms, "deprecated", default=False)
    rows: Any = ()
    if not other_organization and has_ai_task and not deprecated:  # all templates run tasks, none is deprecated
        template_filter = directory_queries.TemplateFilter(
            request.api.settings.api_list_most, organization_id, terms.get("exact_name"), terms.get("name")
        )
        rows = await directory_queries.templates(request.reader, request.caller.user_id, template_filter)
    return json([_template_json(row) for row in rows])


def _boolean(terms: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a boolean term, in the forms that Go's ``strconv.ParseBool`` accepts."""
    if name not in terms:
        return default
    if terms[name] not in _BOOLEANS:
        raise search_query.invalid_value(MESSAGE, name, f'"{terms[name]}" is neither true nor false')
    return _BOOLEANS[terms[name]]


def _template_json(row: Row) -> dict[str, Any]:
    return {**dict(row), **_NOT_IN_THE_DIRECTORY}


def _version_json(row: Row | None) -> dict[str, Any]:
    if row is None:
        raise not_found()
    job = job_json(row, None, "template_version_import")
    return {
        "id": row["id"],
        "template_id": row["template_id"],
        "organization_id": row["organization_id"],
        "name": row["name"],
        "message": "",
        "readme": "",
        "archived": not row["active"],
        "has_external_agent": False,
        "job": {
            "id": row["id"],
            "status": "succeeded",
            **job,
            "input": {"template_version_id": row["id"]},
            "metadata": {**job["metadata"], "template_version_name": row["name"]},
        },
    }


def _preset_json(row: Row) -> dict[str, Any]:
    parameters = preset_parameters(row["parameters"])
    return {
        "ID": row["id"],
        "Name": row["name"],
        "Default": row["is_default"],
        "DesiredPrebuildInstances": None,
        "Description": "",
        "Icon": "",
        "Parameters": [{"Name": name, "Value": value} for name, value in sorted(parameters.items())],
    }


def preset_parameters(stored: str | None) -> dict[str, str]:
    """Return the parameters of a stored preset, each as text as in Coder; none without a preset."""
    parameters: dict[str, Any] = orjson.loads(stored) if stored else {}
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in parameters.items()
    }
