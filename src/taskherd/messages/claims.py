"""What runners ask the worker: to begin a build, whose their tasks are, and for their queues; and the replies.

Each is a request with ``reply_to`` and ``correlation_id``, like a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

import orjson
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome, Ownership
from taskherd.domain.value import value
from taskherd.errors import Malformed
from taskherd.messages.decoding import InvalidMessage, Undecodable, decode, too_large
from taskherd.messages.fields import BuildNumber, IncomingModel, RunnerName
from taskherd.messages.limits import MAX_BODY_BYTES, MAX_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

BUILD_CLAIM: Final = "build.claim"
TASK_OWNED: Final = "task.owned"
RUNNER_HELLO: Final = "runner.hello"


@value(frozen=True, slots=True)
class OwnershipQuery:
    """The question of a runner which of these tasks are its own."""

    task_ids: tuple[UUID, ...]
    runner: str


@value(frozen=True, slots=True)
class RunnerHello:
    """The message of a runner that it is there and needs the queues of itself and its pool."""

    runner: str
    pool: str


RunnerMessage: TypeAlias = BuildClaim | OwnershipQuery | RunnerHello


class BuildClaimIn(IncomingModel):
    """A claim to begin a build; the first runner whose claim is committed wins."""

    type: Literal["build.claim"]
    task_id: UUID
    build_number: BuildNumber
    runner: RunnerName

    def to_domain(self) -> BuildClaim:
        """Return the claim as a domain value."""
        return BuildClaim(self.task_id, self.build_number, self.runner)


class OwnershipQueryIn(IncomingModel):
    """A question which of these tasks are the runner's own."""

    type: Literal["task.owned"]
    task_ids: Annotated[list[UUID], Field(max_length=MAX_ELEMENTS)]
    runner: RunnerName

    def to_domain(self) -> OwnershipQuery:
        """Return the question as a value."""
        return OwnershipQuery(tuple(self.task_ids), self.runner)


class RunnerHelloIn(IncomingModel):
    """A runner that is there: the worker declares and binds the queues of the runner and of its pool."""

    type: Literal["runner.hello"]
    runner: RunnerName = Field(description="Must not be the name of a pool.")
    pool: RunnerName = Field(description="Must not be the name of a runner.")

    def to_domain(self) -> RunnerHello:
        """Return the message as a value."""
        return RunnerHello(self.runner, self.pool)


ClaimIn: TypeAlias = Annotated[BuildClaimIn | OwnershipQueryIn | RunnerHelloIn, Field(discriminator="type")]


class ClaimReply(BaseModel):
    """The reply to a ``build.claim``."""

    granted: bool
    by: str | None = Field(None, description="The other runner that has claimed the build.")
    gone: bool | None = Field(
        None, description="True if the task does not exist or is deleted, or the build is not its latest start."
    )


class OwnershipReply(BaseModel):
    """The reply to a ``task.owned``."""

    tasks: dict[UUID, Ownership] = Field(
        description="owned; gone: it does not exist or is deleted; elsewhere: another runner has taken it over. "
        "A task whose state is damaged is left out: keep its files."
    )
    unknown: list[UUID] = Field(
        default=[],
        description="The gone ones that the database has no record of: they were not deleted, so keep their files.",
    )


class HelloReply(BaseModel):
    """The reply to a ``runner.hello``: both queues exist."""

    ok: Literal[True]


_CLAIM: TypeAdapter[ClaimIn] = TypeAdapter(ClaimIn)


def encode_claim(claim: BuildClaim) -> bytes:
    """Encode a claim."""
    fields = {"task_id": str(claim.task_id), "build_number": claim.build_number, "runner": claim.runner}
    return orjson.dumps({"type": BUILD_CLAIM, **fields})


def encode_ownership_query(query: OwnershipQuery) -> bytes:
    """Encode a question about ownership."""
    return orjson.dumps({"type": TASK_OWNED, "task_ids": [*map(str, query.task_ids)], "runner": query.runner})


def encode_hello(hello: RunnerHello) -> bytes:
    """Encode the message of a runner that it is there."""
    return orjson.dumps({"type": RUNNER_HELLO, "runner": hello.runner, "pool": hello.pool})


def decode_runner_message(body: bytes, original_length: int | None = None) -> RunnerMessage | InvalidMessage:
    """Decode a body. Invalid input is returned, not raised.

    ``original_length`` is the size of a body of which only the beginning was received.
    """
    if original_length is not None or len(body) > MAX_BODY_BYTES:
        return too_large(body, original_length)
    try:
        return decode(_CLAIM, body, {}).to_domain()
    except Undecodable as error:
        return error.to_invalid_message(body)


def claim_reply(decision: ClaimDecision) -> bytes:
    """Encode the reply to a claim."""
    fields: dict[str, Any] = {"granted": decision.granted}
    if decision.by is not None:
        fields["by"] = decision.by
    if decision.outcome is ClaimOutcome.GONE:
        fields["gone"] = True
    return orjson.dumps(fields)


def ownership_reply(tasks: Mapping[UUID, Ownership | None]) -> bytes:
    """Encode the reply to a question about ownership; None stands for a task of which there is no record."""
    reply: dict[str, Any] = {
        "tasks": {str(task_id): (ownership or Ownership.GONE).value for task_id, ownership in tasks.items()}
    }
    if unknown := [str(task_id) for task_id, ownership in tasks.items() if ownership is None]:
        reply["unknown"] = unknown
    return orjson.dumps(reply)


def hello_reply() -> bytes:
    """Encode the reply to a hello whose queues exist; ``replies.refused_reply`` encodes a refusal."""
    return orjson.dumps({"ok": True})


def decode_claim_reply(body: bytes) -> ClaimDecision:
    """Decode the reply to a claim. A repeated grant counts as granted.

    Raises ``Malformed`` if the worker refused the message itself (``refused``), or if the body is no reply to a claim.
    """
    try:
        reply = ClaimReply.model_validate_json(body)
    except ValidationError as error:
        if refusal := decode_hello_reply(body):  # all messages of runners are refused in the same words
            raise Malformed("refused", refusal) from None
        raise Malformed("not_a_reply", str(error)) from None
    if reply.granted:
        return ClaimDecision(ClaimOutcome.GRANTED)
    return ClaimDecision(ClaimOutcome.GONE) if reply.gone else ClaimDecision(ClaimOutcome.TAKEN, reply.by)


def decode_ownership_reply(body: bytes) -> dict[UUID, Ownership | None]:
    """Decode the reply to a question about ownership; None stands for a task of which there is no record.

    Raises ``Malformed`` if the body is not one.
    """
    try:
        reply = OwnershipReply.model_validate_json(body)
    except ValidationError as error:
        raise Malformed("not_a_reply", str(error)) from None
    return {**reply.tasks, **dict.fromkeys(reply.unknown)}


def decode_hello_reply(body: bytes) -> str | None:
    """Return why a hello was refused, or None if the queues exist. Raises ``Malformed`` if the body is no reply."""
    try:
        match orjson.loads(body):
            case {"ok": True}:
                return None
            case {"ok": False, "error": {"message": str() as message, **rest}}:
                return f"{message} {rest['detail']}" if rest.get("detail") else message
            case _:
                raise Malformed("not_a_reply")
    except orjson.JSONDecodeError as error:
        raise Malformed("not_a_reply", str(error)) from None
