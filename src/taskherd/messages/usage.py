"""Usage in JSON: the fields with which agents and runners report it, and those of the task document and of sums.

Money is a decimal text in JSON, never a number, which parsers read as binary floating point.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from taskherd.domain import reports as domain
from taskherd.domain.usage import COUNTERS
from taskherd.messages import texts
from taskherd.messages.currencies import CURRENCIES
from taskherd.messages.fields import IncomingModel
from taskherd.messages.limits import MAX_MODEL_CHARACTERS, MAX_TOKENS
from taskherd.messages.texts import SanitizeCounts

if TYPE_CHECKING:
    from taskherd.domain.usage import TaskUsage, UsageAmounts


def _check_currency(code: str) -> str:
    if code not in CURRENCIES:
        raise ValueError("a currency's code of ISO 4217 was expected, such as USD")
    return code


Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKENS)]
Model = Annotated[str, StringConstraints(strict=True, max_length=MAX_MODEL_CHARACTERS)]
Amount = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?$")]
Currency = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z]{3}$"), AfterValidator(_check_currency)]


class CostIn(IncomingModel):
    """An amount of money."""

    amount: Amount = Field(description="Decimal text, such as 0.0123.")
    currency: Currency = Field(description="ISO 4217.")


class UsageFields(IncomingModel):
    """What a model was used for: each counter and the cost are the totals since the build began."""

    model: Model | None = Field(None, description="The name of the model; absent: it is not known.")
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    cost: CostIn | None = None
    context_used: Tokens | None = Field(None, description="Tokens in the model's context now.")
    context_size: Tokens | None = Field(None, description="Tokens that the model's context can hold.")

    def to_fields(self, counts: SanitizeCounts) -> dict[str, Any]:
        """Return the fields of ``domain.AgentUsage``; a name without characters is none."""
        fields = {name: getattr(self, name) for name in _NUMBERS}
        cost = self.cost
        fields["cost"] = None if cost is None else domain.Cost(Decimal(cost.amount), cost.currency)
        fields["model"] = texts.sanitize_name(self.model or "", counts).strip() or None
        return fields


_NUMBERS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "context_used",
    "context_size",
)


class CostOut(BaseModel):
    """An amount of money; ``amount`` is decimal text, ``currency`` a code of ISO 4217."""

    amount: str
    currency: str


class AmountsOut(BaseModel):
    """Numbers of tokens, and the cost in each currency, in the order of their codes."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost: list[CostOut]


class UsageOut(AmountsOut):
    """What the agents of a task used: the sum over its builds and models; null for a context that is not known."""

    context_used: int | None
    context_size: int | None


def render_usage(usage: TaskUsage) -> dict[str, Any]:
    """Return a task's usage as in its document, as JSON types."""
    used, size = usage.context_used, usage.context_size
    return {
        **render_amounts(usage.total),
        "context_used": None if used is None else used.tokens,
        "context_size": None if size is None else size.tokens,
    }


def render_amounts(amounts: UsageAmounts) -> dict[str, Any]:
    """Return amounts as JSON types."""
    cost = [
        {"amount": domain.format_amount(amount), "currency": currency}
        for currency, amount in sorted(amounts.cost.items())
    ]
    return {**dict(zip(COUNTERS, amounts.tokens, strict=True)), "cost": cost}
