"""Query parameters: one model for each route validates them and declares them in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from taskherd.api.http.errors import invalid

MAX_POSITION: Final = 2**63 - 1
_MAX_JSON_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON parser keeps exact (RFC 8259, section 6)."""
_OMITTED: Final = frozenset({"title", "default", "description"})


class QueryModel(BaseModel):
    """The query parameters of one route. Its validators raise ``ValueError`` with the detail for the client."""

    model_config = ConfigDict(frozen=True)
    error_message: ClassVar[str] = "Validation failed."
    """The message of the 400 if a parameter is invalid."""


Query = TypeVar("Query", bound=QueryModel)


class NoQuery(QueryModel):
    """No query parameters."""


def validate(model: type[Query], query: Mapping[str, str]) -> Query:
    """Validate the query parameters. Undeclared ones are ignored; a required one that is missing counts as empty.

    Raises:
        HTTPError: a 400 that names the first invalid parameter.
    """
    required = _required(model)
    if not query and not required:
        defaults: Query = _defaults(model)
        return defaults
    try:
        return model.model_validate({**required, **query})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        validation = (str(first["loc"][0]), first["msg"].removeprefix("Value error, "))
        raise invalid(validation, message=model.error_message) from None


@cache
def _required(model: type[QueryModel]) -> Mapping[str, str]:
    """Return the required parameters of a model, each empty."""
    return {name: "" for name, field in model.model_fields.items() if field.is_required()}


@cache
def _defaults(model: type[Query]) -> Query:
    """Return the values of a request without a query, which all such requests share: the model is frozen."""
    return model.model_validate({})


def declared(model: type[QueryModel]) -> list[dict[str, Any]]:
    """Return the OpenAPI parameter objects of a model."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "description": each["description"],
            "schema": {key: value for key, value in each.items() if key not in _OMITTED},
            **({"required": True} if name in required else {}),
        }
        for name, each in schema["properties"].items()
    ]


@dataclass(frozen=True, slots=True)
class TextParameter:
    """Annotation of a parameter that ``read`` converts from text, and whose JSON schema is ``schema``."""

    read: Callable[[str], Any]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate with ``read`` only."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the declared schema."""
        return dict(self.schema)


def whole_number(minimum: int, maximum: int, *, expected: str = "", empty: int | None = None) -> TextParameter:
    """Annotate a whole number in decimal digits.

    An empty text has the value ``empty``, or is invalid if that is None. ``expected`` replaces the detail of the error,
    which names the bounds.
    """
    message = expected or f"Expected a whole number from {minimum} to {maximum}."

    def read(text: str) -> int:
        if not text and empty is not None:
            return empty
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(maximum))
        if not (digits and minimum <= int(text) <= maximum):
            raise ValueError(message)
        return int(text)

    bounds = {"minimum": minimum, **({"maximum": maximum} if maximum <= _MAX_JSON_INTEGER else {})}
    return TextParameter(read, {"type": "integer", **bounds})


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        message = 'Expected "true" or "false".'
        raise ValueError(message)
    return text == "true"


FLAG: Final = TextParameter(_flag, {"type": "boolean"})
"""Annotation of a parameter that is `true` or `false`."""
