"""The parts of a template's ``run`` that the worker follows: when an agent counts as stalled, and what a loss causes.

The runner validates the whole ``run`` (``directory_file/run.py``) and fails a build whose ``run`` is invalid; the
worker takes an invalid part as absent.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from taskherd.backoff import Backoff
from taskherd.directory_file.run import MAX_BACKOFF, OnLoss, OnLossField, StalledAfter
from taskherd.domain.recovery import RecoveryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

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
