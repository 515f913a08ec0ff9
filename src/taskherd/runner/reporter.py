"""Create the reports of a task, with rising sequence numbers, and append them to its outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from taskherd.domain import reports
from taskherd.domain.value import replace
from taskherd.messages import texts
from taskherd.messages.reports import encode_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskherd.domain.reports import (
        AgentState,
        Health,
        InputOutcome,
        InterruptOutcome,
        JobStatus,
        Lifecycle,
        LogEntry,
        Report,
    )
    from taskherd.runner.journal import Journal
    from taskherd.runner.outbox import Checkpoint, Outbox

APP_SLUG = "agent"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SEQ_CEILING_STEP = 600_000_000
"""Microseconds by which the ceiling is raised at a time, so that it is written only about every ten minutes."""


class SequenceGenerator:
    """The sequence numbers of one task: microseconds since the epoch, but always greater than the previous one.

    None exceeds the ceiling in the journal, so the next runner continues above the ceiling even if the clock went back.
    """

    def __init__(
        self, journal: Journal, now: Callable[[], datetime], save: Callable[[], None], *, above: int = 0
    ) -> None:
        """Continue above the ceiling in ``journal``; ``save`` writes the journal to disk, now or in the background.

        ``above`` is the greatest seq that an earlier runner is known to have used: it may have been killed before its
        journal was written.
        """
        self._journal = journal
        self._now = now
        self._save = save
        self._last = max(journal.seq_ceiling, above)

    def next(self) -> int:
        """Return the next sequence number."""
        self._last = max((self._now() - _EPOCH) // _MICROSECOND, self._last + 1)
        if self._last >= self._journal.seq_ceiling:
            self._journal.seq_ceiling = self._last + _SEQ_CEILING_STEP
            self._save()
        return self._last


class Reporter:
    """The reports on one build of one task."""

    def __init__(
        self,
        journal: Journal,
        build_number: int,
        *,
        transition: reports.Transition,
        runner: str,
        outbox: Outbox,
        sequence: SequenceGenerator,
        now: Callable[[], datetime],
    ) -> None:
        self.build_number = build_number
        self._task_id = journal.task_id
        self._task_name = journal.task_name
        self._transition = transition
        self._runner = runner
        self._outbox = outbox
        self._sequence = sequence
        self._now = now
        self.agent_id = uuid5(journal.task_id, f"agent/{build_number}")

    def build(
        self,
        job_status: JobStatus,
        *,
        error: str | None = None,
        health: Health | None = None,
        restart_reason: str | None = None,
    ) -> None:
        """Report the job status of the build; with a ``restart_reason`` the worker is to request the next start."""
        task_id = self._task_id
        starts = self._transition is reports.Transition.START
        report = reports.WorkspaceBuild(
            task_id=task_id,
            build_number=self.build_number,
            seq=self._sequence.next(),
            agent_id=self.agent_id if starts else None,
            transition=self._transition,
            job_status=job_status,
            workspace=reports.Workspace(uuid5(task_id, "workspace"), self._task_name),
            app=reports.App(uuid5(task_id, "app"), APP_SLUG, None, health) if starts else None,
            runner=self._runner,
            error=texts.sanitize_message(error, {}) if error else None,
            restart=restart_reason is not None,
            reason=restart_reason,
        )
        self._report(report)

    def lifecycle(self, lifecycle: Lifecycle) -> None:
        """Report the lifecycle state of the agent."""
        self._report(
            reports.AgentLifecycle(
                task_id=self._task_id, build_number=self.build_number, seq=self._sequence.next(), lifecycle=lifecycle
            )
        )

    def ready(self) -> None:
        """Report that the agent is ready, with its first heartbeat before that.

        Else the agent would be ready, but not connected, until the next regular heartbeat.
        """
        heartbeat = self._heartbeat()
        ready = reports.AgentLifecycle(
            task_id=self._task_id,
            build_number=self.build_number,
            seq=self._sequence.next(),
            lifecycle=reports.Lifecycle.READY,
        )
        self._report(heartbeat, ready)

    def agent_exit(self, why: reports.ExitReason, status: int | None, signal: int | None, words: str) -> None:
        """Report how the agent's process ended."""
        self._report(
            reports.AgentExit(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._sequence.next(),
                observed_at=self._now(),
                why=why,
                status=status,
                signal=signal,
                words=texts.sanitize_message(words, {}) or None,
            )
        )

    def disconnected(self) -> None:
        """Report that the agent disconnected."""
        self._report(
            reports.AgentDisconnected(task_id=self._task_id, build_number=self.build_number, seq=self._sequence.next())
        )

    def health(self, health: Health) -> None:
        """Report the health of the app."""
        self._report(
            reports.AppHealth(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._sequence.next(),
                health=health,
            )
        )

    def status(self, state: AgentState, message: str = "", uri: str = "") -> None:
        """Report what the agent is doing."""
        self._report(self.status_report(state, message, uri))

    def status_report(self, state: AgentState, message: str = "", uri: str = "", guessed_from: str = "") -> Report:
        """Return a report of what the agent is doing, to be passed to ``log``.

        ``guessed_from`` says from what it was concluded, if the agent did not say it itself.
        """
        return reports.AppStatus(
            task_id=self._task_id,
            build_number=self.build_number,
            seq=self._sequence.next(),
            state=state,
            message=texts.sanitize_message(message, {}),
            uri=texts.sanitize_uri(uri, {}),
            guessed_from=guessed_from,
        )

    def usage_report(self, **fields: Any) -> Report:
        """Return a report of what the agent used since the build began, to be passed to ``log``."""
        return reports.AgentUsage(
            task_id=self._task_id, build_number=self.build_number, seq=self._sequence.next(), **fields
        )

    def request_report(self, **fields: Any) -> reports.AgentRequest:
        """Return a report of a request of the agent, to be passed to ``log``."""
        return reports.AgentRequest(
            task_id=self._task_id, build_number=self.build_number, seq=self._sequence.next(), **fields
        )

    def renewed(self, request: reports.AgentRequest) -> reports.AgentRequest:
        """Return the report of a request that has changed, to be passed to ``log``."""
        return replace(request, seq=self._sequence.next())

    def repeat(self, encoded: str) -> None:
        """Send an encoded report again, in case it was lost."""
        self._outbox.append([encoded])

    def log(self, entries: Sequence[LogEntry], *others: Report, checkpoint: Checkpoint | None = None) -> None:
        """Report log entries and other reports in one record, with the follower's checkpoint after them."""
        batch = list(others)
        if entries:
            batch.insert(
                0,
                reports.TaskLog(
                    task_id=self._task_id,
                    build_number=self.build_number,
                    seq=self._sequence.next(),
                    entries=tuple(entries),
                ),
            )
        self._report(*batch, checkpoint=checkpoint)

    def input(self, input_id: UUID, outcome: InputOutcome, detail: str | None = None) -> None:
        """Report the outcome of an input."""
        self._report(
            reports.InputOutcomeReport(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._sequence.next(),
                input_id=input_id,
                outcome=outcome,
                detail=texts.sanitize_message(detail, {}) if detail else None,
            )
        )

    def interrupted(self, interrupt_id: UUID, outcome: InterruptOutcome, detail: str | None = None) -> None:
        """Report what became of an interrupt."""
        self._report(
            reports.AgentInterrupted(
                task_id=self._task_id,
                build_number=self.build_number,
                seq=self._sequence.next(),
                interrupt_id=interrupt_id,
                outcome=outcome,
                detail=texts.sanitize_message(detail, {}) if detail else None,
            )
        )

    def heartbeat(self) -> bytes:
        """Return an encoded heartbeat; it bypasses the outbox, because a late heartbeat is useless."""
        return encode_report(self._heartbeat())

    def _heartbeat(self) -> Report:
        return reports.AgentHeartbeat(
            task_id=self._task_id,
            build_number=self.build_number,
            seq=self._sequence.next(),
            agent_id=self.agent_id,
        )

    def now(self) -> datetime:
        """Return the time of the runner's clock."""
        return self._now()

    def entry(
        self,
        entry_id: int,
        source: reports.LogSource,
        content: str,
        at: datetime | None = None,
        *,
        kind: reports.LogKind | None = None,
        title: str = "",
        status: reports.LogStatus | None = None,
        data: dict[str, Any] | None = None,
    ) -> LogEntry:
        """Return a log entry with the time ``at``, by default now. Raise ``ValueError`` if ``data`` is too large."""
        return reports.LogEntry(
            entry_id,
            source,
            texts.sanitize_content(content, {}),
            at or self._now(),
            kind,
            texts.sanitize_title(title, {}) or None,
            status,
            texts.canonical_data(data, {}) if data is not None else None,
        )

    def _report(self, *batch: Report, checkpoint: Checkpoint | None = None) -> None:
        self._outbox.append([encode_report(report).decode() for report in batch], checkpoint)
