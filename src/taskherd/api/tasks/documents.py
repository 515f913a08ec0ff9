"""Render task documents as JSON, with nullable ids in the configured form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from taskherd.domain.directory import DirectoryNames
from taskherd.messages import document

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row


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
    """Render the document of a row; Coder's documentation shows nullable ids as objects."""
    rendered = document.render_json(row["core_document"], row["prompt"], names_of(row), row["updated_at"])
    return orjson.dumps(document.with_nullable_ids(orjson.loads(rendered))) if nullable_ids_as_objects else rendered


def render_reply(task: dict[str, Any], *, nullable_ids_as_objects: bool) -> bytes:
    """Render the document in a reply of the worker."""
    return orjson.dumps(document.with_nullable_ids(task) if nullable_ids_as_objects else task)
