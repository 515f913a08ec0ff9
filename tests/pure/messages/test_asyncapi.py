"""The AsyncAPI document is up to date, complete, and agrees with the encoders and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import jsonschema
import orjson
import pytest
import yaml

from taskherd.broker import topology
from taskherd.domain import commands as domain_commands
from taskherd.domain import reports as domain_reports
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages import asyncapi, events, replies, work
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import decode_reports
from tests.pure.messages.samples import COMMANDS, NOW, REPORT_OF, REPORTS
from tests.pure.messages.test_outgoing import GOLDEN, event

PAGE = Path(__file__).parents[3] / "docs" / "asyncapi.yaml"


def validate(message: str, payload: Any) -> None:
    """Validate a payload with the message's schema in the document."""
    jsonschema.Draft202012Validator(asyncapi.schema_of(message)).validate(payload)


def test_the_document_is_up_to_date() -> None:
    """``docs/asyncapi.yaml`` is the output of ``python -m taskherd.messages.asyncapi``; see ``make docs``."""
    assert PAGE.read_text(encoding="utf-8") == asyncapi.text()


def test_names_and_limits_are_those_of_the_topology() -> None:
    """The prefix and the delivery limit in the document are those with which the worker declares its queues."""
    assert topology.TopologyNames().prefix == asyncapi.PREFIX
    assert asyncapi.DELIVERY_LIMIT == topology.DELIVERY_LIMIT


def test_references_resolve_and_nothing_is_unreferenced() -> None:
    """Every ``$ref`` of the document resolves, and every schema and message is referenced."""
    document = yaml.safe_load(PAGE.read_text(encoding="utf-8"))
    references = set(refs(document))
    for reference in references:
        node = document
        for key in reference.removeprefix("#/").split("/"):
            node = node[key]
    assert {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} <= references
    assert {f"#/components/messages/{name}" for name in document["components"]["messages"]} <= references


def refs(node: Any) -> list[str]:
    """Return every reference below a node."""
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + [ref for value in node.values() for ref in refs(value)]
    return [ref for value in node for ref in refs(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("fields", REPORTS, ids=lambda fields: str(fields["type"]))
def test_valid_reports_match_their_schema(fields: dict[str, Any]) -> None:
    """The sample reports are valid for the document and for the decoder."""
    validate(fields["type"], fields)
    validate("reports", [fields])
    assert not any(isinstance(each, InvalidMessage) for each in decode_reports(orjson.dumps([fields]), NOW))


@pytest.mark.parametrize("changes", [{"seq": -1}, {"build_number": 0}, {"seq": "1"}, {"seq": 2**53}, {"task_id": 1}])
def test_invalid_reports_do_not_match_their_schema(changes: dict[str, Any]) -> None:
    """The document has the limits of the decoder."""
    fields = {**REPORT_OF["agent.heartbeat"], **changes}
    with pytest.raises(jsonschema.ValidationError):
        validate(fields["type"], fields)
    (element,) = decode_reports(orjson.dumps(fields), NOW)
    assert isinstance(element, InvalidMessage)
    assert element.reason is DeadLetterReason.INVALID


@pytest.mark.parametrize("fields", COMMANDS, ids=lambda fields: str(fields["type"]))
def test_commands_match_their_schema(fields: dict[str, Any]) -> None:
    """The sample commands are valid for the document and for the decoder."""
    validate(fields["type"], fields)
    assert not isinstance(decode_command(orjson.dumps(fields)), InvalidMessage)


def test_published_messages_match_their_schema() -> None:
    """Encoded events and replies match the document."""
    (batch,) = events.pack_events([event(1), event(2)])
    validate("events", orjson.loads(batch.body))
    validate("accepted", orjson.loads(replies.accepted_reply(GOLDEN, 1)))
    invalid = decode_command(b"{}")
    assert isinstance(invalid, InvalidMessage)
    validate("refused", orjson.loads(replies.invalid_message_reply(invalid)))


def test_the_document_contains_every_type() -> None:
    """Each type of report and command in ``domain``, and of work request, has its own message and a sample."""
    listed = {**asyncapi.REPORTS, **asyncapi.COMMANDS, **asyncapi.WORK}
    for name, model in listed.items():
        assert model.model_json_schema()["properties"]["type"]["const"] == name
    assert set(asyncapi.WORK.values()) == set(get_args(get_args(work.WorkRequest)[0]))
    for union, models, samples in (
        (domain_reports.Report, asyncapi.REPORTS, REPORTS),
        (domain_commands.Command, asyncapi.COMMANDS, COMMANDS),
    ):
        types = sorted(each.type for each in get_args(union))
        assert sorted(models) == types
        assert sorted(fields["type"] for fields in samples) == types
