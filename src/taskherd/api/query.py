"""Query parameters: one model for each route, which validates them and declares them in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from taskherd.api.http.responses import invalid

MAX_POSITION: Final = 2**63 - 1
_MAX_JSON_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON parser keeps exact (RFC 8259, section 6)."""
_NOT_SHOWN: Final = frozenset({"title", "default", "description"})


class QueryModel(BaseModel):
    """The parameters of one route. A validator raises ValueError with what the refusal says."""

    model_config = ConfigDict(frozen=True)
    refusal: ClassVar[str] = "Validation failed."
    """The message of the 400 when a parameter is invalid."""


Model = TypeVar("Model", bound=QueryModel)


class NoQuery(QueryModel):
    """No parameters."""


def parse(model: type[Model], query: Mapping[str, str]) -> Model:
    """Return the parameters, others being ignored; a required one that is missing counts as empty.

    Raises:
        Refusal: a 400 that names the first invalid parameter.
    """
    required = {name: "" for name, field in model.model_fields.items() if field.is_required()}
    try:
        return model.model_validate({**required, **query})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        wrong = (str(first["loc"][0]), first["msg"].removeprefix("Value error, "))
        raise invalid(wrong, message=model.refusal) from None


def declared(model: type[QueryModel]) -> list[dict[str, Any]]:
    """Return the parameters as OpenAPI has them."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "description": each["description"],
            "schema": {key: value for key, value in each.items() if key not in _NOT_SHOWN},
            **({"required": True} if name in required else {}),
        }
        for name, each in schema["properties"].items()
    ]


@dataclass(frozen=True, slots=True)
class Text:
    """Annotates a parameter that ``read`` makes from its text, with ``schema`` as its JSON schema."""

    read: Callable[[str], Any]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate with ``read`` alone."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the declared schema."""
        return dict(self.schema)


def whole_number(least: int, limit: int, *, expected: str = "", empty: int | None = None) -> Text:
    """Annotate a whole number in decimal digits; ``empty`` is the value of an empty text, which else is invalid."""
    message = expected or f"A whole number from {least} to {limit} was expected."

    def read(text: str) -> int:
        if not text and empty is not None:
            return empty
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(limit)) and least <= int(text) <= limit):
            raise ValueError(message)
        return int(text)

    bounds = {"minimum": least, **({"maximum": limit} if limit <= _MAX_JSON_INTEGER else {})}
    return Text(read, {"type": "integer", **bounds})
