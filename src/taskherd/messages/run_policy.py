"""The parts of a template's ``run`` that the worker follows: when an agent counts as stalled, and what a loss causes.

The runner validates the whole ``run`` (``runner/template.py``) and fails a build whose ``run`` is invalid; the worker
takes an invalid part as absent.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from taskherd.backoff import Backoff
from taskherd.domain.recovery import RecoveryPolicy
from taskherd.settings.durations import Seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

MAX_BACKOFF = 3600.0
"""Maximum wait before a restart, in seconds."""
_DAY = 86_400.0


class OnLoss(BaseModel):
    """What to do when an agent is lost: leave the task to people, or start it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["nothing", "restart"] = "nothing"
    most: int = Field(3, ge=1, le=100, description="Restarts until somebody pauses or resumes the task.")
    backoff: Seconds = Field(
        10.0, gt=0, le=MAX_BACKOFF, description="Seconds before the first restart; doubled for each further one."
    )


def _from_short_form(value: object) -> object:
    return {"action": value} if isinstance(value, str) else value


OnLossField = Annotated[OnLoss, BeforeValidator(_from_short_form)]
"""``on_loss: restart``, or a mapping with ``action``, ``most`` and ``backoff``."""
StalledAfter = Annotated[Seconds, Field(ge=0, le=30 * _DAY)]

_ON_LOSS: TypeAdapter[OnLoss] = TypeAdapter(OnLossField)
_STALLED_AFTER: TypeAdapter[float | None] = TypeAdapter(StalledAfter | None)


def default_policy(stalled_after: float) -> RecoveryPolicy:
    """Return the policy of a template version whose ``run`` says nothing; ``stalled_after`` is in seconds."""
    return RecoveryPolicy(timedelta(seconds=stalled_after), 0, Backoff(10.0, MAX_BACKOFF))


def recovery_policy(run: Mapping[str, Any], default: RecoveryPolicy) -> RecoveryPolicy:
    """Return the recovery policy that the ``run`` of a template version asks for."""
    on_loss = _parse(_ON_LOSS, run.get("on_loss", "nothing"), OnLoss())
    stalled_after = _parse(_STALLED_AFTER, run.get("stalled_after"), None)
    return RecoveryPolicy(
        stalled_after=default.stalled_after if stalled_after is None else timedelta(seconds=stalled_after),
        max_loss_restarts=on_loss.most if on_loss.action == "restart" else 0,
        loss_backoff=Backoff(on_loss.backoff, MAX_BACKOFF),
    )


def _parse(adapter: TypeAdapter[T], value: object, default: T) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return default
