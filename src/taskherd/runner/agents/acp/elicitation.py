"""Questions that an agent asks with a form (``elicitation/create``): only one with a single field can be passed on.

A field with choices becomes a question with options, a text field one that wants text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from taskherd.runner.agents.acp.people import MAX_LABEL, MAX_OPTIONS, Option

DECLINED: Final = {"action": "decline"}
CANCELLED: Final = {"action": "cancel"}
MAX_FIELD: Final = 256
"""Maximum length of a field's name, in characters."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with options, or one without, which wants text; ``field`` is that of the form."""

    title: str
    field: str
    options: tuple[Option, ...]


def parse_question(params: dict[str, Any]) -> Question | None:
    """Return the question of a form with one field, or None if the form cannot be passed on."""
    form = params.get("requestedSchema")
    fields = form.get("properties") if isinstance(form, dict) else None
    if params.get("mode") != "form" or not isinstance(fields, dict) or len(fields) != 1:
        return None
    ((name, field),) = fields.items()
    title = str(params.get("message") or name)
    if not isinstance(field, dict) or len(name) > MAX_FIELD:
        return None
    match field.get("type"):
        case "boolean":
            return Question(title, name, (Option("true", "Yes", "other"), Option("false", "No", "other")))
        case "string":
            choices = _choices(field)
            return None if choices is None else Question(title, name, choices)
        case _:
            return None


def accept(question_field: str, option_id: str | None, text: str | None) -> dict[str, Any]:
    """Return the result that gives the field its value."""
    value: object = text
    if option_id is not None:
        value = {"true": True, "false": False}.get(option_id, option_id) if text is None else option_id
    return {"action": "accept", "content": {question_field: value}}


def _choices(field: dict[str, Any]) -> tuple[Option, ...] | None:
    """Return the choices of a text field, () if it takes any text, or None if they cannot be passed on."""
    titled = field.get("oneOf")
    if isinstance(titled, list):
        pairs = [(each.get("const"), each.get("title")) for each in titled if isinstance(each, dict)]
    elif isinstance(field.get("enum"), list):
        pairs = [(value, value) for value in field["enum"]]
    else:
        return ()
    if not 0 < len(pairs) <= MAX_OPTIONS or not all(
        isinstance(value, str) and 0 < len(value) <= MAX_LABEL for value, _ in pairs
    ):
        return None
    return tuple(Option(str(value), str(label or value)[:MAX_LABEL], "other") for value, label in pairs)
