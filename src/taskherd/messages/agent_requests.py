"""Requests of agents in JSON: the fields with which runners and agents report them.

People decide by these texts. Characters that control the direction of text, which can make a command look like another
one, are therefore shown by their numbers; only the ids of options stay as they are, because the agent gets them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints

from taskherd.directory_file.run import ToolKind
from taskherd.domain import request_values as domain
from taskherd.messages import texts
from taskherd.messages.fields import IncomingModel, Input, Instant, Name, StrictText
from taskherd.messages.limits import MAX_DATA_BYTES, MAX_OPTION_CHARACTERS, MAX_OPTIONS
from taskherd.messages.texts import SanitizeCounts


def _check_title(text: str) -> str:
    if not texts.sanitize_title(text, {}):
        raise ValueError("a text that is not blank was expected")
    return text


def _check_option_id(text: str) -> str:
    if texts.sanitize_name(text, {}) != text:
        raise ValueError("a text without control characters was expected")
    return text


def _check_input(data: Any) -> Any:
    texts.canonical_data(data, {}, visible=True)
    return data


Title = Annotated[str, StringConstraints(strict=True, min_length=1), AfterValidator(_check_title)]
OptionId = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=MAX_OPTION_CHARACTERS),
    AfterValidator(_check_option_id),
]
ToolInput: TypeAlias = Annotated[Any, AfterValidator(_check_input)]


class RequestOptionIn(IncomingModel):
    """One of the answers to choose from."""

    id: OptionId = Field(description="Unique within the request; the agent gets it back as it is.")
    label: Name = Field(description="In one line; a blank one is replaced by the id.")
    kind: domain.OptionKind


class RequestToolIn(IncomingModel):
    """The tool that an agent wants to use."""

    kind: ToolKind = Field(description="As in ACP. The agent's own word: a convenience, not a boundary.")
    name: StrictText | None = None
    input: ToolInput = Field(None, description=f"At most {MAX_DATA_BYTES} bytes of JSON.")

    def to_domain(self, counts: SanitizeCounts) -> domain.RequestTool:
        """Return the tool as a domain value, with sanitized texts."""
        return domain.RequestTool(
            self.kind,
            texts.sanitize_title(self.name or "", counts) or None,
            None if self.input is None else texts.canonical_data(self.input, counts, visible=True),
        )


def _one_line(label: str, counts: SanitizeCounts) -> str:
    return " ".join(texts.sanitize_name(label, counts).split())


def _check_options(options: Sequence[RequestOptionIn]) -> Sequence[RequestOptionIn]:
    if len({option.id for option in options}) < len(options):
        raise ValueError("ids that are unique within the request were expected")
    return options


class AgentRequestFields(IncomingModel):
    """A request of an agent as a whole: what it asks people for, and what became of it."""

    kind: domain.RequestKind
    title: Title = Field(description="What the agent asks, in a line; one of more than 200 characters is cut.")
    detail: StrictText | None = Field(None, description="More than 16 KiB are cut.")
    tool: RequestToolIn | None = None
    options: Annotated[list[RequestOptionIn], Field(max_length=MAX_OPTIONS), AfterValidator(_check_options)] | None = (
        Field(
            None,
            description="An approval without any gets `allow` and `reject`; a question without any wants text.",
        )
    )
    state: domain.RequestState
    option_id: OptionId | None = Field(None, description="Of an answered request: the option that the agent got.")
    text: Input | None = Field(None, description="Of an answered request: the text that the agent got.")
    expires_at: Instant | None = Field(None, description="When the runner answers for people; it alone judges that.")
    pull: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="The agent fetches the answer itself; no work request delivers it."
    )

    def to_fields(self, counts: SanitizeCounts) -> dict[str, Any]:
        """Return the fields of ``domain.reports.AgentRequest`` but its id; only answered requests have an answer."""
        options = tuple(
            domain.RequestOption(option.id, _one_line(option.label, counts) or option.id, option.kind)
            for option in self.options or ()
        )
        if not options and self.kind is domain.RequestKind.APPROVAL:
            options = domain.DEFAULT_OPTIONS
        is_answered = self.state is domain.RequestState.ANSWERED
        return {
            "kind": self.kind,
            "title": texts.sanitize_title(self.title, counts),
            "detail": texts.sanitize_detail(self.detail or "", counts),
            "tool": None if self.tool is None else self.tool.to_domain(counts),
            "options": options,
            "state": self.state,
            "option_id": self.option_id if is_answered else None,
            "text": None if self.text is None or not is_answered else texts.sanitize(self.text, counts),
            "expires_at": self.expires_at,
            "pull": bool(self.pull),
        }
