"""Requests of agents as the API shows them, from rows of ``store.agent_request_queries``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from taskherd.domain.reports import format_rfc3339
from taskherd.domain.request_values import RequestState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.store.read_pool import Row


def request_json(row: Row) -> dict[str, Any]:
    """Return a request with what became of it."""
    report: dict[str, Any] = orjson.loads(row["report"])
    return {
        "id": row["request_id"],
        "kind": report["kind"],
        "title": report["title"],
        "detail": report.get("detail", ""),
        "tool": report.get("tool"),
        "options": report.get("options", []),
        "state": row["shown"],
        "since": format_rfc3339(row["since"]),
        "expires_at": report.get("expires_at"),
        "build_number": row["build_number"],
        "pull": report.get("pull", False),
        "closed_at": None if report["state"] == RequestState.OPEN else format_rfc3339(row["received_at"]),
        "answer": _answer(row, report),
    }


def _answer(row: Row, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the answer of a person, or else the one that was reported without a person."""
    if row["answered_at"] is not None:
        return {
            "option_id": row["answer_option_id"],
            "text": row["answer_text"],
            "by": row["answered_by_name"] or str(row["answered_by"]),
            "by_id": row["answered_by"],
            "at": format_rfc3339(row["answered_at"]),
            "delivered_at": row["delivered_at"] and format_rfc3339(row["delivered_at"]),
        }
    if report["state"] != RequestState.ANSWERED:
        return None
    at = format_rfc3339(row["received_at"])
    reported = {"option_id": report.get("option_id"), "text": report.get("text")}
    return {**reported, "by": None, "by_id": None, "at": at, "delivered_at": at}


def own_request(row: Row) -> dict[str, Any]:
    """Return a request as its agent sees it: with the answer that it was given."""
    report: dict[str, Any] = orjson.loads(row["report"])
    answered, given = row["shown"] == RequestState.ANSWERED, row["answered_at"] is not None
    return {
        "request_id": row["request_id"],
        "kind": report["kind"],
        "title": report["title"],
        "state": row["shown"],
        "option_id": (row["answer_option_id"] if given else report.get("option_id")) if answered else None,
        "text": (row["answer_text"] if given else report.get("text")) if answered else None,
    }


def with_task(row: Row) -> dict[str, Any]:
    """Return a request with its task, as the queue shows it."""
    return {
        **request_json(row),
        "task_id": row["task_id"],
        "task_name": row["task_name"],
        "task_display_name": row["task_display_name"],
        "owner_id": row["owner_id"],
        "owner_name": row["username"],
        "organization_id": row["organization_id"],
        "template_name": row["template_name"],
        "template_display_name": row["template_display_name"],
    }
