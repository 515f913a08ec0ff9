"""What lists select tasks by, derived from the document."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from taskherd.domain import view
from taskherd.messages.listing import HEALTH_BY_REASON, UNHEALTHY, ListedHealth, Listing, listing, terms

BARE: dict[str, Any] = {"status": "pending", "current_state": None, "workspace_agent_health": None}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Listing("pending", "none", "none", waiting=False, stalled=False)),
        (
            {
                "status": "active",
                "current_state": {"state": "working"},
                "workspace_agent_health": {"healthy": True},
                "stalled_since": "2026-03-01T12:00:00.000000Z",
            },
            Listing("active", "working", "healthy", waiting=False, stalled=True),
        ),
        ({"requests_open": 2, "stalled_since": None}, Listing("pending", "none", "none", waiting=True, stalled=False)),
        (
            {"workspace_agent_health": {"healthy": False, "reason": view.NOT_RUNNING}, "agent_exit": {"why": "lost"}},
            Listing("pending", "none", "lost", waiting=False, stalled=False),
        ),
        (
            {"workspace_agent_health": {"healthy": False, "reason": view.NOT_RUNNING}, "agent_exit": {"why": "exited"}},
            Listing("pending", "none", "not_running", waiting=False, stalled=False),
        ),
        ({"requests_open": 0}, Listing("pending", "none", "none", waiting=False, stalled=False)),
    ],
)
def test_a_listing_follows_the_document(fields: dict[str, Any], expected: Listing) -> None:
    """Fields that documents of earlier releases lack count as empty."""
    assert listing({**BARE, **fields}) == expected


def test_every_reason_of_an_unhealthy_agent_has_a_word() -> None:
    """The reasons are exactly those of the view, and each has another word."""
    source = inspect.getsource(view.health_of)
    reasons = set(re.findall(r'"(agent [a-z -]+)"', source)) | {view.LOST_CONNECTION, view.NOT_RUNNING}
    assert reasons == HEALTH_BY_REASON.keys()
    assert len(set(HEALTH_BY_REASON.values())) == len(HEALTH_BY_REASON) == len(ListedHealth) - 2


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("agent is not running", "not_running"),
        ("agent has not yet connected", "connecting"),
        ("agent is taking too long to connect", "late"),
        ("agent has lost connection", "lost"),
        ("agent startup script exited with an error", "start_error"),
        ("agent is shutting down", "shutting_down"),
    ],
)
def test_each_reason_has_its_word(reason: str, word: str) -> None:
    """Also in a document of an earlier release, which does not say how an agent ended; the word is one to list by."""
    fields = {**BARE, "workspace_agent_health": {"healthy": False, "reason": reason}}
    assert listing(fields).health == listing({**fields, "agent_exit": None}).health == word
    assert word in UNHEALTHY


def test_what_is_listed_as_unhealthy() -> None:
    """Neither an agent that is healthy nor a task without one."""
    assert {*ListedHealth} - {*UNHEALTHY} == {"healthy", "none"}


@pytest.mark.parametrize(
    ("status", "state", "failed"),
    [
        ("error", "working", True),
        ("active", "failed", True),
        ("error", "failed", True),
        ("active", "complete", False),
        ("paused", "none", False),
    ],
)
def test_a_task_has_failed_if_its_build_or_its_agent_has(status: str, state: str, *, failed: bool) -> None:
    """Either is enough."""
    assert Listing(status, state, "healthy", waiting=False, stalled=False).failed is failed


def test_terms_do_not_distinguish_case() -> None:
    """A query is in lower case, so are terms; labels whose keys differ only in case may share one."""
    assert terms("rack-1", {"Team": "Blue", "team": "blue"}) == ["label:team=blue", "runner:rack-1"]
    assert terms(None, {}) == []
