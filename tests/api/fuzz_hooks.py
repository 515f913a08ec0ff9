"""What schemathesis can't know by itself: a user, a template version and tasks that exist, mixed into what it makes up.

Loaded by its command line, named in SCHEMATHESIS_HOOKS. What is put in depends only on what was there, so that a run
with the same seed is the same run.
"""

from __future__ import annotations

import os
import re
from typing import Any
from uuid import UUID
from zlib import crc32

import schemathesis

TASKS = os.environ["FUZZ_TASKS"].split(",")
VERSION = os.environ["FUZZ_VERSION"]


@schemathesis.hook
def map_path_parameters(_context: schemathesis.HookContext, path_parameters: dict[str, Any] | None) -> Any:
    """Mostly a user that exists, and often a task that does."""
    given = dict(path_parameters or {})
    if "user" in given and _chance(given["user"], 4) != 0:
        given["user"] = "me"
    if "task" in given and _chance(given["task"], 3) != 0:
        given["task"] = TASKS[_chance(given["task"], len(TASKS))]
    return given


@schemathesis.hook
def map_query(_context: schemathesis.HookContext, query: dict[str, Any] | None) -> Any:
    """A wait that ends soon, wherever the shape of one was made up."""
    if query and isinstance(query.get("wait"), str) and re.fullmatch(r"[0-9.]+(ms|s)?", query["wait"]):
        return {**query, "wait": "5ms"}
    return query


@schemathesis.hook
def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
    """A template version that exists, wherever the shape of one was made up."""
    if isinstance(body, dict) and _is_uuid(body.get("template_version_id")):
        return {**body, "template_version_id": VERSION}
    return body


def _chance(said: Any, of: int) -> int:
    return crc32(str(said).encode("utf-8", "surrogatepass")) % of


def _is_uuid(said: Any) -> bool:
    try:
        UUID(said)
    except (TypeError, ValueError, AttributeError):
        return False
    return True
