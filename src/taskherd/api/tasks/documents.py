"""The task document from a row of the database, as bytes, in the shape of ids that the installation serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from taskherd.domain.directory import Names
from taskherd.messages import document

if TYPE_CHECKING:
    from taskherd.store.reader import Row


def names_of(row: Row) -> Names:
    """What the directory says of a task, from the row that it was read with."""
    return Names(
        row["username"],
        row["avatar_url"],
        row["organization_id"],
        row["template_id"],
        row["name"],
        row["display_name"],
        row["icon"],
    )


def rendered(row: Row, *, objects: bool) -> bytes:
    """The document as JSON; `objects`: ids that may be absent as the published page shows them."""
    whole = document.spliced(row["own"], row["prompt"], names_of(row), row["updated_at"])
    return orjson.dumps(document.with_objects(orjson.loads(whole))) if objects else whole


def replied(task: dict[str, Any], *, objects: bool) -> bytes:
    """The document that a reply of the worker carries, as JSON."""
    return orjson.dumps(document.with_objects(task) if objects else task)
