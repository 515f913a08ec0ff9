"""Query parameters: one model both validates and documents them."""

from __future__ import annotations

from typing import Annotated, ClassVar

import orjson
import pytest
from pydantic import Field

from taskherd.api.agents.logs import SnapshotQuery
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.query_parameters import MAX_POSITION, NoQuery, QueryModel, whole_number
from taskherd.api.routes import ROUTES, SOCKETS
from taskherd.api.tasks.explain import TimelineQuery
from taskherd.api.tasks.long_poll import TaskQuery
from taskherd.api.tasks.search import ListQuery
from taskherd.api.workspaces.logs import LogQuery


class Page(QueryModel):
    """The query parameters of an example."""

    error_message: ClassVar[str] = "Invalid page."
    size: Annotated[int, whole_number(1, 500)] = Field(50, description="Entries of a page.")
    color: str = Field(description="Color of the page.")


def rejection(model: type[QueryModel], **parameters: str) -> tuple[str, str, str]:
    """Return message, field and detail of the error for these parameters."""
    with pytest.raises(HTTPError) as error:
        query_parameters.validate(model, parameters)
    body = orjson.loads(error.value.response.body)
    [validation] = body["validations"]
    assert error.value.response.status == 400
    return body["message"], validation["field"], validation["detail"]


def test_missing_parameters_have_defaults_and_undeclared_ones_are_ignored() -> None:
    """A missing parameter has its default, or is empty if it is required; an undeclared one is ignored."""
    defaults, given = (
        query_parameters.validate(Page, each) for each in ({"colour": "red"}, {"size": "007", "color": "red"})
    )
    assert (defaults.size, defaults.color) == (50, "")
    assert (given.size, given.color) == (7, "red")


@pytest.mark.parametrize("size", ["", "0", "501", "-1", "+1", " 1", "1.0", "1e1", "0001", "x", "\u0664", "9" * 5000])
def test_a_whole_number_has_only_digits(size: str) -> None:
    """Only ASCII digits within the bounds are accepted; the error names the bounds."""
    assert rejection(Page, size=size) == ("Invalid page.", "size", "Expected a whole number from 1 to 500.")


class Position(QueryModel):
    """The query parameters of an example whose clients send a parameter without a value."""

    after: Annotated[int, whole_number(0, 9, expected="A digit.", empty=7)] = Field(0, description="A digit.")


def test_an_empty_number_may_have_a_value() -> None:
    """Others have their own, and the error is that of the parameter."""
    values = [query_parameters.validate(Position, each).after for each in ({}, {"after": ""}, {"after": "3"})]
    assert values == [0, 7, 3]
    assert rejection(Position, after="x")[1:] == ("after", "A digit.")


def test_parameters_are_declared_as_they_are_validated() -> None:
    """Bounds, description and whether a parameter is required come from the model; defaults are not declared."""
    assert query_parameters.declared(NoQuery) == []
    assert query_parameters.declared(Page) == [
        {
            "name": "size",
            "in": "query",
            "description": "Entries of a page.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 500},
        },
        {
            "name": "color",
            "in": "query",
            "description": "Color of the page.",
            "schema": {"type": "string"},
            "required": True,
        },
    ]


@pytest.mark.parametrize(("maximum", "is_declared"), [(2**53 - 1, True), (2**53, False)])
def test_the_largest_maximum_that_is_declared(maximum: int, *, is_declared: bool) -> None:
    """Every JSON parser keeps it exact."""
    schema = query_parameters.whole_number(3, maximum).schema
    assert schema == {"type": "integer", "minimum": 3, **({"maximum": maximum} if is_declared else {})}


def test_a_maximum_beyond_exact_integers_is_not_declared() -> None:
    """A maximum that JSON parsers would round is enforced, but not declared in the document."""
    [after, _, _] = query_parameters.declared(TimelineQuery)
    assert after["schema"] == {"type": "integer", "minimum": 0}
    assert query_parameters.validate(TimelineQuery, {"after": str(MAX_POSITION)}).after == MAX_POSITION
    assert rejection(TimelineQuery, after=str(MAX_POSITION + 1))[1] == "after"


def test_the_first_invalid_parameter_is_named() -> None:
    """An error names one parameter: the first in the order of declaration."""
    assert rejection(ListQuery, after="x", limit="x")[1] == "limit"
    assert rejection(TaskQuery, wait="x", until="x")[1] == "until"


def test_empty_parameters() -> None:
    """An empty log position means 0 and an empty cursor the first page; other empty parameters are invalid."""
    assert query_parameters.validate(LogQuery, {"after": ""}).after == 0
    assert query_parameters.validate(ListQuery, {"after": ""}).after is None
    assert query_parameters.validate(ListQuery, {"after": ""}).paged
    assert not query_parameters.validate(ListQuery, {"q": ""}).paged
    assert query_parameters.validate(TaskQuery, {}).wait is None
    for model, name in ((TaskQuery, "wait"), (TaskQuery, "until"), (ListQuery, "limit"), (TimelineQuery, "after")):
        assert rejection(model, **{name: ""})[:2] == ("Validation failed.", name)
    assert rejection(SnapshotQuery) == (
        "Query parameters have invalid values.",
        "format",
        'Query param "format" has invalid value: expected agentapi',
    )


def test_every_parameter_is_described() -> None:
    """Each parameter of each route has a description and a schema with a type."""
    for model in {route.query for route in ROUTES} | {socket.query for socket in SOCKETS}:
        for each in query_parameters.declared(model):
            assert each["description"]
            assert each["schema"]["type"] in {"string", "integer", "boolean"}
