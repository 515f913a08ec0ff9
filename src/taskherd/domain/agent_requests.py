"""Requests of agents: what an agent asks people for, and the one answer that it gets.

Rules, which ``tests/pure/domain/test_agent_requests.py`` checks as laws:

1. What is known of a request is the greatest report of it, by (closed, build number, seq, canonical JSON). So a closed
   request stays closed, whatever comes later; asking again takes a new id. Nor does an open report
   change a request that has an answer, which was given to what was asked then.
2. An open request waits for a person while its build is the latest, a start that has not failed, and its agent has not
   ended. Else it shows as withdrawn, which is derived and never part of the task state.
3. The first accepted answer stands. It is on its way to the agent until a report closes the request: with the same
   answer, which then is delivered, or in another way, which then is what became of the request.
4. An agent that fetches its answers itself (``pull``) has got one when it is accepted.
5. A task has at most ``MAX_OPEN`` open requests; a further one changes nothing and becomes a dead letter, or with
   ``pull`` is only counted. Nor does a request with ``pull`` beyond ``MAX_OF_BUILD`` change anything.

The task state has only what the document and the inbox need of open requests (``task.OpenAgentRequest``); everything
else is in a record of each request (``AgentRequestRecord``), which is loaded for the messages that need it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from taskherd.domain.blank import is_blank
from taskherd.domain.command_results import CommandRefused
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import format_rfc3339
from taskherd.domain.request_values import RequestState
from taskherd.domain.task import LastLog, OpenAgentRequest
from taskherd.domain.value import replace, value
from taskherd.domain.view import asking_requests, open_requests

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Answer
    from taskherd.domain.reports import AgentRequest
    from taskherd.domain.task import TaskState

MAX_OPEN: Final = 100
"""Maximum number of open requests of a task, with those whose answers are on their way."""

MAX_OF_BUILD: Final = 1_000
"""Maximum number of requests of a build, open or not, beyond which an agent that fetches its answers opens no more."""

MAX_QUOTED: Final = 200
"""Maximum number of characters of an answer in a refusal, and in the history."""

NO_LONGER_OPEN: Final = "The request is no longer open."
INVALID_ANSWER: Final = "Invalid answer."


@value(frozen=True, slots=True)
class RequestAnswer:
    """The accepted answer to a request, and who gave it; ``delivered_at`` is when it was known that the agent got it.

    ``actor_name`` is the name of the user ``actor_id``, empty if it is not known.
    """

    option_id: str | None
    text: str | None
    actor_id: UUID
    at: datetime
    command_id: UUID
    delivered_at: datetime | None = None
    actor_name: str = ""


@value(frozen=True, slots=True)
class AgentRequestRecord:
    """All that is known of a request: its greatest report and when that was received, and the answer.

    ``since`` is when the first report of it was received.
    """

    report: AgentRequest
    since: datetime
    received_at: datetime
    answer: RequestAnswer | None = None

    @property
    def is_closed(self) -> bool:
        """True if a report has closed the request."""
        return self.report.state is not RequestState.OPEN

    @property
    def wants_text(self) -> bool:
        """True if the answer is a text: the request is a question without options."""
        return not self.report.options


@dataclass(slots=True)
class RequestLedger:
    """The requests of a task that a batch refers to, while it is applied.

    Attributes:
        known: those of them that were reported already.
        changed: the ids of those that the batch has changed.
        numbers: how many requests each build has, of those builds that a new one with ``pull`` is about.
    """

    known: dict[UUID, AgentRequestRecord] = field(default_factory=dict)
    changed: set[UUID] = field(default_factory=set)
    numbers: Counter[int] = field(default_factory=Counter)

    def fold(self, state: TaskState, report: AgentRequest, now: datetime) -> tuple[TaskState, ReportOutcome]:
        """Fold a report, with its build number set, into the task's requests."""
        before = self.known.get(report.request_id)
        is_open = report.state is RequestState.OPEN
        if before is not None and (_rank(report) <= _rank(before.report) or (is_open and before.answer is not None)):
            return state, ReportOutcome.STALE
        if is_open and not _has_room(state, report):
            return state, ReportOutcome.REQUESTS_REFUSED if report.pull else ReportOutcome.REQUESTS_OVERFLOW
        build_number = report.sort_key[0]
        if before is None and report.pull and self.numbers[build_number] >= MAX_OF_BUILD:
            return state, ReportOutcome.REQUESTS_REFUSED
        if before is None:
            self.numbers[build_number] += 1
        answer = None if before is None else _settle(before.answer, report, now)
        record = AgentRequestRecord(report, now if before is None else before.since, now, answer)
        self.record(record)
        return _follow(state, record, now), ReportOutcome.APPLIED

    def record(self, record: AgentRequestRecord) -> None:
        """Note what is known of a request now."""
        self.known[record.report.request_id] = record
        self.changed.add(record.report.request_id)


def shown_state(state: TaskState, record: AgentRequestRecord) -> RequestState:
    """Return what became of a request, as users see it."""
    if record.is_closed:
        return record.report.state
    if record.answer is not None and record.answer.delivered_at is not None:
        return RequestState.ANSWERED
    return shown_states(state).get(record.report.request_id, RequestState.WITHDRAWN)


def shown_states(state: TaskState) -> dict[UUID, RequestState]:
    """Return how the requests show that the task state has, in which they are open."""
    shown = dict.fromkeys(state.agent_requests, RequestState.WITHDRAWN)
    for request in asking_requests(state):
        shown[request.id] = RequestState.ANSWERED if request.answered else RequestState.OPEN
    return shown


def refusal(state: TaskState, record: AgentRequestRecord, command: Answer) -> CommandRefused | None:
    """Return why an answer is refused, or None if it is accepted."""
    if shown_state(state, record) is not RequestState.OPEN:
        return CommandRefused(409, NO_LONGER_OPEN, _what_became(state, record))
    options = [option.id for option in record.report.options]
    if options and command.option_id not in options:
        return _invalid("option_id", f"One of these was expected: {', '.join(options)}.")
    if not options and command.option_id is not None:
        return _invalid("option_id", "The request has no options: answer it with a text.")
    if not options and is_blank(command.text or ""):
        return _invalid("text", "A text that is not blank was expected.")
    return None


def accept(
    state: TaskState, record: AgentRequestRecord, answer: RequestAnswer, now: datetime
) -> tuple[TaskState, AgentRequestRecord]:
    """Accept the answer to an open request: it is on its way, or with ``pull`` the agent has it."""
    request_id = record.report.request_id
    if record.report.pull:
        remaining = _without(state.agent_requests, request_id)
        last_log = LastLog(state.agent_requests[request_id].build_number, now)  # no report will end its wait
        inbox = replace(state.inbox, delivered_at=now)
        state = replace(state, agent_requests=remaining, inbox=inbox, last_log=last_log)
        return state, replace(record, answer=replace(answer, delivered_at=now))
    answered = replace(state.agent_requests[request_id], answered=True)
    return replace(state, agent_requests={**state.agent_requests, request_id: answered}), replace(record, answer=answer)


def question_for_text(state: TaskState) -> OpenAgentRequest | None:
    """Return the only open request if it is a question for a text, so that an input answers it; else None."""
    waiting = open_requests(state) if state.agent_requests else ()
    return waiting[0] if len(waiting) == 1 and waiting[0].wants_text else None


def answers_to_deliver(state: TaskState) -> dict[UUID, str | None]:
    """Return the requests whose answers are on their way, with the build's runner, None if it is not known yet."""
    requests = [request.id for request in asking_requests(state) if request.answered]
    if not requests:
        return {}
    named = state.runner.report if state.runner else None
    runner = named.runner if named is not None and named.build_number == state.build_number else None
    return dict.fromkeys(requests, runner)


def restore(state: TaskState, record: AgentRequestRecord) -> TaskState:
    """Return the task state with the request, if it is open: a worker of an earlier release saves a state without."""
    if record.report.request_id in state.agent_requests:
        return state
    return _follow(state, record, record.received_at)


def prune(state: TaskState) -> TaskState:
    """Forget the requests of earlier builds, whose agents cannot ask any more."""
    kept = {each.id: each for each in state.agent_requests.values() if each.build_number >= state.build_number}
    return state if len(kept) == len(state.agent_requests) else replace(state, agent_requests=kept)


def describe_answer(report: AgentRequest, answer: RequestAnswer) -> str:
    """Return an answer in words: the label of the option, or the text."""
    return _answer_text(report, answer.option_id, answer.text)


def shorten(text: str) -> str:
    """Return a text in one line of at most ``MAX_QUOTED`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTED else f"{line[: MAX_QUOTED - 1]}…"


def _rank(report: AgentRequest) -> tuple[bool, tuple[int, int], str]:
    return report.state is not RequestState.OPEN, report.sort_key, canonical_json(report)


def _has_room(state: TaskState, report: AgentRequest) -> bool:
    """Return whether the task may have this open request, which it has already, or whose build is over, or one more."""
    if report.request_id in state.agent_requests or report.sort_key[0] < state.build_number:
        return True
    return sum(each.build_number >= state.build_number for each in state.agent_requests.values()) < MAX_OPEN


def _settle(answer: RequestAnswer | None, report: AgentRequest, now: datetime) -> RequestAnswer | None:
    """Return our answer as the report that closes the request leaves it: delivered if that is what the agent got.

    The text to an option is not part of what the agent gets as the answer: it follows as an input.
    """
    if answer is None:
        return None
    is_same = report.option_id == answer.option_id and (report.option_id is not None or report.text == answer.text)
    if report.state is not RequestState.ANSWERED or not is_same:
        return replace(answer, delivered_at=None)
    return replace(answer, delivered_at=answer.delivered_at or now)


def _follow(state: TaskState, record: AgentRequestRecord, now: datetime) -> TaskState:
    """Let the task state have the request while its greatest report is open, unless its build is over."""
    report = record.report
    is_delivered = record.answer is not None and record.answer.delivered_at is not None
    if record.is_closed or is_delivered or report.sort_key[0] < state.build_number:
        return _close(state, report, now)
    request = OpenAgentRequest(
        report.request_id,
        *report.sort_key,
        report.kind,
        report.title,
        record.since,
        wants_text=record.wants_text,
        answered=record.answer is not None,
    )
    return replace(state, agent_requests={**state.agent_requests, request.id: request})


def _close(state: TaskState, report: AgentRequest, now: datetime) -> TaskState:
    if report.request_id not in state.agent_requests:
        return state
    after = replace(state, agent_requests=_without(state.agent_requests, report.request_id))
    if report.state not in {RequestState.ANSWERED, RequestState.EXPIRED}:
        return after
    # the agent goes on with its turn: as after an input, the next one waits until it says what it does
    return replace(after, inbox=replace(after.inbox, delivered_at=now))


def _without(requests: Mapping[UUID, OpenAgentRequest], request_id: UUID) -> dict[UUID, OpenAgentRequest]:
    return {each.id: each for each in requests.values() if each.id != request_id}


def _invalid(name: str, detail: str) -> CommandRefused:
    return CommandRefused(400, INVALID_ANSWER, None, ((name, detail),))


def _what_became(state: TaskState, record: AgentRequestRecord) -> str:
    """Say what became of a request that is not open: by whom it was answered, and when."""
    report, answer = record.report, record.answer
    reported = format_rfc3339(record.received_at)
    shown = shown_state(state, record)
    if answer is not None and shown is RequestState.ANSWERED and (answer.delivered_at or not record.is_closed):
        what = shorten(describe_answer(report, answer))
        return f"It was answered with “{what}” by {_who(answer)} at {format_rfc3339(answer.at)}."
    if shown is RequestState.ANSWERED:
        what = shorten(_answer_text(report, report.option_id, report.text))
        return f"It was answered with “{what}” without a person, as was reported at {reported}."
    lost = "" if answer is None else f" The answer of {_who(answer)} did not reach the agent."
    if shown is RequestState.EXPIRED:
        return f"It expired, as was reported at {reported}.{lost}"
    if record.is_closed:
        return f"It was withdrawn, as was reported at {reported}.{lost}"
    return f"It is withdrawn, because the agent that asked has ended, or its build is over.{lost}"


def _who(answer: RequestAnswer) -> str:
    return answer.actor_name or f"user {answer.actor_id}"


def _answer_text(report: AgentRequest, option_id: str | None, text: str | None) -> str:
    labels = {option.id: option.label for option in report.options}
    return labels.get(option_id, option_id) if option_id is not None else text or ""
