"""Decide what an agent may do, by the policy of its template; pure.

The kind of a tool is the agent's own word, so a policy is a convenience and no boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from acp.schema import PermissionOption

from taskherd.directory_file.run import ToolKind
from taskherd.runner.agents.acp.people import MAX_LABEL, MAX_OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.directory_file.run import Approvals

CANCELLED: Final = {"outcome": {"outcome": "cancelled"}}
"""The answer that decides nothing: the turn was cancelled, or there is no option that fits."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says: ask a person, or the option to choose, None if there is none that fits."""

    asks: bool
    option_id: str | None = None
    allows: bool = False


def decide(approvals: Approvals, kind: str, options: Sequence[PermissionOption]) -> Decision:
    """Return what the policy says about a tool of this kind. It never allows for more than once."""
    match approvals.of(kind):
        case "allow":
            once = find_option(options, "allow_once")
            return Decision(asks=once is None, option_id=once, allows=True)
        case "deny":
            return Decision(asks=False, option_id=find_option(options, "reject_once"))
        case _:
            return Decision(asks=True)


def find_option(options: Sequence[PermissionOption], kind: str) -> str | None:
    """Return the id of the first option of a kind."""
    return next((option.option_id for option in options if option.kind == kind), None)


def outcome(option_id: str | None) -> dict[str, Any]:
    """Return the result of ``session/request_permission`` that chooses an option."""
    return CANCELLED if option_id is None else {"outcome": {"outcome": "selected", "optionId": option_id}}


def options_for_people(options: Sequence[PermissionOption]) -> tuple[Option, ...]:
    """Return the options as people are shown them; those with an id that is too long cannot be offered."""
    usable = [option for option in options if 0 < len(option.option_id) <= MAX_LABEL][:MAX_OPTIONS]
    return tuple(
        Option(option.option_id, option.name[:MAX_LABEL] or option.option_id, option.kind) for option in usable
    )


def tool_kind(kind: str | None) -> str:
    """Return the kind of a tool as policies know it."""
    return kind if kind is not None and kind in get_args(ToolKind) else "other"
