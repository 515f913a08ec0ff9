"""Generate the AsyncAPI 3 document of all messages that taskherd publishes and consumes, from the models.

``python -m taskherd.messages.asyncapi > docs/asyncapi.yaml`` writes it. The operations are those of the worker: it
receives what other components send.
"""

from __future__ import annotations

import sys
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages import claims, commands, events, reports, work
from taskherd.messages.dead_letters import MEANINGS, DeadLetterHeaders
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.messages.replies import AcceptedReply, RefusedReply

PREFIX = "taskherd"
"""The default of the setting ``amqp_prefix``."""

DELIVERY_LIMIT = 200
"""The delivery limit in ``broker.topology``, which this package must not import; a test compares the two."""

_JSON = "application/json"


def _models(union: object) -> dict[str, type[BaseModel]]:
    """Return the models of a union that ``type`` discriminates, by their type."""
    members: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return {get_args(model.model_fields["type"].annotation)[0]: model for model in members}


REPORTS = _models(reports.ReportIn)
COMMANDS = _models(commands.CommandIn)
WORK = _models(work.WorkRequest)
CLAIMS = _models(claims.ClaimIn)
CLAIM_REPLIES: dict[str, type[BaseModel]] = {
    "claimReply": claims.ClaimReply,
    "ownershipReply": claims.OwnershipReply,
    "helloReply": claims.HelloReply,
}
REPLIES: dict[str, type[BaseModel]] = {"accepted": AcceptedReply, "refused": RefusedReply}


def document() -> dict[str, Any]:
    """Return the AsyncAPI document as JSON types."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "taskherd",
            "version": "1.0.0",
            "license": {"name": "Apache-2.0"},
            "description": (
                "Generated from taskherd.messages; do not edit. Unknown fields are ignored; messages of unknown types"
                " become dead letters. Times are accepted as RFC 3339 with an offset, and published in UTC with six"
                " fractional digits and Z. A time outside the years 1970 to 2999 is taken as the nearest within them: a"
                " report is not refused because a clock is wrong."
            ),
        },
        "defaultContentType": _JSON,
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def text() -> str:
    """Return the document as YAML."""
    return yaml.safe_dump(document(), sort_keys=False, width=118, allow_unicode=True)


def schema_of(message: str) -> dict[str, Any]:
    """Return the self-contained JSON schema of a message's payload. Raises KeyError if there is no such message."""
    components = document()["components"]
    return {**components["messages"][message]["payload"], "components": {"schemas": components["schemas"]}}


def _channels() -> dict[str, Any]:
    task_id = {
        "taskId": {
            "description": "The task's UUID. For the reports of a runner, which may be of many tasks: runner.<name>."
        }
    }
    target = {
        "type": {"enum": list(WORK)},
        "target": {"description": "Name of a runner or pool."},
    }
    return {
        "reports": _exchange(f"{PREFIX}.reports", "{taskId}", [*REPORTS, "reports"], task_id),
        "reportsQueue": _queue(f"{PREFIX}.reports", [*REPORTS, "reports"], "Bound to the exchange with #."),
        "commands": _exchange(f"{PREFIX}.commands", "{type}", [*COMMANDS], {"type": {"enum": list(COMMANDS)}}),
        "commandsQueue": _queue(f"{PREFIX}.commands", [*COMMANDS], "Bound to the exchange with #."),
        "claims": _exchange(f"{PREFIX}.claims", "{type}", [*CLAIMS], {"type": {"enum": list(CLAIMS)}}),
        "claimsQueue": _queue(f"{PREFIX}.claims", [*CLAIMS], "Bound to the exchange with #."),
        "claimReplies": {
            "address": None,
            "description": "The queue of the runner that reply_to names, through the default exchange.",
            "messages": _refs([*CLAIM_REPLIES, "refused"]),
        },
        "replies": {
            "address": None,
            "description": "The queue of the sender that reply_to names, through the default exchange.",
            "messages": _refs(REPLIES),
        },
        "events": _exchange(f"{PREFIX}.events", "task.{kind}", ["events"], {"kind": {"enum": list(events.EventKind)}}),
        "work": _exchange(f"{PREFIX}.work", "{type}.{target}", [*WORK], target),
        "workQueue": _queue(
            f"{PREFIX}.work.{{target}}",
            [*WORK],
            "One queue per pool, shared by its runners, and one per runner; bound to the exchange with *.*.{target}.",
            dead_letters=False,
        ),
        "dead": _exchange(
            f"{PREFIX}.dead", "{routingKey}", ["dead"], {"routingKey": {"description": "The original routing key."}}
        ),
        "deadQueue": _queue(f"{PREFIX}.dead", ["dead"], "Bound to the exchange with #.", dead_letters=False),
    }


def _exchange(name: str, address: str, messages: list[str], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    exchange = {"name": name, "type": "topic", "durable": True, "autoDelete": False}
    return {
        "address": address,
        "description": f"Exchange {name}; the address is the routing key.",
        "messages": _refs(messages),
        **({"parameters": _parameters(parameters)} if parameters else {}),
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _queue(name: str, messages: list[str], description: str, *, dead_letters: bool = True) -> dict[str, Any]:
    limits = f" Quorum queue, x-delivery-limit {DELIVERY_LIMIT}, dead letters to {PREFIX}.dead."
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False}
    return {
        "address": name,
        "description": description + (limits if dead_letters else " Quorum queue."),
        "messages": _refs(messages),
        **({"parameters": {"target": {}}} if "{target}" in name else {}),
        "bindings": {"amqp": {"is": "queue", "queue": queue, "bindingVersion": "0.3.0"}},
    }


def _operations() -> dict[str, Any]:
    reply = {
        "address": {"location": "$message.header#/reply_to", "description": "The reply_to property; optional."},
        "channel": {"$ref": "#/channels/replies"},
    }
    return {
        "receiveReports": _operation("receive", "reportsQueue", "A report, or an array of reports."),
        "receiveCommands": {**_operation("receive", "commandsQueue", "Replied to if reply_to is set."), "reply": reply},
        "receiveClaims": {
            **_operation("receive", "claimsQueue", "Replied to if reply_to is set: refused if it is invalid."),
            "reply": {**reply, "channel": {"$ref": "#/channels/claimReplies"}},
        },
        "publishEvents": _operation("send", "events", "Change events, several per message; they may be repeated."),
        "requestWork": _operation("send", "work", "Repeated with backoff until a report answers the request."),
        "publishDeadLetters": _operation(
            "send", "dead", "Unprocessable messages, unchanged, with the reason in headers."
        ),
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _messages() -> dict[str, Any]:
    headers = DeadLetterHeaders.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
    headers.pop("$defs", None)
    batch = {"type": "array", "minItems": 1, "items": {"$ref": _schema_ref(events.CloudEvent)}}
    array = {
        "type": "array",
        "maxItems": MAX_ELEMENTS,
        "items": {"oneOf": [_ref_to(model) for model in REPORTS.values()]},
    }
    correlation = {"location": "$message.header#/correlation_id", "description": "The correlation_id property."}
    return {
        **{name: _message(name, _ref_to(model)) for name, model in REPORTS.items()},
        "reports": {**_message("reports", array), "summary": "Several reports, each decoded by itself."},
        **{name: {**_message(name, _ref_to(model)), "correlationId": correlation} for name, model in COMMANDS.items()},
        **{name: {**_message(name, _ref_to(model)), "correlationId": correlation} for name, model in CLAIMS.items()},
        **{
            name: {**_message(name, _ref_to(model)), "correlationId": correlation}
            for name, model in {**REPLIES, **CLAIM_REPLIES}.items()
        },
        "events": {**_message("events", batch), "contentType": events.CONTENT_TYPE},
        **{name: _message(name, _ref_to(model)) for name, model in WORK.items()},
        "dead": {"name": "dead", "headers": headers, "summary": "The unchanged message.", "payload": {}},
    }


def _message(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "contentType": _JSON, "payload": payload}


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [*REPORTS.values(), *COMMANDS.values(), *REPLIES.values(), *WORK.values()]
    models += [*CLAIMS.values(), *CLAIM_REPLIES.values()]
    models += [events.CloudEvent, DeadLetterHeaders]
    inputs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in models]
    _, definitions = models_json_schema(inputs, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = definitions["$defs"]
    schemas.pop(DeadLetterHeaders.__name__)
    lines = [f"{reason.value}: {meaning}" for reason, meaning in MEANINGS.items()]
    schemas[DeadLetterReason.__name__]["description"] = "\n".join(lines)
    return schemas


def _refs(names: Any) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _schema_ref(model: type[BaseModel]) -> str:
    return f"#/components/schemas/{model.__name__}"


def _ref_to(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _schema_ref(model)}


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {**parameter, "enum": [*map(str, parameter["enum"])]} if "enum" in parameter else parameter
        for name, parameter in parameters.items()
    }


if __name__ == "__main__":
    sys.stdout.write(text())
