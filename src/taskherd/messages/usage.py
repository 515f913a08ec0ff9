"""The fields with which agents and runners report the use of models: of the report and of the HTTP request.

Money is a decimal text in JSON, never a number, which parsers read as binary floating point.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, StringConstraints

from taskherd.domain import reports as domain
from taskherd.messages import texts
from taskherd.messages.currencies import CURRENCIES
from taskherd.messages.fields import IncomingModel
from taskherd.messages.limits import MAX_MODEL_CHARACTERS, MAX_TOKENS
from taskherd.messages.texts import SanitizeCounts


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
