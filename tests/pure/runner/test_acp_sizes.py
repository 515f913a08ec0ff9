"""Messages of agents that speak ACP are measured before they are validated."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd.runner.agents.acp.elicitation import MAX_MESSAGE, parse_question
from taskherd.runner.agents.acp.handshake import parse_initialized
from taskherd.runner.agents.acp.permissions import MAX_INPUT_BYTES, describe_tool
from taskherd.runner.agents.acp.sizes import MAX_PARTS, has_few_parts

MANY: Any = [0] * (MAX_PARTS + 1)


@pytest.mark.parametrize(
    ("message", "is_few"),
    [
        ({}, True),
        ({"update": {"entries": MANY}}, False),
        ({"update": {"entries": MANY[3:]}}, True),
        ({"update": {"content": [{"text": "a", "more": [0, 1]}] * (MAX_PARTS // 4)}}, False),
        ({"update": {"rawInput": MANY, "rawOutput": {"lines": MANY}}}, True),
        ({"update": {"_meta": {"agent": {"lines": MANY}}}}, True),
        ({"update": {"_meta": dict.fromkeys(map(str, range(MAX_PARTS)))}}, False),
        ({"update": {"title": "a" * 10 * MAX_PARTS}}, True),
    ],
)
def test_the_parts_that_a_schema_looks_at_are_counted(message: dict[str, Any], *, is_few: bool) -> None:
    """Lists and objects count with all that is in them, but not what the schema takes as it is."""
    assert has_few_parts(message) is is_few


@pytest.mark.parametrize("given", [[0] * MAX_INPUT_BYTES, "\u202e" * MAX_INPUT_BYTES, {"a": ["b" * MAX_INPUT_BYTES]}])
def test_an_input_that_is_too_large_is_not_shown(given: Any) -> None:
    """It is left out before its texts are sanitized."""
    assert describe_tool("edit", "Edit", given).input is None
    assert describe_tool("edit", "Edit", {"path": "\u202e"}).input == '{"path":"\\\\u202e"}'


def test_only_the_beginning_of_a_question_is_looked_at() -> None:
    """What is longer than people are shown is cut before it is sanitized."""
    form = {"type": "object", "properties": {"name": {"type": "string"}}}
    question = parse_question({"mode": "form", "message": "a" * 10 * MAX_MESSAGE, "requestedSchema": form})
    assert question is not None
    assert question.message == "a" * MAX_MESSAGE


def test_an_answer_to_initialize_with_too_many_parts_is_invalid() -> None:
    """It is refused with words before it is validated."""
    assert "parts" in str(parse_initialized({"protocolVersion": 1, "authMethods": MANY}))
