"""Query parameters: one model validates and documents them."""

from __future__ import annotations

from typing import Annotated, ClassVar

import orjson
import pytest
from pydantic import Field

from taskherd.api import query
from taskherd.api.agents.routes import SnapshotQuery
from taskherd.api.http.responses import HTTPError
from taskherd.api.query import MAX_POSITION, NoQuery, QueryModel, whole_number
from taskherd.api.routes import ROUTES, SOCKETS
from taskherd.api.tasks.explain import TimelineQuery
from taskherd.api.tasks.long_poll import TaskQuery
from taskherd.api.tasks.search import ListQuery
from taskherd.api.workspaces.logs import LogQuery


class Page(QueryModel):
    """An example."""

    refusal: ClassVar[str] = "Invalid page."
    size: Annotated[int, whole_number(1, 500)] = Field(50, description="Entries of a page.")
    color: str = Field(description="Its color.")


def refused(model: type[QueryModel], **given: str) -> tuple[str, str, str]:
    """Message, field and detail of the refusal of these parameters."""
    with pytest.raises(HTTPError) as caught:
        query.parse(model, given)
    body = orjson.loads(caught.value.response.body)
    [validation] = body["validations"]
    assert caught.value.response.status == 400
    return body["message"], validation["field"], validation["detail"]


def test_parameters_have_defaults_and_others_are_ignored() -> None:
    """What is not given has its default, what is not declared is ignored, a required one may be empty."""
    plain, given = (query.parse(Page, each) for each in ({"colour": "red"}, {"size": "007", "color": "red"}))
    assert (plain.size, plain.color) == (50, "")
    assert (given.size, given.color) == (7, "red")


@pytest.mark.parametrize("size", ["", "0", "501", "-1", "+1", " 1", "1.0", "1e1", "0001", "x", "\u0664", "9" * 5000])
def test_a_whole_number_is_written_in_digits(size: str) -> None:
    """Anything but so many ASCII digits within the bounds is refused, naming the bounds."""
    assert refused(Page, size=size) == ("Invalid page.", "size", "A whole number from 1 to 500 was expected.")


def test_they_are_declared_as_they_are_validated() -> None:
    """Bounds, description and whether one is required are those of the model; defaults are not told."""
    assert query.declared(NoQuery) == []
    assert query.declared(Page) == [
        {
            "name": "size",
            "in": "query",
            "description": "Entries of a page.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 500},
        },
        {"name": "color", "in": "query", "description": "Its color.", "schema": {"type": "string"}, "required": True},
    ]


def test_a_bound_beyond_exact_integers_is_not_declared() -> None:
    """A maximum that JSON parsers would round is kept to, but not written into the document."""
    [after, _] = query.declared(TimelineQuery)
    assert after["schema"] == {"type": "integer", "minimum": 0}
    assert query.parse(TimelineQuery, {"after": str(MAX_POSITION)}).after == MAX_POSITION
    assert refused(TimelineQuery, after=str(MAX_POSITION + 1))[1] == "after"


def test_the_first_invalid_parameter_is_named() -> None:
    """A refusal names one parameter, in the order in which they are declared."""
    assert refused(ListQuery, after="x", limit="x")[1] == "limit"
    assert refused(TaskQuery, wait="x", until="x")[1] == "until"


def test_what_empty_parameters_mean() -> None:
    """An empty position is none, an empty cursor the first page; an empty wait, until, limit or format is invalid."""
    assert query.parse(LogQuery, {"after": ""}).after == 0
    assert query.parse(ListQuery, {"after": ""}).after is None
    assert query.parse(ListQuery, {"after": ""}).paged
    assert not query.parse(ListQuery, {"q": ""}).paged
    assert query.parse(TaskQuery, {}).wait is None
    for model, name in ((TaskQuery, "wait"), (TaskQuery, "until"), (ListQuery, "limit"), (TimelineQuery, "after")):
        assert refused(model, **{name: ""})[:2] == ("Validation failed.", name)
    assert refused(SnapshotQuery) == (
        "Query parameters have invalid values.",
        "format",
        'Query param "format" has invalid value: only agentapi is known',
    )


def test_every_parameter_is_described() -> None:
    """Each parameter of each route has a description and a schema with a type."""
    for model in {route.query for route in ROUTES} | {socket.query for socket in SOCKETS}:
        for each in query.declared(model):
            assert each["description"]
            assert each["schema"]["type"] in {"string", "integer"}
