"""The OpenAPI document: what is checked in is what the routes say, and it holds together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskherd.api.http import openapi
from taskherd.api.routes import ROUTES

ROOT = Path(__file__).parents[3]


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in a value."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_checked_in_document_is_fresh() -> None:
    """`docs/openapi.json` is what the code says now; `make docs` writes it anew."""
    assert (ROOT / "docs" / "openapi.json").read_bytes() == openapi.encoded()


def test_every_route_is_told_of_once() -> None:
    """Each route is an operation with an id of its own, under both prefixes where it has two."""
    paths = openapi.document()["paths"]
    for route in ROUTES:
        assert route.method.lower() in paths[f"/api/v2{route.path}"]
        assert (f"/api/experimental{route.path}" in paths) >= route.experimental
    operations = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len(operations) == len(set(operations))


def test_references_lead_somewhere() -> None:
    """Every `$ref` names a schema that is there, and every path parameter is declared."""
    document = openapi.document()
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))
