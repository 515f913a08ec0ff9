"""Hooks that put existing users, template versions and tasks into the requests that schemathesis generates.

Its command line loads the module named in SCHEMATHESIS_HOOKS. A replacement depends only on the generated value, so
runs with the same seed are the same.
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
ACTION = os.environ["FUZZ_ACTION"]
REQUEST = os.environ["FUZZ_REQUEST"]


@schemathesis.hook
def map_path_parameters(_context: schemathesis.HookContext, path_parameters: dict[str, Any] | None) -> Any:
    """Use an existing user in most requests, and an existing task in many."""
    parameters = dict(path_parameters or {})
    if "user" in parameters and _bucket(parameters["user"], 4) != 0:
        parameters["user"] = "me"
    if "task" in parameters and _bucket(parameters["task"], 3) != 0:
        parameters["task"] = TASKS[_bucket(parameters["task"], len(TASKS))]
    if "action" in parameters and _bucket(parameters["action"], 3) != 0:
        parameters["action"] = ACTION
    if "request" in parameters and _bucket(parameters["request"], 3) != 0:
        parameters["request"] = REQUEST
    return parameters


@schemathesis.hook
def map_query(_context: schemathesis.HookContext, query: dict[str, Any] | None) -> Any:
    """Shorten every valid wait."""
    if query and isinstance(query.get("wait"), str) and re.fullmatch(r"[0-9.]+(ms|s)?", query["wait"]):
        return {**query, "wait": "5ms"}
    return query


@schemathesis.hook
def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
    """Replace every UUID of a template version by that of an existing one; keep existing tasks out of actions."""
    if isinstance(body, dict) and isinstance(body.get("tasks"), list):
        return {**body, "tasks": [map_body(_context, each) for each in body["tasks"]]}
    if isinstance(body, dict) and "action" in body and isinstance(body.get("q"), str) and _bucket(body["q"], 2):
        return {**body, "q": "owner:me status:unknown"}
    if isinstance(body, dict) and _is_uuid(body.get("template_version_id")):
        return {**body, "template_version_id": VERSION}
    return body


def _bucket(value: Any, count: int) -> int:
    return crc32(str(value).encode("utf-8", "surrogatepass")) % count


def _is_uuid(value: Any) -> bool:
    try:
        UUID(value)
    except (TypeError, ValueError, AttributeError):
        return False
    return True
