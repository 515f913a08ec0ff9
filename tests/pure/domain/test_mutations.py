"""Mutation tests of the domain: if a condition is removed or changed in the source, the test named with it fails.

Each row contains a part of the source, its replacement, and the test that must fail. The module is compiled with this
one change and the test runs on it; the same test passes on the unchanged modules.
"""

from __future__ import annotations

import pytest

from tests.pure.domain import test_builds as builds
from tests.pure.domain import test_inbox as inbox
from tests.pure.domain import test_interrupts as interrupts
from tests.pure.domain import test_liveness as liveness
from tests.pure.domain import test_request_rules as requests
from tests.pure.domain import test_view as view
from tests.pure.domain.mutated_core import with_mutation
from tests.pure.domain.mutations import FOLD, VIEW, DomainTest, Mutation

TASK: list[Mutation] = [
    (
        "timeout is not None and (timeout.build_number, timeout.seq) == self.build.report.sort_key",
        "timeout is not None",
        view.test_a_timed_out_build_shows_as_failed,
    ),
    (
        "JobStatus.FAILED if self.build_timed_out else self.build.report.job_status",
        "self.build.report.job_status",
        view.test_a_timed_out_build_shows_as_failed,
    ),
    (
        "self.timed_out.error if self.build_timed_out and self.timed_out else self.build.report.error",
        "self.build.report.error",
        view.test_a_timed_out_build_shows_as_failed,
    ),
    ("seq=-1", "seq=0", builds.test_any_report_supersedes_a_build_request),
    ("1 if state is None else state.build_number + 1", "1", builds.test_any_report_supersedes_a_build_request),
    (
        "JobStatus.RUNNING, JobStatus.CANCELING})",
        "JobStatus.RUNNING})",
        builds.test_a_delete_waits_for_the_active_build,
    ),
]

LIVENESS: list[Mutation] = [
    ("max(at, watermark) if at", "at if at", liveness.test_an_agent_is_lost_after_drained_silence_only),
    ("max(at, watermark) if at", "watermark if at", liveness.test_an_agent_is_lost_after_drained_silence_only),
    ("at <= now + MAX_SKEW", "at <= now", liveness.test_small_clock_differences_are_tolerated),
    ("at is not None and is_plausible(at, now)", "at is not None", liveness.test_a_clock_that_jumps_back),
    ("at if is_plausible(at, now) else now", "at", liveness.test_next_deadline),
    (" or not is_plausible(at - wait, now)", "", builds.test_a_retry_that_a_clock_ahead_has_set_is_due),
    ("is_plausible(at - wait, now)", "is_plausible(at, now)", builds.test_a_retry_that_a_clock_ahead_has_set_is_due),
    (" if now - worker.seen_at <= stale_after]", "]", liveness.test_the_watermark_is_the_latest_of_all_live_workers),
    (
        "now - worker.seen_at <= stale_after",
        "now - worker.seen_at < stale_after",
        liveness.test_the_watermark_is_the_latest_of_all_live_workers,
    ),
    (
        "if not since or any(at is None for at in since):",
        "if not any(since):",
        liveness.test_the_watermark_is_the_latest_of_all_live_workers,
    ),
    (
        "if not since or any(at is None for at in since):\n        return None\n    return max(",
        "if any(at is None for at in since):\n        return None\n    return now if not since else max(",
        liveness.test_the_watermark_is_the_latest_of_all_live_workers,
    ),
    (
        "max(at for at in since",
        "min(at for at in since",
        liveness.test_the_watermark_is_the_latest_of_all_live_workers,
    ),
    (
        "agent is None or (state.silence",
        "(state.silence",
        liveness.test_a_missing_or_disconnected_agent_cannot_fall_silent,
    ),
    (
        "(state.silence and state.silence.build_number == number)",
        "state.silence",
        liveness.test_silence_lasts_until_a_heartbeat_or_the_next_build,
    ),
    (
        "> timeouts.agent_lost_after",
        ">= timeouts.agent_lost_after",
        liveness.test_an_agent_is_lost_after_drained_silence_only,
    ),
    (
        "number not in state.last_heartbeat\n        and silence_duration",
        "silence_duration",
        liveness.test_a_missing_or_disconnected_agent_cannot_fall_silent,
    ),
    (
        "> timeouts.agent_connect_timeout\n",
        ">= timeouts.agent_connect_timeout\n",
        liveness.test_only_drained_time_counts_towards_the_connect_timeout,
    ),
    (
        "Silence(number, lost=False)",
        "Silence(number, lost=True)",
        liveness.test_only_drained_time_counts_towards_the_connect_timeout,
    ),
    (
        "    if not state.has_active_build:\n",
        "    if False:\n",
        liveness.test_a_build_without_further_reports_times_out,
    ),
    ("if state.unanswered_build == key[0]:", "if True:", liveness.test_a_build_without_further_reports_times_out),
    ("if state.unanswered_build == key[0]:", "if False:", liveness.test_a_request_that_no_runner_picks_up_times_out),
    (
        "if state.unanswered_build == key[0]:",
        "if state.unanswered_build:",
        liveness.test_a_build_without_further_reports_times_out,
    ),
    (
        "silent <= timeouts.request_ttl",
        "silent < timeouts.request_ttl",
        liveness.test_a_request_that_no_runner_picks_up_times_out,
    ),
    (
        "silent <= timeouts.build_timeout",
        "silent < timeouts.build_timeout",
        liveness.test_a_build_without_further_reports_times_out,
    ),
    ("error), unanswered_build=None)", "error))", liveness.test_a_request_that_no_runner_picks_up_times_out),
    ("    if state.has_active_build:\n", "    if True:\n", liveness.test_next_deadline),
    (
        "is_silent = state.silence is not None and state.silence.build_number == state.build_number",
        "is_silent = state.silence is not None",
        liveness.test_next_deadline,
    ),
    ("if first_seen and not is_silent and", "if first_seen and", liveness.test_next_deadline),
    ("and state.build_number not in state.last_heartbeat and agent_of", "and agent_of", liveness.test_next_deadline),
    ("at if watermark is None else max(at, watermark)", "at", liveness.test_next_deadline),
    ("return min(times", "return max(times", liveness.test_next_deadline),
    ("would_lose >= MIN_MASS and", "", liveness.test_a_mass_loss_is_held_back),
    ("and 100 * would_lose >= MASS_PERCENT * connected_agents", "", liveness.test_a_mass_loss_is_held_back),
    ("100 * would_lose >= MASS_PERCENT", "100 * would_lose > MASS_PERCENT", liveness.test_a_mass_loss_is_held_back),
    ("mass and held_for < timeouts.mass_silence_hold", "mass", liveness.test_a_mass_loss_is_held_back),
    (
        "held_for < timeouts.mass_silence_hold",
        "held_for <= timeouts.mass_silence_hold",
        liveness.test_a_mass_loss_is_held_back,
    ),
]

BUILDS: list[Mutation] = [
    (
        "state.build_number >= MAX_BUILD_NUMBER",
        "state.build_number > MAX_BUILD_NUMBER",
        builds.test_no_build_is_requested_past_the_maximum_number,
    ),
    ("    if is_exhausted(state):\n", "    if False:\n", builds.test_no_build_is_requested_past_the_maximum_number),
    ("len(requested) > MAX_REQUESTED_BUILDS", "False", builds.test_only_the_latest_256_requested_builds_are_kept),
    (
        "del requested[min(requested)]",
        "del requested[max(requested)]",
        builds.test_only_the_latest_256_requested_builds_are_kept,
    ),
    (
        "deletion is None or deletion.done or state.has_active_build:",
        "deletion is None or deletion.done:",
        builds.test_a_delete_waits_for_the_active_build,
    ),
    (
        "deletion is None or deletion.done or",
        "deletion is None or",
        builds.test_only_an_unfinished_delete_requests_a_build,
    ),
    (
        "deletion = state.deletion\n    if deletion is None or deletion.done or",
        "deletion = state.deletion or Deletion()\n    if deletion.done or",
        builds.test_only_an_unfinished_delete_requests_a_build,
    ),
    (
        "if deleting and state.job_status is",
        "if state.job_status is",
        builds.test_a_delete_is_done_when_a_delete_build_succeeds,
    ),
    (
        "if deleting and state.job_status is JobStatus.SUCCEEDED",
        "if deleting",
        builds.test_a_failed_delete_is_retried_after_a_backoff,
    ),
    ("deletion.attempts == 0 or", "", builds.test_a_delete_waits_for_the_active_build),
    (
        "deletion.retry_at is not None and is_due(deletion.retry_at, wait, now)",
        "True",
        builds.test_a_failed_delete_is_retried_after_a_backoff,
    ),
    (
        "deletion.retry_at is not None and is_due(deletion.retry_at, wait, now)",
        "deletion.retry_at is not None",
        builds.test_a_failed_delete_is_retried_after_a_backoff,
    ),
    ("    if deletion.retry_at is None:\n", "    if True:\n", builds.test_a_failed_delete_is_retried_after_a_backoff),
]

INTERRUPTS: list[Mutation] = [
    ("and state.interrupt.id == report.interrupt_id", "", interrupts.test_an_interrupt_ends_with_its_outcome),
    ("        state = replace(state, interrupt=None)\n    elif", "        pass\n    elif",
     interrupts.test_an_interrupt_ends_with_its_outcome),
    (" and last.unreported", "", interrupts.test_an_interrupt_ends_with_its_outcome),
    ("last.id == report.interrupt_id and", "", interrupts.test_an_interrupt_without_an_outcome_fails),
    ("interrupt.build_number == state.build_number", "True", interrupts.test_a_later_build_ends_an_interrupt),
    ("now, NEXT_BUILD, unreported=True", "now, NEXT_BUILD",
     interrupts.test_a_later_build_ends_an_interrupt),
    ("<= timeouts.interrupt_timeout", "< timeouts.interrupt_timeout",
     interrupts.test_an_interrupt_without_an_outcome_fails),
    ("now, NOT_REPORTED, unreported=True", "now, NOT_REPORTED",
     interrupts.test_an_interrupt_without_an_outcome_fails),
    ("last is None or last.overruled != stamped.report.sort_key", "True",
     interrupts.test_stopped_and_ended_count_as_another_state),
    ("last is None or last.overruled != stamped.report.sort_key", "last is None",
     interrupts.test_stopped_and_ended_count_as_another_state),
    ("ended.outcome is InterruptOutcome.FAILED or", "", interrupts.test_stopped_and_ended_count_as_another_state),
    ("overruled=overruled), inbox=inbox)", "overruled=overruled))",
     interrupts.test_stopped_and_ended_count_as_another_state),
    (" or build_number != latest", "", interrupts.test_an_interrupt_of_an_earlier_agent_does_not_overrule_the_next_one),
    ("number = state.interrupt.build_number", "number = state.build_number",
     interrupts.test_an_interrupt_of_an_earlier_agent_does_not_overrule_the_next_one),
    ("state.build_number if stamped is None else stamped.report.sort_key[0]", "1",
     interrupts.test_an_interrupt_of_an_earlier_agent_does_not_overrule_the_next_one),
]  # fmt: skip

REQUESTS: list[Mutation] = [
    ("return report.state is not RequestState.OPEN, report", "return False, report",
     requests.test_the_greatest_report_counts),
    ("report.sort_key, canonical_json(report)", "report.sort_key, ''", requests.test_the_greatest_report_counts),
    ("report.sort_key, canonical_json(report)", "report.seq, canonical_json(report)",
     requests.test_the_greatest_report_counts),
    (" or (is_open and before.answer is not None)", "", requests.test_what_was_answered_is_not_asked_again),
    ("_rank(report) <= _rank(before.report)", "_rank(report) < _rank(before.report)",
     requests.test_the_greatest_report_counts),
    ("self.numbers[build_number] >= MAX_OF_BUILD", "self.numbers[build_number] > MAX_OF_BUILD",
     requests.test_how_many_a_build_may_have),
    ("if before is None and report.pull and self.numbers", "if report.pull and self.numbers",
     requests.test_how_many_a_build_may_have),
    ("if is_open and not _has_room(state, report):", "if not _has_room(state, report):",
     requests.test_how_many_may_be_open),
    ("for each in state.agent_requests.values()) < MAX_OPEN", "for each in state.agent_requests.values()) <= MAX_OPEN",
     requests.test_how_many_may_be_open),
    ("report.request_id in state.agent_requests or report.sort_key[0] < state.build_number:",
     "report.sort_key[0] < state.build_number:", requests.test_how_many_may_be_open),
    ("sum(each.build_number >= state.build_number for", "sum(True for", requests.test_how_many_may_be_open),
    ("if each.build_number >= state.build_number}", "}", requests.test_how_many_may_be_open),
    (" and (report.option_id is not None or report.text == answer.text)", "",
     requests.test_an_answer_is_delivered_if_the_report_has_the_same),
    ("report.option_id == answer.option_id and (", "(",
     requests.test_an_answer_is_delivered_if_the_report_has_the_same),
    ("report.option_id is not None or report.text == answer.text", "report.text == answer.text",
     requests.test_an_answer_is_delivered_if_the_report_has_the_same),
    ("report.state is not RequestState.ANSWERED or not is_same", "not is_same",
     requests.test_an_answer_is_delivered_if_the_report_has_the_same),
    ("not in {RequestState.ANSWERED, RequestState.EXPIRED}", "is not RequestState.ANSWERED",
     requests.test_an_agent_that_asks_is_busy),
    ("if request.answered]", "]", requests.test_which_answers_are_to_be_delivered),
    (" and named.build_number == state.build_number", "", requests.test_which_answers_are_to_be_delivered),
    ("if len(waiting) == 1 and waiting[0].wants_text", "if waiting and waiting[0].wants_text",
     requests.test_which_question_an_input_answers),
    ("if len(waiting) == 1 and waiting[0].wants_text", "if len(waiting) == 1",
     requests.test_which_question_an_input_answers),
]  # fmt: skip

WAITING: list[Mutation] = [
    (" or state.deletion is not None:\n        return ()", ":\n        return ()",
     requests.test_when_a_request_waits_for_a_person),
    ("{JobStatus.FAILED, JobStatus.CANCELED} or agent_exit_of(state) is not None:",
     "{JobStatus.FAILED, JobStatus.CANCELED}:", requests.test_when_a_request_waits_for_a_person),
    ("state.job_status in {JobStatus.FAILED, JobStatus.CANCELED} or", "state.job_status is JobStatus.FAILED or",
     requests.test_when_a_request_waits_for_a_person),
    ("if each.build_number == state.build_number]", "]", requests.test_when_a_request_waits_for_a_person),
    ("not state.agent_requests or not state.is_start or", "not state.agent_requests or",
     requests.test_when_a_request_waits_for_a_person),
    ("if not request.answered]", "]", requests.test_when_a_request_waits_for_a_person),
    ("(request.build_number, request.seq, request.id)", "(request.id,)",
     requests.test_when_a_request_waits_for_a_person),
]  # fmt: skip

INBOX: list[Mutation] = [
    ("    return bool(asking_requests(state))", "    return False", requests.test_an_agent_that_asks_is_busy),
    ("state.inbox.in_flight is not None or", "", inbox.test_one_input_is_in_flight_at_a_time),
    ("or counts_as_working(state)", "", inbox.test_inputs_are_sent_to_active_tasks_that_are_not_busy),
    ("or state.interrupt is not None", "", interrupts.test_nothing_leaves_the_inbox_while_an_interrupt_is_open),
    (
        "    if _was_interrupted(state):\n        return False\n",
        "",
        interrupts.test_inputs_wait_for_the_agent_after_one_that_was_ended,
    ),
    (
        "is_busy(state) or _was_interrupted(state):",
        "is_busy(state):",
        interrupts.test_inputs_wait_for_the_agent_after_one_that_was_ended,
    ),
    (
        "stamped.report.why is ExitReason.INTERRUPTED",
        "stamped.report.why",
        interrupts.test_inputs_wait_for_the_agent_after_one_that_was_ended,
    ),
    ("not each.steers", "True", interrupts.test_inputs_that_steer_go_first),
    (
        "inbox.in_flight is None or not _was_interrupted(state):",
        "inbox.in_flight is None:",
        interrupts.test_an_input_that_an_interrupted_agent_did_not_get_is_queued_again,
    ),
    (
        "inbox.in_flight is None or not _was_interrupted(state):",
        "not _was_interrupted(state):",
        interrupts.test_an_input_that_an_interrupted_agent_did_not_get_is_queued_again,
    ),
    (
        "is not Status.ACTIVE or is_busy(state):",
        "is not Status.ACTIVE:",
        inbox.test_inputs_are_sent_to_active_tasks_that_are_not_busy,
    ),
    (
        "status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE or",
        "",
        inbox.test_inputs_are_sent_to_active_tasks_that_are_not_busy,
    ),
    (
        "stamped is not None and stamped.received_at > delivered",
        "stamped is not None",
        inbox.test_the_next_input_is_sent_after_a_new_state_or_five_seconds,
    ),
    (
        "stamped is not None and stamped.received_at > delivered",
        "False",
        inbox.test_the_next_input_is_sent_after_a_new_state_or_five_seconds,
    ),
    (
        "return settled_at is None or now >= settled_at",
        "return True",
        inbox.test_the_next_input_is_sent_after_a_new_state_or_five_seconds,
    ),
    (
        "return settled_at is None or now >= settled_at",
        "return settled_at is None",
        inbox.test_the_next_input_is_sent_after_a_new_state_or_five_seconds,
    ),
    (
        "not state.inbox.queued or is_busy(state)",
        "is_busy(state)",
        inbox.test_when_the_inbox_is_checked_without_a_report,
    ),
    (
        "not state.inbox.queued or is_busy(state) or",
        "not state.inbox.queued or",
        inbox.test_when_the_inbox_is_checked_without_a_report,
    ),
    (
        " or not is_plausible(delivered, now):",
        ":",
        inbox.test_a_delivery_that_a_clock_ahead_has_noted_holds_up_nothing,
    ),
    (
        "not state.inbox.queued or not is_ready(state, now)",
        "not is_ready(state, now)",
        inbox.test_nothing_is_sent_from_an_empty_queue_or_to_a_busy_agent,
    ),
    (
        "not state.inbox.queued or not is_ready(state, now)",
        "not state.inbox.queued",
        inbox.test_nothing_is_sent_from_an_empty_queue_or_to_a_busy_agent,
    ),
    ("if input_id not in decided:", "if True:", inbox.test_the_first_input_without_an_outcome_is_sent_next),
    ("return fail_all(state), None", "return state, None", inbox.test_a_queue_of_inputs_with_outcomes_is_emptied),
    ("inbox.in_flight != input_id", "False", inbox.test_one_input_is_in_flight_at_a_time),
    ("now if delivered else inbox.delivered_at", "now", inbox.test_one_input_is_in_flight_at_a_time),
    ("queued=0, in_flight=None", "queued=0", inbox.test_queued_inputs_are_counted),
    ("queued=inbox.queued - 1", "queued=inbox.queued", inbox.test_queued_inputs_are_counted),
]

MUTATIONS = [
    pytest.param(module, *mutation, id=f"{module}: {mutation[0].strip()} -> {mutation[1].strip()}")
    for module, mutations in {
        "fold": FOLD,
        "view": [*VIEW, *WAITING],
        "task": TASK,
        "liveness": LIVENESS,
        "builds": BUILDS,
        "interrupts": INTERRUPTS,
        "agent_requests": REQUESTS,
        "inbox": INBOX,
    }.items()
    for mutation in mutations
]


@pytest.mark.parametrize(("module", "original", "replacement", "test"), MUTATIONS)
def test_a_mutation_is_detected(module: str, original: str, replacement: str, test: DomainTest) -> None:
    """An assertion of the test fails on the module with this change; a crash of the changed code does not count."""
    mutated = with_mutation(module, original, replacement)
    with pytest.raises(AssertionError):
        test(mutated)
