"""Numbers in what agents say that they used: only those that a report can hold count."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final, TypeGuard

from taskherd.domain.reports import Cost
from taskherd.messages.currencies import CURRENCIES
from taskherd.messages.limits import MAX_TOKENS

MAX_AMOUNT: Final = Decimal("999999999999.999999999")
_DIGIT: Final = Decimal("0.000000001")


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS


def as_cost(amount: object, currency: object) -> Cost | None:
    """Return a cost from a number in JSON, rounded to nine digits, None if no report can hold it."""
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not 0 <= amount <= MAX_AMOUNT:
        return None
    if not isinstance(currency, str) or currency not in CURRENCIES:
        return None
    return Cost(Decimal(repr(amount)).quantize(_DIGIT, ROUND_HALF_EVEN), currency)
