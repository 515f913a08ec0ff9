"""Render task documents as JSON, with nullable ids in the configured form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
from pydantic import Field

from taskherd.api.http.query_parameters import QueryModel, TextParameter
from taskherd.domain.directory import DirectoryNames
from taskherd.messages import document

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row


_INCLUDABLE: Final = "state_since"


def _include(text: str) -> str:
    if text not in {"", _INCLUDABLE}:
        message = f"Expected {_INCLUDABLE}."
        raise ValueError(message)
    return text


class IncludeQuery(QueryModel):
    """The query parameter that asks for more than the document of a task."""

    include: Annotated[str, TextParameter(_include, {"type": "string", "enum": ["", _INCLUDABLE]})] = Field(
        "",
        description="`state_since`: tasks also have this field: since when they are in the state in which they show."
        " Messages of their agents, labels and the like leave it as it is.",
    )

    @property
    def has_state_since(self) -> bool:
        """Whether since when a task is in its state is asked for."""
        return self.include == _INCLUDABLE


def names_of(row: Row) -> DirectoryNames:
    """Return the names of a task's owner and template, from the row of the task."""
    return DirectoryNames(
        row["username"],
        row["avatar_url"],
        row["organization_id"],
        row["template_id"],
        row["name"],
        row["display_name"],
        row["icon"],
    )


def render_row(row: Row, *, nullable_ids_as_objects: bool) -> bytes:
    """Render the document of a row, with ``state_since`` if it has that column.

    Coder's documentation shows nullable ids as objects.
    """
    rendered = document.render_json(row["core_document"], row["prompt"], names_of(row), row["updated_at"])
    if "state_since" in row:
        rendered = rendered[:-1] + b"," + orjson.dumps({"state_since": row["state_since"]})[1:]
    return orjson.dumps(document.with_nullable_ids(orjson.loads(rendered))) if nullable_ids_as_objects else rendered


def render_reply(task: dict[str, Any], *, nullable_ids_as_objects: bool) -> bytes:
    """Render the document in a reply of the worker."""
    return orjson.dumps(document.with_nullable_ids(task) if nullable_ids_as_objects else task)
