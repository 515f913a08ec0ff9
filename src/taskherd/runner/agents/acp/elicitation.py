"""Questions that an agent asks with a form (``elicitation/create``): only one with a single field can be passed on.

A field with choices becomes a question with options, a text field one that wants text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from taskherd.domain.request_values import OptionKind, RequestOption
from taskherd.messages.limits import MAX_OPTIONS
from taskherd.runner.agents.acp.permissions import make_option

DECLINED: Final = {"action": "decline"}
CANCELLED: Final = {"action": "cancel"}
MAX_MESSAGE: Final = 64 * 1024
"""Number of characters of a question that are looked at; people are shown less."""
MAX_FIELD: Final = 256
"""Maximum length of a field's name, in characters."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with options, or one without, which wants text; ``field`` is that of the form."""

    message: str
    field: str
    options: tuple[RequestOption, ...]
    is_boolean: bool = False
    """Whether the field is a boolean: the options are ``true`` and ``false``."""


def parse_question(params: dict[str, Any]) -> Question | None:
    """Return the question of a form with one field, or None if the form cannot be passed on."""
    form = params.get("requestedSchema")
    fields = form.get("properties") if isinstance(form, dict) else None
    if params.get("mode") != "form" or not isinstance(fields, dict) or len(fields) != 1:
        return None
    ((name, field),) = fields.items()
    message = str(params.get("message") or name)[:MAX_MESSAGE]
    if not isinstance(field, dict) or len(name) > MAX_FIELD:
        return None
    match field.get("type"):
        case "boolean":
            options = tuple(RequestOption(*each, OptionKind.OTHER) for each in (("true", "Yes"), ("false", "No")))
            return Question(message, name, options, is_boolean=True)
        case "string":
            choices = _choices(field)
            return None if choices is None else Question(message, name, choices)
        case _:
            return None


def accept(field: str, value: object) -> dict[str, Any]:
    """Return the result that gives the form's field its value."""
    return {"action": "accept", "content": {field: value}}


def _choices(field: dict[str, Any]) -> tuple[RequestOption, ...] | None:
    """Return the choices of a text field, () if it takes any text, or None if they cannot be passed on."""
    titled = field.get("oneOf")
    if isinstance(titled, list):
        pairs = [(each.get("const"), each.get("title")) for each in titled if isinstance(each, dict)]
    elif isinstance(field.get("enum"), list):
        pairs = [(value, value) for value in field["enum"]]
    else:
        return ()
    options = [
        make_option(value, str(label or value), OptionKind.OTHER) for value, label in pairs if isinstance(value, str)
    ]
    usable = tuple(option for option in options if option is not None)
    are_all = len(usable) == len(pairs) == len({option.id for option in usable})
    return usable if are_all and 0 < len(usable) <= MAX_OPTIONS else None
