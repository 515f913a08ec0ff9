from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import jsonschema
import orjson
import pytest
import yaml

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages import asyncapi, events, replies, work
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import decode_reports
from tests.pure.messages.samples import COMMANDS, NOW, REPORTS
from tests.pure.messages.test_outgoing import GOLDEN, event

KEPT = Path(__file__).parents[3] / "docs" / "asyncapi.yaml"


def check(message: str, said: Any) -> None:
    """Fail unless the message's schema in the document takes this payload."""
    jsonschema.Draft202012Validator(asyncapi.schema_of(message)).validate(said)


def test_the_kept_document_is_the_generated_one() -> None:
    """``docs/asyncapi.yaml`` says what the models say; write it anew with ``python -m taskherd.messages.asyncapi``."""
    assert KEPT.read_text(encoding="utf-8") == asyncapi.text()


def test_every_reference_leads_somewhere() -> None:
    """No ``$ref`` of the document dangles, and no schema or message is left over."""
    document = yaml.safe_load(KEPT.read_text(encoding="utf-8"))
    pointed = set(refs(document))
    for ref in pointed:
        place = document
        for step in ref.removeprefix("#/").split("/"):
            place = place[step]
    assert {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} <= pointed
    assert {f"#/components/messages/{name}" for name in document["components"]["messages"]} <= pointed


def refs(node: Any) -> list[str]:
    """Every reference below a node."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in refs(value)]
    return [ref for value in node for ref in refs(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("said", REPORTS, ids=lambda said: str(said["type"]))
def test_reports_that_are_read_fit_their_schema(said: dict[str, Any]) -> None:
    """The samples of the reports are good by the document and by the codec alike."""
    check(said["type"], said)
    check("reports", [said])
    assert not any(isinstance(each, InvalidMessage) for each in decode_reports(orjson.dumps([said]), NOW))


@pytest.mark.parametrize("more", [{"seq": -1}, {"build_number": 0}, {"seq": "1"}, {"seq": 2**53}, {"task_id": 1}])
def test_reports_that_are_refused_do_not(more: dict[str, Any]) -> None:
    """The document's bounds are the codec's."""
    said = {**REPORTS[2], **more}
    with pytest.raises(jsonschema.ValidationError):
        check(said["type"], said)
    (element,) = decode_reports(orjson.dumps(said), NOW)
    assert isinstance(element, InvalidMessage)
    assert element.reason is DeadLetterReason.INVALID


@pytest.mark.parametrize("said", COMMANDS, ids=lambda said: str(said["type"]))
def test_commands_fit_their_schema(said: dict[str, Any]) -> None:
    """The samples of the commands are good by the document and by the codec alike."""
    check(said["type"], said)
    assert not isinstance(decode_command(orjson.dumps(said)), InvalidMessage)


def test_what_goes_out_fits_its_schema() -> None:
    """Events and replies, as they are built, are what the document promises."""
    (batch,) = events.pack_events([event(1), event(2)])
    check("events", orjson.loads(batch.body))
    check("accepted", orjson.loads(replies.accepted_reply(GOLDEN, 1)))
    bad = decode_command(b"{}")
    assert isinstance(bad, InvalidMessage)
    check("refused", orjson.loads(replies.invalid_message_reply(bad)))


def test_the_document_knows_every_type() -> None:
    """Each member of the unions has a message of its own, under the type that it bears."""
    listed = {**asyncapi.REPORTS, **asyncapi.COMMANDS, **asyncapi.WORK}
    for name, model in listed.items():
        assert model.model_json_schema()["properties"]["type"]["const"] == name
    assert set(asyncapi.WORK.values()) == set(get_args(get_args(work.WorkRequest)[0]))
    assert len(asyncapi.REPORTS) == len(REPORTS)
    assert len(asyncapi.COMMANDS) == len(COMMANDS)
