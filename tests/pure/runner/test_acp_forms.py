"""Forms of agents that become questions, and the answers that agents are given to what they ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import AgentRequest
from taskherd.domain.request_values import OptionKind, RequestKind, RequestOption
from taskherd.runner.agents.acp import pending_request
from taskherd.runner.agents.acp.elicitation import MAX_FIELD, MAX_MESSAGE, Question, parse_question
from taskherd.runner.agents.acp.pending_request import PendingAcpRequest
from tests.pure.messages.samples import NOW


def form(*fields: tuple[str, Any], **params: Any) -> dict[str, Any]:
    """Return the parameters of a form with these fields."""
    return {"mode": "form", "message": "Which?", "requestedSchema": {"properties": dict(fields)}, **params}


def options(*pairs: tuple[str, str]) -> tuple[RequestOption, ...]:
    """Return options with these ids and labels."""
    return tuple(RequestOption(value, label, OptionKind.OTHER) for value, label in pairs)


@pytest.mark.parametrize(
    ("field", "expected", "is_boolean"),
    [
        ({"type": "boolean"}, (("true", "Yes"), ("false", "No")), True),
        ({"type": "string"}, (), False),
        ({"type": "string", "enum": ["a", "b"]}, (("a", "a"), ("b", "b")), False),
        ({"type": "string", "enum": [f"e{n}" for n in range(16)]}, [(f"e{n}", f"e{n}") for n in range(16)], False),
        (
            {"type": "string", "oneOf": [{"const": "a", "title": "First"}, {"const": "b"}], "enum": ["c"]},
            (("a", "First"), ("b", "b")),
            False,
        ),
    ],
)
def test_a_form_with_one_field_is_a_question(field: object, expected: Any, *, is_boolean: bool) -> None:
    """Of a boolean, or of a text with or without choices, which have labels if the form has them."""
    assert parse_question(form(("color", field))) == Question("Which?", "color", options(*expected), is_boolean)


@pytest.mark.parametrize(
    "params",
    [
        form(("color", {"type": "string"}), mode="url"),
        form(),
        form(("color", {"type": "string"}), ("size", {"type": "string"})),
        form(("color", "string")),
        form(("color", {"type": "number"})),
        form(("color", {})),
        form(("x" * (MAX_FIELD + 1), {"type": "string"})),
        form(("color", {"type": "string", "enum": []})),
        form(("color", {"type": "string", "enum": ["a", 5]})),
        form(("color", {"type": "string", "enum": ["a", "a"]})),
        form(("color", {"type": "string", "enum": ["a", "x" * 65]})),
        form(("color", {"type": "string", "enum": [str(number) for number in range(17)]})),
        form(("color", {"type": "string", "oneOf": [{"title": "First"}]})),
        {"mode": "form", "requestedSchema": {"properties": [1]}},
        {"mode": "form", "requestedSchema": 5},
        {"mode": "form"},
    ],
)
def test_other_forms_cannot_be_passed_on(params: dict[str, Any]) -> None:
    """Those with other fields, and with choices that cannot all be given back to the agent as they are."""
    assert parse_question(params) is None


def test_the_words_and_the_field_of_a_question_have_a_size() -> None:
    """The words are cut, and a field without words asks with its name."""
    name = "x" * MAX_FIELD
    found = parse_question(form((name, {"type": "string"}), message="y" * (MAX_MESSAGE + 1)))
    assert found == Question("y" * MAX_MESSAGE, name, ())
    assert parse_question(form(("color", {"type": "string"}), message="")) == Question("color", "color", ())


CHOICES = options(("true", "Yes"), ("false", "No"))


def pending(field: str | None, offered: tuple[RequestOption, ...] = (), **fields: Any) -> PendingAcpRequest:
    """Return a request that waits."""
    kind = RequestKind.APPROVAL if field is None else RequestKind.QUESTION
    ids: dict[str, Any] = {"task_id": UUID(int=8), "build_number": 2, "seq": 3, "request_id": UUID(int=9)}
    return PendingAcpRequest(AgentRequest(**ids, kind=kind, title="May I?", options=offered), "r-1", field, **fields)


def accepted(**content: object) -> dict[str, Any]:
    """Return the result that fills in the form."""
    return {"action": "accept", "content": content}


@pytest.mark.parametrize(
    ("asked", "option_id", "text", "result"),
    [
        (pending(None, CHOICES), "true", None, {"outcome": {"outcome": "selected", "optionId": "true"}}),
        (pending("color", CHOICES), "false", "more", accepted(color="false")),
        (pending("sure", CHOICES, is_boolean=True), "true", None, accepted(sure=True)),
        (pending("sure", CHOICES, is_boolean=True), "false", None, accepted(sure=False)),
        (pending("name"), None, " Ada ", accepted(name=" Ada ")),
    ],
)
def test_an_answer_is_given_in_the_form_of_what_asked(
    asked: PendingAcpRequest, option_id: str | None, text: str | None, result: dict[str, Any]
) -> None:
    """An approval gets the option, a form the value of its field."""
    assert asked.takes(option_id, text)
    assert asked.result(option_id, text) == result


@pytest.mark.parametrize(
    ("asked", "option_id", "text"),
    [
        (pending(None, CHOICES), "maybe", None),
        (pending(None, CHOICES), None, "true"),
        (pending("name"), None, None),
        (pending("name"), None, " \n"),
        (pending("name"), "true", None),
        (pending("name"), "true", "Ada"),
    ],
)
def test_what_is_no_answer_is_not_taken(asked: PendingAcpRequest, option_id: str | None, text: str | None) -> None:
    """An option that was not offered, nothing where text is wanted, or an option there."""
    assert not asked.takes(option_id, text)


def test_what_is_not_decided_is_answered_too() -> None:
    """An approval is rejected with the agent's own option, if it has one; a form is declined or cancelled."""
    cancelled = {"outcome": {"outcome": "cancelled"}}
    approval = pending(None, CHOICES, rejecting="false")
    assert approval.rejection == {"outcome": {"outcome": "selected", "optionId": "false"}}
    assert (pending(None, CHOICES).rejection, approval.cancellation) == (cancelled, cancelled)
    assert pending("name").rejection == {"action": "decline"}
    assert pending("name").cancellation == {"action": "cancel"}


@pytest.mark.parametrize(
    "asked",
    [pending(None, CHOICES, rejecting="false"), pending("sure", CHOICES, is_boolean=True), pending("name")],
)
def test_the_next_runner_has_the_same_request(asked: PendingAcpRequest) -> None:
    """A copy has other fields only where they are changed."""
    assert pending_request.load(asked.dump(), NOW) == asked
    changed = asked.with_request(title="May I, please?")
    assert changed == replace(asked, request=replace(asked.request, title="May I, please?"))
