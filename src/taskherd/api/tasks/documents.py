"""The task document from a row of the database, as bytes, in the shape of ids that the installation serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from taskherd.domain.directory import DirectoryNames
from taskherd.messages import document

if TYPE_CHECKING:
    from taskherd.store.reader import Row


def names_of(row: Row) -> DirectoryNames:
    """What the directory says of a task, from the row that it was read with."""
    return DirectoryNames(
        row["username"],
        row["avatar_url"],
        row["organization_id"],
        row["template_id"],
        row["name"],
        row["display_name"],
        row["icon"],
    )


def render_row(row: Row, *, objects: bool) -> bytes:
    """The document as JSON; `objects`: ids that may be absent as the published page shows them."""
    whole = document.render_json(row["own"], row["prompt"], names_of(row), row["updated_at"])
    return orjson.dumps(document.with_nullable_ids(orjson.loads(whole))) if objects else whole


def render_reply(task: dict[str, Any], *, objects: bool) -> bytes:
    """The document that a reply of the worker carries, as JSON."""
    return orjson.dumps(document.with_nullable_ids(task) if objects else task)
