"""The rules of agents' requests one by one, on the unchanged domain and, by ``test_mutations``, on mutated ones."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentExit, AgentState, ExitReason, JobStatus, Transition
from taskherd.domain.request_values import RequestState
from taskherd.domain.value import replace
from tests.harness.agent_requests import IDS, agent_request, approval
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_fold import build, folded, status
from tests.pure.domain.test_inbox import active

if TYPE_CHECKING:
    from taskherd.domain.reports import AgentRequest, Report
    from tests.pure.domain.mutated_core import Core

LATER = NOON + timedelta(seconds=1)
QUESTION, APPROVAL = IDS[:2]
ALICE = UUID(int=0xA11CE)


def asked(core: Core, *reports: AgentRequest, state: Any = None) -> tuple[Any, Any]:
    """Return the task state and the ledger after these reports, of a task whose agent runs by default."""
    state, ledger = state or active(core), core.agent_requests.RequestLedger()
    for report in reports:
        state, outcome = ledger.fold(state, report, NOON)
        assert outcome is ReportOutcome.APPLIED
    return state, ledger


def answered(core: Core, state: Any, ledger: Any, request_id: UUID, **fields: Any) -> Any:
    """Return the task state after the answer to a request."""
    answer = core.agent_requests.RequestAnswer(**{"option_id": None, "text": None, **fields}, actor_id=ALICE, at=NOON,
                                               command_id=UUID(int=1))  # fmt: skip
    state, record = core.agent_requests.accept(state, ledger.known[request_id], answer, NOON)
    ledger.record(record)
    return state


def test_the_greatest_report_counts(core: Core) -> None:
    """A closed report beats any open one, then the build number, ``seq`` and canonical JSON decide; equal is stale."""
    rising = [
        agent_request(build_number=1, seq=2, title="a"),
        agent_request(build_number=1, seq=2, title="b"),
        agent_request(build_number=1, seq=3, title="a"),
        agent_request(build_number=2, seq=0, title="a"),
        agent_request(build_number=1, seq=0, state=RequestState.WITHDRAWN),
        agent_request(build_number=1, seq=1, state=RequestState.EXPIRED),
    ]
    state, ledger = asked(core, *rising)
    for report in (*rising, agent_request(build_number=9, seq=9)):
        assert ledger.fold(state, report, LATER) == (state, ReportOutcome.STALE)
    assert ledger.known[QUESTION].report == rising[-1]
    assert ledger.changed == {QUESTION}


def test_a_request_is_as_old_as_its_first_report(core: Core) -> None:
    """A later report of it changes when it was last heard of, and nothing else about its age."""
    state, ledger = asked(core, agent_request())
    again = agent_request(seq=2, title="Which branch?")
    state, _ = ledger.fold(state, again, LATER)
    assert ledger.known == {QUESTION: core.agent_requests.AgentRequestRecord(again, NOON, LATER, None)}
    assert state.agent_requests[QUESTION].since == NOON


def test_when_a_request_waits_for_a_person(core: Core) -> None:
    """While its build is the latest, a start that has not failed, its agent has not ended, and it is not answered."""
    state, ledger = asked(core, agent_request(), approval(seq=0), approval(IDS[2], 2))
    assert [request.id for request in core.view.open_requests(state)] == [APPROVAL, QUESTION]
    assert core.view.open_requests(folded(core, [build(seq=9, job=JobStatus.CANCELING)], state))
    over: list[Report] = [
        build(seq=9, job=JobStatus.FAILED),
        build(seq=9, job=JobStatus.CANCELED),
        build(3, job=JobStatus.SUCCEEDED),
        build(2, transition=Transition.STOP),
        AgentExit(task_id=TASK, build_number=1, seq=9, why=ExitReason.LOST),
    ]
    for report in over:
        assert not core.view.open_requests(folded(core, [report], state))
    stopping = folded(core, [build(2, transition=Transition.STOP)], asked(core, agent_request(build_number=2))[0])
    assert not core.view.open_requests(stopping)
    assert not core.view.open_requests(replace(state, deletion=core.task.Deletion()))
    state = answered(core, state, ledger, APPROVAL, option_id="allow")
    assert [request.id for request in core.view.open_requests(state)] == [QUESTION]
    assert [request.id for request in core.view.asking_requests(state)] == [APPROVAL, QUESTION]


def test_an_agent_that_asks_is_busy(core: Core) -> None:
    """So it is until a report closes the request; then the next input waits, unless the agent got nothing."""
    idle = active(core, status(AgentState.IDLE))
    state, ledger = asked(core, agent_request(), state=idle)
    assert (core.inbox.is_busy(state), core.inbox.is_busy(idle)) == (True, False)
    state = answered(core, state, ledger, QUESTION, text="core")
    assert core.inbox.is_busy(state)
    for closed, ready in (
        (RequestState.ANSWERED, False),
        (RequestState.EXPIRED, False),
        (RequestState.WITHDRAWN, True),
    ):
        after, _ = asked(core, agent_request(), agent_request(seq=2, state=closed), state=idle)
        assert (core.inbox.is_busy(after), core.inbox.is_ready(after, NOON)) == (False, ready)
    pulled, ledger = asked(core, agent_request(pull=True), state=idle)
    pulled = answered(core, pulled, ledger, QUESTION, text="core")
    assert (core.inbox.is_busy(pulled), core.inbox.is_ready(pulled, NOON)) == (False, False)


def test_an_answer_is_delivered_if_the_report_has_the_same(core: Core) -> None:
    """Option and text are compared; of an answer with an option only that, because its text follows as an input."""
    cases: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
        ({"option_id": "allow"}, {"option_id": "allow", "text": "x"}, True),
        ({"option_id": "allow"}, {"option_id": "reject"}, False),
        ({"option_id": "allow"}, {}, False),
        ({"text": "core"}, {"text": "core"}, True),
        ({"text": "core"}, {"text": "api"}, False),
        ({"text": "core"}, {"option_id": "allow", "text": "core"}, False),
    ]
    for given, closing, is_delivered in cases:
        state, ledger = asked(core, approval(QUESTION))
        state = answered(core, state, ledger, QUESTION, **given)
        for report in (
            approval(QUESTION, seq=2),
            approval(QUESTION, seq=3, state=RequestState.ANSWERED, **closing),
            approval(QUESTION, seq=4, state=RequestState.ANSWERED, **closing),
        ):
            assert ledger.known[QUESTION].answer.delivered_at is None or report.seq == 4
            state, _ = ledger.fold(state, report, NOON + timedelta(seconds=report.seq))
        delivered_at = ledger.known[QUESTION].answer.delivered_at
        assert delivered_at == (NOON + timedelta(seconds=3) if is_delivered else None)
        state, _ = ledger.fold(state, approval(QUESTION, seq=9, state=RequestState.WITHDRAWN, **closing), LATER)
        assert ledger.known[QUESTION].answer.delivered_at is None


def test_what_was_answered_is_not_asked_again(core: Core) -> None:
    """An open report changes nothing once there is an answer, not even one of the next build."""
    state, ledger = asked(core, approval(), approval(seq=2, title="Run make check"))
    state = answered(core, state, ledger, APPROVAL, option_id="allow")
    for repeated in (approval(seq=3, title="Run make clean"), approval(build_number=2), approval(seq=3, pull=True)):
        assert ledger.fold(state, repeated, LATER) == (state, ReportOutcome.STALE)
    assert ledger.known[APPROVAL].report.title == "Run make check"


def test_how_many_a_build_may_have(core: Core) -> None:
    """An agent that fetches its answers opens a thousand in a build, closed ones included; others are not limited."""
    state, ledger = asked(core)
    for number in range(1, 1_001):
        report = agent_request(UUID(int=number), pull=True, state=RequestState.WITHDRAWN)
        state, outcome = ledger.fold(state, report, NOON)
        assert outcome is ReportOutcome.APPLIED
    for changed in (RequestState.OPEN, RequestState.WITHDRAWN):
        more = agent_request(UUID(int=1_001), pull=True, state=changed)
        assert ledger.fold(state, more, NOON) == (state, ReportOutcome.REQUESTS_REFUSED)
    assert UUID(int=1_001) not in ledger.known
    again = agent_request(UUID(int=1), pull=True, state=RequestState.WITHDRAWN, seq=9)
    assert ledger.fold(state, again, NOON)[1] is ReportOutcome.APPLIED, "it is no further one"
    later = agent_request(UUID(int=1_002), pull=True, build_number=2)
    assert ledger.fold(state, later, NOON)[1] is ReportOutcome.APPLIED
    assert ledger.fold(state, agent_request(UUID(int=1_003)), NOON)[1] is ReportOutcome.APPLIED


def test_how_many_may_be_open(core: Core) -> None:
    """A task may have a hundred, of its latest build and later ones; one that it has already is no further one."""
    state, ledger = asked(core, *(agent_request(UUID(int=number)) for number in range(1, 101)))
    assert ledger.fold(state, agent_request(UUID(int=101)), NOON) == (state, ReportOutcome.REQUESTS_OVERFLOW)
    assert ledger.fold(state, agent_request(UUID(int=1), seq=2), NOON)[1] is ReportOutcome.APPLIED
    closed = agent_request(UUID(int=102), state=RequestState.WITHDRAWN)
    assert ledger.fold(state, closed, NOON)[1] is ReportOutcome.APPLIED
    later = folded(core, [build(2)], state)
    assert ledger.fold(later, agent_request(UUID(int=103), 2), NOON)[1] is ReportOutcome.APPLIED
    assert ledger.fold(state, agent_request(UUID(int=104), seq=0), NOON)[1] is ReportOutcome.REQUESTS_OVERFLOW
    busy, ledger = asked(core, *(agent_request(UUID(int=number), 2) for number in range(1, 101)), state=later)
    earlier = agent_request(UUID(int=105), 1, seq=9)
    assert ledger.fold(busy, earlier, NOON) == (busy, ReportOutcome.APPLIED), "it shows as withdrawn at once"
    assert core.agent_requests.prune(later).agent_requests == {}
    assert core.agent_requests.prune(state) is state


def test_which_answers_are_to_be_delivered(core: Core) -> None:
    """Those that are on their way, to the runner that this build named, and not those that their agents fetch."""
    running = active(core, build(seq=1, job=JobStatus.SUCCEEDED, runner="r1"))
    state, ledger = asked(core, agent_request(), approval(), approval(IDS[2], pull=True), state=running)
    assert core.agent_requests.answers_to_deliver(state) == {}
    state = answered(core, state, ledger, APPROVAL, option_id="allow")
    state = answered(core, state, ledger, IDS[2], option_id="allow")
    assert core.agent_requests.answers_to_deliver(state) == {APPROVAL: "r1"}
    assert core.agent_requests.shown_states(state) == {QUESTION: RequestState.OPEN, APPROVAL: RequestState.ANSWERED}
    state, ledger = asked(core, agent_request(build_number=2), state=folded(core, [build(2)], running))
    state = answered(core, state, ledger, QUESTION, text="core")
    assert core.agent_requests.answers_to_deliver(state) == {QUESTION: None}
    state, ledger = asked(core, agent_request())
    assert state.runner is None
    assert core.agent_requests.answers_to_deliver(answered(core, state, ledger, QUESTION, text="x")) == {QUESTION: None}


def test_which_question_an_input_answers(core: Core) -> None:
    """The only one that is open, if it is for a text."""
    state, ledger = asked(core, agent_request())
    question = core.agent_requests.question_for_text(state)
    assert question is not None
    assert question.id == QUESTION
    assert core.agent_requests.question_for_text(active(core)) is None
    assert core.agent_requests.question_for_text(asked(core, approval())[0]) is None
    assert core.agent_requests.question_for_text(asked(core, agent_request(), agent_request(IDS[2]))[0]) is None
    assert core.agent_requests.question_for_text(answered(core, state, ledger, QUESTION, text="x")) is None


def test_a_state_without_its_requests_gets_them_back(core: Core) -> None:
    """A record that is open is restored into the state of its build, and no other."""
    state, ledger = asked(core, agent_request())
    record = ledger.known[QUESTION]
    empty = replace(state, agent_requests={})
    assert core.agent_requests.restore(empty, record) == state
    assert core.agent_requests.restore(state, record) is state
    closed = replace(record, report=replace(record.report, state=RequestState.EXPIRED))
    assert core.agent_requests.restore(empty, closed) is empty
    assert core.agent_requests.restore(folded(core, [build(2)], empty), record).agent_requests == {}
    answer = core.agent_requests.RequestAnswer(None, "core", ALICE, NOON, UUID(int=1))
    restored = core.agent_requests.restore(empty, replace(record, answer=answer)).agent_requests
    assert restored == {QUESTION: replace(state.agent_requests[QUESTION], answered=True)}
    fetched = replace(record, answer=replace(answer, delivered_at=NOON))
    assert core.agent_requests.restore(empty, fetched) is empty


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a  b\n c ", "a b c"),
        ("w" * 200, "w" * 200),
        ("w" * 201, "w" * 199 + "…"),
    ],
)
def test_a_quoted_answer_is_one_line(core: Core, text: str, line: str) -> None:
    """It has at most 200 characters."""
    assert core.agent_requests.shorten(text) == line
