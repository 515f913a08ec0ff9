"""Decide what an agent may do, by the policy of its template, and offer the rest to people; pure.

The kind of a tool is the agent's own word, so a policy is a convenience and no boundary.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

import orjson
from acp.schema import PermissionOption

from taskherd.directory_file.run import ToolKind
from taskherd.domain.request_values import OptionKind, RequestOption, RequestTool
from taskherd.messages import texts
from taskherd.messages.limits import MAX_DATA_BYTES, MAX_NAME_CHARACTERS, MAX_OPTION_CHARACTERS, MAX_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.directory_file.run import Approvals

MAX_INPUT_BYTES: Final = 4 * MAX_DATA_BYTES
"""Size of a tool's input above which it is not shown, however much of it would have to be removed."""
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
            once = find_option(options, OptionKind.ALLOW_ONCE)
            return Decision(asks=once is None, option_id=once, allows=True)
        case "deny":
            return Decision(asks=False, option_id=find_option(options, OptionKind.REJECT_ONCE))
        case _:
            return Decision(asks=True)


def find_option(options: Sequence[PermissionOption], kind: OptionKind) -> str | None:
    """Return the id of the first option of a kind."""
    return next((option.option_id for option in options if option.kind == kind), None)


def outcome(option_id: str | None) -> dict[str, Any]:
    """Return the result of ``session/request_permission`` that chooses an option."""
    return CANCELLED if option_id is None else {"outcome": {"outcome": "selected", "optionId": option_id}}


def options_for_people(options: Sequence[PermissionOption]) -> tuple[RequestOption, ...]:
    """Return the first options as people are shown them, without those that cannot be offered."""
    offered: dict[str, RequestOption] = {}
    for each in options:
        option = make_option(each.option_id, each.name, OptionKind(each.kind))
        if option is not None:
            offered.setdefault(option.id, option)
    return tuple(offered.values())[:MAX_OPTIONS]


def make_option(option_id: str, label: str, kind: OptionKind) -> RequestOption | None:
    """Return an option as a request has it, or None if its id does not fit: the agent must get it back as it is."""
    if not 0 < len(option_id) <= MAX_OPTION_CHARACTERS or texts.sanitize_name(option_id, {}) != option_id:
        return None
    shown = texts.sanitize_name(label, {}).strip() or option_id
    return RequestOption(option_id, shown[:MAX_NAME_CHARACTERS], kind)


def describe_tool(kind: str, name: object, given: Any) -> RequestTool:
    """Return the tool that asks; an input that cannot be shown as it is, such as one that is too large, is left out."""
    label = texts.sanitize_title(name, {}) if isinstance(name, str) else ""
    canonical: str | None = None
    with suppress(TypeError, ValueError, RecursionError):
        if given is not None and len(orjson.dumps(given)) <= MAX_INPUT_BYTES:
            canonical = texts.canonical_data(given, {}, visible=True)
    return RequestTool(kind, label or None, canonical)


def tool_kind(kind: str | None) -> str:
    """Return the kind of a tool as policies know it."""
    return kind if kind is not None and kind in get_args(ToolKind) else "other"
