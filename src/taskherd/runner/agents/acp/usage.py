"""What an agent says it used becomes reports of usage: totals since the build began, by model.

ACP tells the cost of the session so far and the tokens in the context (the session update ``usage_update``), and the
tokens of a turn (``usage`` in the response to a prompt, not yet stable). Many agents tell those by model, in ``_meta``.
https://agentclientprotocol.com/rfds/session-usage

A session outlives builds, and some agents go on with its cost when they continue it, while others begin again. So a
cost counts as the increase over the one that was told before, like that of a Prometheus counter: one that is lower has
begun again. What is told while a session is opened is a replay, and the cost in it was told before. All this is part of
the checkpoint, which is saved with the reports, so that nothing is told twice or lost with a runner.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from taskherd.domain.reports import Cost, format_amount
from taskherd.domain.usage import MAX_MODELS, NO_MODEL
from taskherd.messages.limits import MAX_MODEL_CHARACTERS, MAX_TOKENS
from taskherd.messages.texts import sanitize_name
from taskherd.runner.agents.usage_numbers import MAX_AMOUNT, as_cost, is_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from taskherd.domain.reports import Report
    from taskherd.runner.reporter import Reporter

_COUNTERS: Final = {
    "input_tokens": ("inputTokens", "input_tokens"),
    "output_tokens": ("outputTokens", "output_tokens"),
    "cache_read_tokens": ("cachedReadTokens", "cachedInputTokens"),
    "cache_write_tokens": ("cachedWriteTokens", "cacheWriteInputTokens"),
}
"""The counters of a report, and their names in ACP, where it has any, and as agents write them in ``_meta``."""
_CONTEXT: Final = {"used": "context_used", "size": "context_size"}


class UsageMeter:
    """The usage of one build's agent."""

    def __init__(self, checkpoint: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
        """Go on from this build's checkpoint; without one, from that of the ``earlier`` build, which may be empty."""
        self._tokens: dict[str, dict[str, int]] = {**checkpoint.get("tokens", {})}
        """By model, the tokens since the build began."""
        self._cost = _amounts(checkpoint.get("cost", {}))
        """By currency, the cost since the build began."""
        self._context: dict[str, int] = {**checkpoint.get("context", {})}
        session = checkpoint or earlier
        self._session: str | None = session.get("session")
        self._session_cost = _amounts(session.get("session_cost", {}))
        """By currency, the cost of that session as it was told last."""
        self._told: set[str] = {*checkpoint.get("told", ())}
        """The currencies of the costs that this build's agent has told since its session is open."""
        self._has_begun: bool = checkpoint.get("has_begun", False)
        """True once this build's agent has begun a turn."""
        self._replayed = _amounts(checkpoint.get("replayed", {}))
        self._changed: set[str] = set()

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner, and the next build, need."""
        return {
            "tokens": self._tokens,
            "cost": _texts(self._cost),
            "context": self._context,
            "session": self._session,
            "session_cost": _texts(self._session_cost),
            "told": sorted(self._told),
            "has_begun": self._has_begun,
            "replayed": _texts(self._replayed),
        }

    def handle(self, params: Mapping[str, Any], session: str | None, *, in_turn: bool) -> bool:
        """Take a session update, and return whether it is one of usage; ``session`` is the open one, if one is."""
        update = params.get("update")
        if not isinstance(update, dict) or update.get("sessionUpdate") != "usage_update":
            return False
        if params.get("sessionId") == (session or self._session):
            self._has_begun |= in_turn
            self._handle_update(update, is_replay=session is None)
        return True

    def open(self, session: str) -> None:
        """Note that a session is open: the earlier one is continued, or the costs of a new one begin at zero."""
        if session != self._session:
            self._session, self._session_cost = session, {}
        elif self._session_cost:
            for currency, amount in self._replayed.items():  # what an earlier runner has not seen any more
                self._spend(currency, max(amount - self._session_cost.get(currency, Decimal()), Decimal()))
        if self._replayed:
            self._session_cost = {**self._session_cost, **self._replayed}
            self._replayed = {}

    def end_turn(self, result: Mapping[str, Any] | None) -> None:
        """Add the tokens of a turn, from its response."""
        self._has_begun = True
        for model, counters in _turn(result or {}):
            known = model in self._tokens or len(self._tokens) < MAX_MODELS - 1
            tokens = self._tokens.setdefault(model if known else NO_MODEL, {})
            for name, number in counters.items():
                tokens[name] = min(tokens.get(name, 0) + number, MAX_TOKENS)
            self._changed.add(model if known else NO_MODEL)

    def take_reports(self, reporter: Reporter) -> list[Report]:
        """Return reports of what has changed since the last call."""
        reports: list[Report] = []
        for model in sorted(self._changed):
            fields: dict[str, Any] = {**self._tokens.get(model, {})}
            costs: list[Cost | None] = [None]
            if model == NO_MODEL:
                fields |= self._context
                costs = [Cost(amount, currency) for currency, amount in sorted(self._cost.items())] or [None]
            reports += [reporter.usage_report(model=model or None, cost=cost, **fields) for cost in costs]
        self._changed.clear()
        return reports

    def _handle_update(self, update: Mapping[str, Any], *, is_replay: bool) -> None:
        for name, field in _CONTEXT.items():
            if is_count(update.get(name)):
                self._context[field] = update[name]
                self._changed.add(NO_MODEL)
        told = _cost_of(update)
        if told is None:
            return
        if is_replay:
            self._replayed[told.currency] = told.amount
            return
        before = self._session_cost.get(told.currency, Decimal())
        goes_on = told.amount >= before
        if told.currency not in self._told and self._has_begun:
            goes_on = told.amount > before  # a turn has cost something, so what is the same has begun again
        self._told.add(told.currency)
        self._session_cost[told.currency] = told.amount
        self._spend(told.currency, told.amount - before if goes_on else told.amount)

    def _spend(self, currency: str, amount: Decimal) -> None:
        self._cost[currency] = min(self._cost.get(currency, Decimal()) + amount, MAX_AMOUNT)
        self._changed.add(NO_MODEL)


def _turn(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the tokens of a turn: by model if the agent tells that, else without one."""
    by_model = list(_turn_by_model(result.get("_meta")))
    yield from by_model or [(NO_MODEL, counters) for counters in [_counters(result.get("usage"))] if counters]


def _turn_by_model(meta: object) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the tokens in ``_meta``: ``quota.model_usage``, a list of ``model`` and ``token_count``."""
    quota = meta.get("quota") if isinstance(meta, dict) else None
    usage = quota.get("model_usage") if isinstance(quota, dict) else None
    for each in usage if isinstance(usage, list) else ():
        if isinstance(each, dict) and (counters := _counters(each.get("token_count"))):
            model = each.get("model")
            name = sanitize_name(model, {}).strip()[:MAX_MODEL_CHARACTERS] if isinstance(model, str) else NO_MODEL
            yield name, counters


def _counters(usage: object) -> dict[str, int]:
    """Return the counters in what an agent tells about tokens, each token in one of them.

    The total says whether tokens of a cache are part of the input, and tokens of thoughts part of the output.
    """
    if not isinstance(usage, dict):
        return {}
    counters = {field: usage[name] for field, names in _COUNTERS.items() for name in names if is_count(usage.get(name))}
    thoughts, total = usage.get("thoughtTokens"), usage.get("totalTokens")
    if is_count(thoughts) and total == sum(counters.values()) + thoughts:
        counters["output_tokens"] = counters.get("output_tokens", 0) + thoughts
    cached = counters.get("cache_read_tokens", 0) + counters.get("cache_write_tokens", 0)
    if "input_tokens" in counters and total == sum(counters.values()) - cached:
        counters["input_tokens"] = max(counters["input_tokens"] - cached, 0)
    return counters


def _cost_of(update: Mapping[str, Any]) -> Cost | None:
    """Return the cost in an update, None if it has none of which a report can be made."""
    cost = update.get("cost")
    return as_cost(cost.get("amount"), cost.get("currency")) if isinstance(cost, dict) else None


def _amounts(texts: Mapping[str, str]) -> dict[str, Decimal]:
    return {currency: Decimal(text) for currency, text in texts.items()}


def _texts(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    return {currency: format_amount(amount) for currency, amount in amounts.items()}
