"""The OpenAPI document: the stored file matches the routes, and the document is consistent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskherd.api.http import openapi
from taskherd.api.routes import ROUTES

ROOT = Path(__file__).parents[3]


def references(value: Any) -> Iterator[str]:
    """Return every ``$ref`` in a value."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "$ref":
                yield each
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_the_stored_document_is_up_to_date() -> None:
    """``docs/openapi.json`` is the document that the code generates; ``make docs`` writes it."""
    assert (ROOT / "docs" / "openapi.json").read_bytes() == openapi.encoded()


def test_every_route_is_documented_once() -> None:
    """Each route is one operation with a unique id, under both prefixes if it has two."""
    paths = openapi.document()["paths"]
    for route in ROUTES:
        assert route.method.lower() in paths[f"/api/v2{route.path}"]
        assert (f"/api/experimental{route.path}" in paths) >= route.experimental
    operations = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len(operations) == len(set(operations))


def test_references_exist() -> None:
    """Every ``$ref`` names an existing schema, and every path parameter is declared."""
    document = openapi.document()
    schemas = document["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(schemas)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))


def test_summaries_are_imperative_phrases() -> None:
    """Every operation has a summary that starts with a verb and has no full stop; every parameter has a description."""
    verbs = {
        "Add",
        "Answer",
        "Ask",
        "Cancel",
        "Check",
        "Create",
        "Delete",
        "Explain",
        "Follow",
        "Get",
        "Interrupt",
        "List",
        "Pause",
        "Replay",
        "Resume",
        "Send",
        "Update",
    }
    verbs |= {"Upload", "Watch"}
    for operations in openapi.document()["paths"].values():
        for operation in operations.values():
            assert operation["summary"].split()[0] in verbs
            assert not operation["summary"].endswith(".")
            for parameter in operation.get("parameters", ()):
                assert parameter["description"].endswith("."), (operation["operationId"], parameter["name"])
