"""Encode and decode parts of the task state that are not facets: usage, interrupts and open requests of agents."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from asyncpg.pgproto.pgproto import UUID  # a subclass of uuid.UUID that is created eight times as fast

from taskherd.domain.reports import InterruptOutcome, format_amount
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import EndedInterrupt, OpenAgentRequest
from taskherd.domain.usage import ContextTokens, TaskUsage, UsageAmounts

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    from taskherd.domain.task import TaskState

_instant = datetime.fromisoformat


def plain_uuid(identifier: uuid.UUID | None) -> object:
    """Return an id that orjson can encode: asyncpg's UUID as text, which is cheap, Python's own unchanged."""
    return str(identifier) if isinstance(identifier, UUID) else identifier


def dump_requests(requests: Mapping[uuid.UUID, OpenAgentRequest]) -> list[tuple[object, ...]]:
    """Encode the open requests of agents."""
    return [
        (
            plain_uuid(each.id),
            each.build_number,
            each.seq,
            each.kind,
            each.title,
            each.since,
            each.wants_text,
            each.answered,
        )
        for each in requests.values()
    ]


def load_requests(rows: list[list[Any]]) -> dict[uuid.UUID, OpenAgentRequest]:
    """Decode the open requests of agents."""
    requests = (
        OpenAgentRequest(UUID(id_), number, seq, RequestKind(kind), title, _instant(since), wants_text, answered)
        for id_, number, seq, kind, title, since, wants_text, answered in rows
    )
    return {each.id: each for each in requests}


def dump_usage(usage: TaskUsage) -> tuple[object, ...]:
    """Encode what the agents of a task used."""
    contexts = [
        None if each is None else (each.build_number, each.seq, each.tokens)
        for each in (usage.context_used, usage.context_size)
    ]
    cost = {currency: format_amount(amount) for currency, amount in usage.total.cost.items()}
    return (usage.total.tokens, cost, *contexts)


def load_usage(row: list[Any]) -> TaskUsage:
    """Decode what the agents of a task used."""
    tokens, cost, used, size = row
    total = UsageAmounts(tuple(tokens), {currency: Decimal(amount) for currency, amount in cost.items()})
    return TaskUsage(total, ContextTokens(*used) if used else None, ContextTokens(*size) if size else None)


def dump_interrupts(state: TaskState, out: dict[str, object]) -> None:
    """Add the open interrupt and the last one that ended."""
    interrupt, last = state.interrupt, state.last_interrupt
    if interrupt:
        out["interrupt"] = (plain_uuid(interrupt.id), interrupt.build_number, interrupt.since)
    if last:
        out["last_interrupt"] = (
            plain_uuid(last.id),
            last.outcome,
            last.at,
            last.detail,
            last.unreported,
            last.overruled,
        )


def load_last_interrupt(row: list[Any]) -> EndedInterrupt:
    """Decode the last interrupt that ended."""
    interrupt_id, outcome, at, detail, unreported, overruled = row
    key = (overruled[0], overruled[1]) if overruled else None
    return EndedInterrupt(UUID(interrupt_id), InterruptOutcome(outcome), _instant(at), detail, unreported, key)
