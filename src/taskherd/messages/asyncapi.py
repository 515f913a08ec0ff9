"""The AsyncAPI 3 document of everything taskherd says and hears over AMQP, generated from the models.

``python -m taskherd.messages.asyncapi > docs/asyncapi.yaml`` writes it anew. It is told from the worker's side: what it
receives, others send.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages import commands, events, reports, work
from taskherd.messages.dead_letters import MEANINGS, DeadLetterHeaders
from taskherd.messages.limits import ELEMENTS
from taskherd.messages.replies import AcceptedReply, RefusedReply

PREFIX = "taskherd"
_DELIVERY_LIMIT = 200
_JSON = "application/json"

REPORTS: dict[str, type[BaseModel]] = {
    "workspace.build": reports.WorkspaceBuildIn,
    "agent.lifecycle": reports.AgentLifecycleIn,
    "agent.heartbeat": reports.AgentHeartbeatIn,
    "agent.disconnected": reports.AgentDisconnectedIn,
    "app.health": reports.AppHealthIn,
    "app.status": reports.AppStatusIn,
    "task.log": reports.TaskLogIn,
    "task.input": reports.TaskInputIn,
}
COMMANDS: dict[str, type[BaseModel]] = {
    "task.create": commands.CreateIn,
    "task.delete": commands.DeleteIn,
    "task.update_input": commands.UpdateInputIn,
    "task.send": commands.SendIn,
    "task.pause": commands.PauseIn,
    "task.resume": commands.ResumeIn,
}
WORK: dict[str, type[BaseModel]] = {
    "workspace.start": work.WorkspaceStart,
    "workspace.stop": work.WorkspaceStop,
    "workspace.delete": work.WorkspaceDelete,
    "agent.input": work.AgentInput,
}
REPLIES: dict[str, type[BaseModel]] = {"accepted": AcceptedReply, "refused": RefusedReply}


def document() -> dict[str, Any]:
    """The AsyncAPI document, in JSON's own types."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "taskherd",
            "version": "1.0.0",
            "license": {"name": "Apache-2.0"},
            "description": (
                "Generated from taskherd.messages; do not edit. Unknown fields are ignored, an unknown type is a dead"
                " letter. Times come in as RFC 3339 with an offset and go out in UTC with six fractional digits and Z."
            ),
        },
        "defaultContentType": _JSON,
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def text() -> str:
    """The document as YAML."""
    return yaml.safe_dump(document(), sort_keys=False, width=118, allow_unicode=True)


def schema_of(message: str) -> dict[str, Any]:
    """The JSON schema of a message's payload, complete in itself, for checking samples; KeyError if there is none."""
    components = document()["components"]
    return {**components["messages"][message]["payload"], "components": {"schemas": components["schemas"]}}


def _channels() -> dict[str, Any]:
    task_id = {"taskId": {"description": "The task's UUID."}}
    target = {
        "type": {"enum": list(WORK)},
        "target": {"description": "A runner's name, or a pool's."},
    }
    return {
        "reports": _exchange(f"{PREFIX}.reports", "{taskId}", [*REPORTS, "reports"], task_id),
        "reportsQueue": _queue(f"{PREFIX}.reports", [*REPORTS, "reports"], "Bound to the exchange with #."),
        "commands": _exchange(f"{PREFIX}.commands", "{type}", [*COMMANDS], {"type": {"enum": list(COMMANDS)}}),
        "commandsQueue": _queue(f"{PREFIX}.commands", [*COMMANDS], "Bound to the exchange with #."),
        "replies": {
            "address": None,
            "description": "The asker's own queue, named in reply_to, through the default exchange.",
            "messages": _refs(REPLIES),
        },
        "events": _exchange(f"{PREFIX}.events", "task.{kind}", ["events"], {"kind": {"enum": list(events.EventKind)}}),
        "work": _exchange(f"{PREFIX}.work", "{type}.{target}", [*WORK], target),
        "workQueue": _queue(
            f"{PREFIX}.work.{{target}}",
            [*WORK],
            "Of a pool, shared by its runners, or of one runner; bound to the exchange with *.*.{target}.",
            dead_letters=False,
        ),
        "dead": _exchange(f"{PREFIX}.dead", "{routingKey}", ["dead"], {"routingKey": {"description": "As it came."}}),
        "deadQueue": _queue(f"{PREFIX}.dead", ["dead"], "Bound to the exchange with #.", dead_letters=False),
    }


def _exchange(name: str, address: str, messages: list[str], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    exchange = {"name": name, "type": "topic", "durable": True, "autoDelete": False}
    return {
        "address": address,
        "description": f"Exchange {name}; the address is the routing key.",
        "messages": _refs(messages),
        **({"parameters": _plain(parameters)} if parameters else {}),
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _queue(name: str, messages: list[str], description: str, *, dead_letters: bool = True) -> dict[str, Any]:
    limits = f" Quorum queue, x-delivery-limit {_DELIVERY_LIMIT}, dead letters to {PREFIX}.dead."
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
        "takeReports": _operation("receive", "reportsQueue", "Reports, each or many at once."),
        "takeCommands": {**_operation("receive", "commandsQueue", "Answered where reply_to is set."), "reply": reply},
        "tellChanges": _operation("send", "events", "Change events, often several in a message; repeats are possible."),
        "askForWork": _operation("send", "work", "Repeated with backoff until a report answers."),
        "setAside": _operation("send", "dead", "What could not be taken, as it came, with the reason in its headers."),
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _messages() -> dict[str, Any]:
    headers = DeadLetterHeaders.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
    headers.pop("$defs", None)
    batch = {"type": "array", "minItems": 1, "items": {"$ref": _schema_ref(events.CloudEvent)}}
    several = {
        "type": "array",
        "maxItems": ELEMENTS,
        "items": {"oneOf": [_ref_to(model) for model in REPORTS.values()]},
    }
    correlation = {"location": "$message.header#/correlation_id", "description": "The correlation_id property."}
    return {
        **{name: _message(name, _ref_to(model)) for name, model in REPORTS.items()},
        "reports": {**_message("reports", several), "summary": "Several reports; each is judged alone."},
        **{name: {**_message(name, _ref_to(model)), "correlationId": correlation} for name, model in COMMANDS.items()},
        **{name: {**_message(name, _ref_to(model)), "correlationId": correlation} for name, model in REPLIES.items()},
        "events": {**_message("events", batch), "contentType": events.CONTENT_TYPE},
        **{name: _message(name, _ref_to(model)) for name, model in WORK.items()},
        "dead": {"name": "dead", "headers": headers, "summary": "A message as it came.", "payload": {}},
    }


def _message(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "contentType": _JSON, "payload": payload}


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [*REPORTS.values(), *COMMANDS.values(), *REPLIES.values(), *WORK.values()]
    models += [events.CloudEvent, DeadLetterHeaders]
    told: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in models]
    _, found = models_json_schema(told, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = found["$defs"]
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


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {**said, "enum": [*map(str, said["enum"])]} if "enum" in said else said
        for name, said in parameters.items()
    }


if __name__ == "__main__":
    sys.stdout.write(text())
