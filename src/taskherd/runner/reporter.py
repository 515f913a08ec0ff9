"""What is said of a task: reports with a seq that rises whatever the clock does, put into the task's outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from taskherd.domain import reports
from taskherd.messages import texts
from taskherd.messages.reports import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskherd.domain.reports import AgentState, Health, InputOutcome, JobStatus, Lifecycle, LogEntry, Report
    from taskherd.messages.work import BaseWorkRequest
    from taskherd.runner.journal import Journal
    from taskherd.runner.outbox import Checkpoint, Outbox

APP_SLUG = "agent"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_AHEAD = 600_000_000
"""How far ahead, in microseconds, the journal's ceiling is set: it is written about every ten minutes."""


class SequenceGenerator:
    """The seqs of one task: microseconds since the epoch, but always more than the last, whatever became of the clock.

    None is ever above the journal's ceiling, so the next runner goes on above it.
    """

    def __init__(self, journal: Journal, now: Callable[[], datetime], save: Callable[[], None]) -> None:
        """`save` puts the journal on disk, now or soon."""
        self._journal = journal
        self._now = now
        self._save = save
        self._last = journal.seq_ceiling

    def next(self) -> int:
        """The next one."""
        self._last = max((self._now() - _EPOCH) // _MICROSECOND, self._last + 1)
        if self._last >= self._journal.seq_ceiling:
            self._journal.seq_ceiling = self._last + _AHEAD
            self._save()
        return self._last


class Reporter:
    """Speaks for one build of one task."""

    def __init__(
        self,
        request: BaseWorkRequest,
        *,
        transition: reports.Transition,
        runner: str,
        outbox: Outbox,
        seqs: SequenceGenerator,
        now: Callable[[], datetime],
    ) -> None:
        self.build_number = request.build_number
        self._task_id = request.task_id
        self._task_name = request.task_name
        self._transition = transition
        self._runner = runner
        self._outbox = outbox
        self._seqs = seqs
        self._now = now
        self.agent_id = uuid5(request.task_id, f"agent/{request.build_number}")

    def build(self, job_status: JobStatus, *, error: str | None = None, health: Health | None = None) -> None:
        """Where the build at hand is."""
        task_id = self._task_id
        starts = self._transition is reports.Transition.START
        report = reports.WorkspaceBuild(
            task_id=task_id,
            build_number=self.build_number,
            seq=self._seqs.next(),
            agent_id=self.agent_id if starts else None,
            transition=self._transition,
            job_status=job_status,
            workspace=reports.Workspace(uuid5(task_id, "workspace"), self._task_name),
            app=reports.App(uuid5(task_id, "app"), APP_SLUG, None, health) if starts else None,
            runner=self._runner,
            error=texts.message(error, {}) if error else None,
        )
        self._report(report)

    def lifecycle(self, lifecycle: Lifecycle) -> None:
        """Where the agent's start-up or shut-down is."""
        self._report(
            reports.AgentLifecycle(
                task_id=self._task_id, build_number=self.build_number, seq=self._seqs.next(), lifecycle=lifecycle
            )
        )

    def disconnected(self) -> None:
        """The agent is not there any more."""
        self._report(
            reports.AgentDisconnected(task_id=self._task_id, build_number=self.build_number, seq=self._seqs.next())
        )

    def health(self, health: Health) -> None:
        """What the agent's health check says."""
        self._report(
            reports.AppHealth(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._seqs.next(),
                health=health,
            )
        )

    def status(self, state: AgentState, message: str = "", uri: str = "") -> None:
        """What the agent is doing."""
        self._report(self.status_report(state, message, uri))

    def status_report(self, state: AgentState, message: str = "", uri: str = "") -> Report:
        """What the agent is doing, to be said together with something else."""
        return reports.AppStatus(
            task_id=self._task_id,
            build_number=self.build_number,
            seq=self._seqs.next(),
            state=state,
            message=texts.message(message, {}),
            uri=texts.address(uri, {}),
        )

    def log(self, entries: Sequence[LogEntry], *more: Report, mark: Checkpoint | None = None) -> None:
        """Entries of the conversation, `more` that belongs to them, and how far the follower has come with them."""
        said = list(more)
        if entries:
            said.insert(
                0,
                reports.TaskLog(
                    task_id=self._task_id,
                    build_number=self.build_number,
                    seq=self._seqs.next(),
                    entries=tuple(entries),
                ),
            )
        self._report(*said, mark=mark)

    def input(self, input_id: UUID, outcome: InputOutcome, detail: str | None = None) -> None:
        """What became of an input."""
        self._report(
            reports.TaskInput(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._seqs.next(),
                input_id=input_id,
                outcome=outcome,
                detail=texts.message(detail, {}) if detail else None,
            )
        )

    def heartbeat(self) -> bytes:
        """That the agent is alive now; this is sent at once or never."""
        return encode(
            reports.AgentHeartbeat(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._seqs.next(),
                agent_id=self.agent_id,
            )
        )

    def entry(self, number: int, speaker: reports.LogSource, content: str, at: datetime | None = None) -> LogEntry:
        """One entry of the conversation, now unless `at` says when."""
        return reports.LogEntry(number, speaker, texts.content(content, {}), at or self._now())

    def _report(self, *said: Report, mark: Checkpoint | None = None) -> None:
        self._outbox.append([encode(report).decode() for report in said], mark)
