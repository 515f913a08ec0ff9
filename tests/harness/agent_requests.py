"""Random requests of agents, and how they must show, from the contract alone: for laws 1 and 8."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import AgentRequest
from taskherd.domain.request_values import DEFAULT_OPTIONS, RequestKind, RequestState
from tests.harness.histories import TASK

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from taskherd.domain.reports import Report

IDS = tuple(UUID(int=0xE0 + number) for number in range(4))


def agent_request(request_id: UUID = IDS[0], build_number: int = 1, seq: int = 1, **fields: Any) -> AgentRequest:
    """Return a report of a request: by default of an open question for a text."""
    given: dict[str, Any] = {"kind": RequestKind.QUESTION, "title": "Which package?", "task_id": TASK, **fields}
    return AgentRequest(request_id=request_id, build_number=build_number, seq=seq, **given)


def approval(request_id: UUID = IDS[1], build_number: int = 1, seq: int = 1, **fields: Any) -> AgentRequest:
    """Return a report of a request: by default of an open approval."""
    given: dict[str, Any] = {"kind": RequestKind.APPROVAL, "title": "Run make", "options": DEFAULT_OPTIONS, **fields}
    return agent_request(request_id, build_number, seq, **given)


def random_request(rng: Random, task_id: UUID = TASK) -> AgentRequest:
    """Return a random report, which often conflicts with others: of few ids, builds and seqs."""
    make = rng.choice((agent_request, approval))
    state = rng.choice((RequestState.OPEN, RequestState.OPEN, *RequestState))
    answer: dict[str, Any] = {}
    if state is RequestState.ANSWERED:
        answer = {"option_id": "allow"} if make is approval else {"text": rng.choice(("core", "api"))}
    return make(
        rng.choice(IDS),
        rng.choice((1, 1, 1, 2, 2, 3)),
        rng.randrange(4),
        task_id=task_id,
        title=rng.choice(("One?", "Two?")),
        state=state,
        **answer,
    )


def greatest_requests(reports: Iterable[Report]) -> dict[UUID, dict[str, Any]]:
    """Return, by id, the report of each request that counts, as JSON: a closed one beats any open one."""
    by_id: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
    for report in reports:
        if isinstance(report, AgentRequest):
            by_id[report.request_id].append(json.loads(canonical_json(report)))

    def rank(report: dict[str, Any]) -> tuple[bool, int, int, str]:
        text = json.dumps(report, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return report["state"] != "open", report["build_number"], report["seq"], text

    return {request_id: max(of_request, key=rank) for request_id, of_request in by_id.items()}


def expected_requests(reports: Iterable[Report], build: dict[str, Any], *, agent_ended: bool) -> dict[UUID, str]:
    """Return how each request shows, if nobody answers: ``build`` is the latest build report as JSON."""
    may_ask = build["transition"] == "start" and build["job_status"] not in {"failed", "canceled"} and not agent_ended
    shown = {}
    for request_id, report in greatest_requests(reports).items():
        counts = may_ask and report["build_number"] == build["build_number"]
        shown[request_id] = "withdrawn" if report["state"] == "open" and not counts else report["state"]
    return shown
