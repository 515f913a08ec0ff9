"""What an agent reports with its own token: which reports become of it, and whose words they are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.agents import handlers, log_ids, logs
from taskherd.api.agents.refused_logs import RefusedEntries, RefusedLogs
from taskherd.api.agents.schemas import AppStatusPatch, LogReport, LogSnapshot, UsageReport
from taskherd.api.context import RequestContext
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.domain.reports import AgentUsage, AppStatus, LogEntry, LogKind, LogSource, TaskLog
from taskherd.errors import Unavailable
from taskherd.store import agent_queries
from taskherd.store.agent_queries import GivenText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import ApiContext
    from taskherd.domain.reports import Report

TASK, OTHER = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
TIME = "2026-11-27T12:00:00Z"


class Agent:
    """An agent of the third build of a task, with what it was given, and what it has published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, entries: int = 4, size: int = 100) -> None:
        self.given: list[GivenText] = []
        self.asked: list[tuple[UUID, list[str], int]] = []
        self.claimed = False
        self.asked_for_claim = 0
        self.published: list[tuple[UUID, Sequence[Report]]] = []
        self.outage: Exception | None = None
        self.refused = RefusedLogs()
        self.time = 1_000.0
        self.api = SimpleNamespace(
            reader="reader",
            reports=self,
            refused_logs=self.refused,
            rate_limits=SimpleNamespace(
                log_entries=RateLimiter(1, entries, lambda: self.time),
                log_bytes=RateLimiter(10, size, lambda: self.time),
            ),
        )
        self.request = self.make_request()
        monkeypatch.setattr(agent_queries, "given_texts", self._given_texts)
        monkeypatch.setattr(agent_queries, "is_claimed", self._is_claimed)

    def make_request(self, body: Any = None, task: str = str(TASK), **query: str) -> RequestContext:
        """Make the agent's next request, and return it."""
        api = cast("ApiContext", self.api)
        self.request = RequestContext(api, "POST", {"id": task}, query, {}, body, logs.SnapshotQuery, agent=(TASK, 3))
        return self.request

    async def publish(self, task_id: UUID, reports: Sequence[Report]) -> None:
        """Take reports, as the publisher does."""
        if self.outage is not None:
            raise self.outage
        self.published.append((task_id, reports))

    async def add(self, *entries: dict[str, Any]) -> None:
        """Add entries to the log."""
        body = LogReport.model_validate({"entries": [{"time": TIME, **each} for each in entries]})
        response = await logs.add_entries(self.make_request(body))
        assert (response.status, response.body) == (204, b"")

    async def upload(self, *messages: dict[str, Any], task: str = str(TASK), **query: str) -> None:
        """Upload a snapshot."""
        body = LogSnapshot.model_validate({"messages": list(messages)})
        response = await logs.log_snapshot(self.make_request(body, task, **(query or {"format": "agentapi"})))
        assert (response.status, response.body) == (204, b"")

    def take(self) -> list[LogEntry]:
        """Return the entries that were published since the last call, all in reports of the build."""
        taken: list[LogEntry] = []
        for task_id, reports in self.published:
            assert task_id == TASK
            for report in reports:
                assert isinstance(report, TaskLog)
                assert (report.task_id, report.build_number, report.seq) == (TASK, 3, 0)
                taken += report.entries
        self.published.clear()
        return taken

    async def _given_texts(
        self, reader: object, task_id: UUID, texts: Sequence[str], *, max_bytes: int
    ) -> list[GivenText]:
        assert reader == "reader"
        self.asked.append((task_id, list(texts), max_bytes))
        return [each for each in self.given if each.text in texts]

    async def _is_claimed(self, reader: object, task_id: UUID, build_number: int) -> bool:
        assert (reader, task_id, build_number) == ("reader", TASK, 3)
        self.asked_for_claim += 1
        return self.claimed


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return an agent that was given nothing."""
    return Agent(monkeypatch, entries=2_500, size=1_000_000)


def shown(entries: Sequence[LogEntry]) -> list[tuple[int, str, str]]:
    """Return ids, types and contents."""
    return [(entry.id, entry.type.value, entry.content) for entry in entries]


@pytest.mark.parametrize(
    ("state", "reported"),
    [
        ("working", "working"),
        ("idle", "idle"),
        ("complete", "complete"),
        ("failure", "failed"),
        ("failed", "failed"),
    ],
)
async def test_what_an_agent_is_doing_becomes_a_report(agent: Agent, state: str, reported: str) -> None:
    """With a message and a link that are fit to be shown; both may be left out."""
    before = datetime.now(UTC)
    body = AppStatusPatch(state=state, message="Do\0ne.", uri="https://pr/1")
    response = await handlers.app_status(agent.make_request(body))
    assert (response.status, response.body) == (200, b"null")
    assert agent.request.log_fields == {"task_id": str(TASK), "build_number": 3}
    await handlers.app_status(agent.make_request(AppStatusPatch(state=state, uri="javascript:x")))
    await handlers.app_status(agent.make_request(AppStatusPatch(state=state)))
    ((task_id, (first,)), (_, (second,)), (_, (third,))) = agent.published
    assert task_id == TASK
    assert isinstance(first, AppStatus)
    assert isinstance(second, AppStatus)
    assert isinstance(third, AppStatus)
    assert (first.task_id, first.build_number, first.seq, first.state) == (TASK, 3, 0, reported)
    assert (first.message, first.uri, second.message, second.uri) == ("Done.", "https://pr/1", "", "")
    assert (third.message, third.uri) == ("", "")
    assert first.observed_at is not None
    assert second.observed_at is not None
    assert before <= first.observed_at <= second.observed_at <= datetime.now(UTC)
    assert first.observed_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("state", [None, "", "sleeping", "WORKING"])
async def test_a_state_that_there_is_not_is_refused(agent: Agent, state: str | None) -> None:
    """Without one there is nothing to report."""
    with pytest.raises(HTTPError) as raised:
        await handlers.app_status(agent.make_request(AppStatusPatch(state=state)))
    assert raised.value.response.status == 400
    assert orjson.loads(raised.value.response.body) == {
        "message": "Invalid state provided.",
        "validations": [{"field": "state", "detail": "State must be one of: complete, failure, working, idle."}],
    }
    assert agent.published == []


async def test_usage_becomes_a_report(agent: Agent) -> None:
    """With what the agent names of it."""
    body = UsageReport.model_validate({"model": "opus", "input_tokens": 7})
    response = await handlers.usage(agent.make_request(body))
    assert (response.status, response.body) == (204, b"")
    ((_, (report,)),) = agent.published
    assert isinstance(report, AgentUsage)
    assert (report.model, report.input_tokens, report.output_tokens) == ("opus", 7, None)


async def test_an_input_is_one_only_if_the_agent_was_given_it(agent: Agent) -> None:
    """Whatever white space it has; anything else is output, and has the agent's own numbers."""
    agent.given = [GivenText("Fixit", is_prompt=True, number=1), GivenText("yes", is_prompt=False, number=5)]
    await agent.add(
        {"id": 0, "type": "input", "content": "Fix\n\tit "},
        {"id": 1, "type": "output", "content": "yes"},
        {"id": 2, "type": "input", "content": "yes"},
        {"id": 3, "type": "input", "content": "Deploy it."},
    )
    assert shown(agent.take()) == [
        (log_ids.of_input(agent.given[0]), "input", "Fix\n\tit "),
        (log_ids.of_output(1), "output", "yes"),
        (log_ids.of_input(agent.given[1]), "input", "yes"),
        (log_ids.of_output(3), "output", "Deploy it."),
    ]
    assert agent.asked == [(TASK, ["Deployit.", "Fixit", "yes"], 64 * 1024)]


async def test_an_input_is_one_as_often_as_the_agent_was_given_it(agent: Agent) -> None:
    """The last of an agent's is the last that it was given; those before them are its own words."""
    agent.given = [GivenText("yes", is_prompt=False, number=number) for number in (5, 8)]
    await agent.add(*({"id": number, "type": "input", "content": "yes"} for number in (1, 2, 3)))
    assert shown(agent.take()) == [
        (log_ids.of_output(1), "output", "yes"),
        (log_ids.of_input(agent.given[0]), "input", "yes"),
        (log_ids.of_input(agent.given[1]), "input", "yes"),
    ]


async def test_what_a_runner_logs_is_left_out(agent: Agent) -> None:
    """But not what the agent only calls an input."""
    agent.claimed = True
    agent.given = [GivenText("yes", is_prompt=False, number=5)]
    await agent.add(
        {"id": 1, "type": "input", "content": "yes"},
        {"id": 2, "type": "input", "content": "no"},
        {"id": 3, "type": "output", "content": "yes"},
    )
    assert shown(agent.take()) == [(log_ids.of_output(2), "output", "no"), (log_ids.of_output(3), "output", "yes")]
    await agent.add({"id": 1, "type": "input", "content": "yes"})
    assert agent.published == []


async def test_without_inputs_nothing_is_looked_up(agent: Agent) -> None:
    """The usual case costs nothing; and who has claimed the build only matters for what the agent was given."""
    agent.claimed = True
    await agent.add({"id": 1, "type": "output", "content": "Reading"})
    assert (shown(agent.take()), agent.asked) == ([(log_ids.of_output(1), "output", "Reading")], [])
    await agent.add({"id": 2, "type": "input", "content": "Deploy it."})
    assert (shown(agent.take()), agent.asked_for_claim) == ([(log_ids.of_output(2), "output", "Deploy it.")], 0)


async def test_an_agent_makes_no_notice(agent: Agent) -> None:
    """A notice speaks for the system; every other kind stays, with what it says for programs."""
    await agent.add(
        {"id": 1, "type": "output", "content": "Beware", "kind": "notice"},
        {"id": 2, "type": "output", "content": "ls", "kind": "tool_call", "title": "List"},
    )
    notice, call = agent.take()
    assert (notice.kind, notice.content, notice.time) == (None, "Beware", NOON)
    assert (call.kind, call.title) == (LogKind.TOOL_CALL, "List")


async def test_many_entries_are_several_reports(agent: Agent) -> None:
    """Each has no more than a report may have, all are published together, and none that is empty."""
    for count in (1_000, 1_001):
        messages = [{"id": number, "role": "agent", "content": "."} for number in range(count)]
        await agent.upload(*messages)
        ((_, reports),) = agent.published
        assert [len(cast("TaskLog", report).entries) for report in reports] == [1_000, 1][: len(reports)]
        assert [entry.id for entry in agent.take()] == [log_ids.of_output(number) for number in range(count)]
        agent.time += 1_000
    await agent.upload()
    assert agent.published == []


async def test_a_snapshot_is_the_conversation(agent: Agent) -> None:
    """Its roles are sources; a message without a time has that of the request, and control characters go."""
    agent.given = [GivenText("Fixit", is_prompt=True, number=1)]
    before = datetime.now(UTC)
    await agent.upload(
        {"id": 0, "role": "user", "content": "Fix it", "time": TIME},
        {"id": 1, "role": "agent", "content": "Do\0ne."},
    )
    prompt, done = agent.take()
    assert (prompt.type, prompt.time, prompt.id) == (LogSource.INPUT, NOON, log_ids.of_input(agent.given[0]))
    assert (done.type, done.content, done.id) == (LogSource.OUTPUT, "Done.", log_ids.of_output(1))
    assert before <= done.time <= datetime.now(UTC)


async def test_a_snapshot_is_of_the_agents_own_task(agent: Agent) -> None:
    """Also of one that cannot be the id of any."""
    for task in (str(OTHER), "x"):
        with pytest.raises(HTTPError) as raised:
            await agent.upload({"id": 0, "role": "agent", "content": "Hello"}, task=task)
        assert raised.value.response.status == 404
    request = agent.make_request(LogSnapshot(messages=[]), format="agentapi")
    request.agent = None
    with pytest.raises(HTTPError) as raised:
        await logs.log_snapshot(request)
    assert raised.value.response.status == 404
    assert agent.published == []


@pytest.mark.parametrize("query", [{"format": "plain"}, {"format": ""}, {"x": "agentapi"}])
async def test_a_snapshot_has_one_format(agent: Agent, query: dict[str, str]) -> None:
    """It has to be named."""
    assert query_parameters.validate(logs.SnapshotQuery, {"format": "agentapi"}).format == "agentapi"
    with pytest.raises(HTTPError) as raised:
        await agent.upload({"id": 0, "role": "agent", "content": "Hello"}, **query)
    assert orjson.loads(raised.value.response.body) == {
        "message": "Query parameters have invalid values.",
        "validations": [
            {"field": "format", "detail": 'Query param "format" has invalid value: expected agentapi'},
        ],
    }


async def test_a_snapshot_has_two_roles(agent: Agent) -> None:
    """One message of another makes the whole of it invalid."""
    with pytest.raises(HTTPError) as raised:
        await agent.upload(
            {"id": 0, "role": "agent", "content": "Hello"}, {"id": 1, "role": "system", "content": "Obey"}
        )
    assert raised.value.response.status == 400
    assert orjson.loads(raised.value.response.body) == {
        "message": "Invalid agentapi payload structure.",
        "detail": "The role of a message must be user or agent.",
    }
    assert agent.published == []


async def test_a_log_grows_no_faster_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """By entries as by bytes, of all its texts; a refusal costs nothing, and a later one says what was refused."""
    agent = Agent(monkeypatch)
    await agent.add(*({"id": number, "type": "output", "content": "ä" * 10} for number in range(3)))
    assert len(agent.take()) == 3  # one entry and 40 bytes are left
    for body, seconds, size in (
        ([{"content": "a"}, {"content": "b"}], 1, 2),
        ([{"content": "ä" * 10, "title": "t" * 21, "kind": "tool_call"}], 1, 41),
        ([{"content": "x" * 41, "data": {"a": "b"}}], 1, 50),
        ([{"content": "x" * 60}], 2, 60),
    ):
        with pytest.raises(HTTPError) as raised:
            await agent.add(*({"id": 7, "type": "output", **each} for each in body))
        response = raised.value.response
        assert (response.status, response.headers["Retry-After"]) == (429, str(seconds)), body
        assert orjson.loads(response.body)["message"] == "The log of this task grows too fast. Please wait."
        refused = agent.refused.take(TASK)
        assert refused is not None
        assert (refused.entries, refused.bytes) == (len(body), size)
        assert timedelta(0) <= datetime.now(UTC) - refused.since < timedelta(minutes=1)
    await agent.add({"id": 8, "type": "output", "content": "x" * 40})
    assert shown(agent.take()) == [(log_ids.of_output(8), "output", "x" * 40)]
    with pytest.raises(HTTPError):
        await agent.upload({"id": 9, "role": "agent", "content": "x"})
    assert agent.published == []


async def test_a_log_says_first_what_was_refused(agent: Agent) -> None:
    """Once, with words of the system; if it cannot be published, the next time."""
    refused = RefusedEntries(7, 70, NOON)
    agent.refused.add(TASK, refused)
    agent.refused.add(OTHER, replace(refused, entries=99))
    agent.outage = Unavailable("no broker")
    with pytest.raises(Unavailable):
        await agent.add({"id": 1, "type": "output", "content": "Reading"})
    agent.outage = None
    await agent.add({"id": 1, "type": "output", "content": "Reading"})
    notice, entry = agent.take()
    assert (notice.type, notice.content, notice.kind) == (LogSource.OUTPUT, refused.notice, LogKind.NOTICE)
    assert notice.id == log_ids.of_notice(notice.time)
    assert shown([entry]) == [(log_ids.of_output(1), "output", "Reading")]
    await agent.add({"id": 2, "type": "output", "content": "Writing"})
    assert shown(agent.take()) == [(log_ids.of_output(2), "output", "Writing")]
    agent.refused.add(TASK, refused)
    await agent.add()
    assert [entry.kind for entry in agent.take()] == [LogKind.NOTICE]


async def test_an_outage_without_a_refusal_makes_no_notice(agent: Agent) -> None:
    """Nothing was refused then."""
    agent.outage = Unavailable("no broker")
    with pytest.raises(Unavailable):
        await agent.add({"id": 1, "type": "output", "content": "Reading"})
    assert agent.refused.take(TASK) is None
