"""Every guard of the core is held by a law: take any one of them away, and the test named beside it fails.

Each row names a guard by its source text, what stands in its place, and the test that must notice. The module is
compiled anew with that one change and the test is run on it; the same test passes on the core as it is.
"""

from __future__ import annotations

import pytest

from tests.pure.domain import test_builds as builds
from tests.pure.domain import test_inbox as inbox
from tests.pure.domain import test_liveness as liveness
from tests.pure.domain import test_view as view
from tests.pure.domain.guards import FOLD, VIEW, Guard, Law
from tests.pure.domain.mutated_core import without

TASK: list[Guard] = [
    (
        "mark is not None and (mark.build_number, mark.seq) == self.build.report.key",
        "mark is not None",
        view.test_a_build_given_up_shows_as_failed,
    ),
    (
        "JobStatus.FAILED if self.build_timed_out else self.build.report.job_status",
        "self.build.report.job_status",
        view.test_a_build_given_up_shows_as_failed,
    ),
    (
        "self.timed_out.error if self.build_timed_out and self.timed_out else self.build.report.error",
        "self.build.report.error",
        view.test_a_build_given_up_shows_as_failed,
    ),
    ("seq=-1", "seq=0", builds.test_asking_is_a_build_that_any_report_outdoes),
    ("1 if state is None else state.number + 1", "1", builds.test_asking_is_a_build_that_any_report_outdoes),
    (
        "JobStatus.RUNNING, JobStatus.CANCELING})",
        "JobStatus.RUNNING})",
        builds.test_a_delete_waits_for_the_active_build,
    ),
]

LIVENESS: list[Guard] = [
    ("max(at, since) if at", "at if at", liveness.test_an_agent_is_lost_after_drained_silence_only),
    ("max(at, since) if at", "since if at", liveness.test_an_agent_is_lost_after_drained_silence_only),
    ("at <= now + MAX_SKEW", "at <= now", liveness.test_clocks_that_lie_a_little_apart),
    ("at is not None and is_plausible(at, now)", "at is not None", liveness.test_a_clock_that_jumps_back),
    ("at if is_plausible(at, now) else now", "at", liveness.test_deadlines),
    (" if now - worker.seen_at <= stale_after]", "]", liveness.test_the_watermark_is_the_youngest_of_all_live_workers),
    (
        "now - worker.seen_at <= stale_after",
        "now - worker.seen_at < stale_after",
        liveness.test_the_watermark_is_the_youngest_of_all_live_workers,
    ),
    (
        "if not since or any(at is None for at in since):",
        "if not any(since):",
        liveness.test_the_watermark_is_the_youngest_of_all_live_workers,
    ),
    ("if not since or any", "if any", liveness.test_the_watermark_is_the_youngest_of_all_live_workers),
    (
        "max(at for at in since",
        "min(at for at in since",
        liveness.test_the_watermark_is_the_youngest_of_all_live_workers,
    ),
    ("agent is None or (state.silence", "(state.silence", liveness.test_silence_needs_an_agent_that_is_here),
    (
        "(state.silence and state.silence.build_number == number)",
        "state.silence",
        liveness.test_a_verdict_stands_until_a_heartbeat,
    ),
    (
        "> timeouts.agent_lost_after",
        ">= timeouts.agent_lost_after",
        liveness.test_an_agent_is_lost_after_drained_silence_only,
    ),
    (
        "number not in state.last_heartbeat\n        and silence_duration",
        "silence_duration",
        liveness.test_silence_needs_an_agent_that_is_here,
    ),
    (
        "> timeouts.agent_connect_timeout\n",
        ">= timeouts.agent_connect_timeout\n",
        liveness.test_an_agent_connects_within_drained_time_only,
    ),
    (
        "Silence(number, lost=False)",
        "Silence(number, lost=True)",
        liveness.test_an_agent_connects_within_drained_time_only,
    ),
    ("    if not state.active:\n", "    if False:\n", liveness.test_a_build_that_falls_silent_is_given_up),
    ("if state.pending_build == key[0]:", "if True:", liveness.test_a_build_that_falls_silent_is_given_up),
    ("if state.pending_build == key[0]:", "if False:", liveness.test_a_request_that_nobody_takes_is_given_up),
    (
        "if state.pending_build == key[0]:",
        "if state.pending_build:",
        liveness.test_a_build_that_falls_silent_is_given_up,
    ),
    (
        "silent <= timeouts.request_ttl",
        "silent < timeouts.request_ttl",
        liveness.test_a_request_that_nobody_takes_is_given_up,
    ),
    (
        "silent <= timeouts.build_timeout",
        "silent < timeouts.build_timeout",
        liveness.test_a_build_that_falls_silent_is_given_up,
    ),
    ("error), pending_build=None)", "error))", liveness.test_a_request_that_nobody_takes_is_given_up),
    ("    if state.active:\n", "    if True:\n", liveness.test_deadlines),
    (
        "judged = state.silence is not None and state.silence.build_number == state.number",
        "judged = state.silence is not None",
        liveness.test_deadlines,
    ),
    ("if first_seen and not judged and", "if first_seen and", liveness.test_deadlines),
    ("and state.number not in state.last_heartbeat and agent_of", "and agent_of", liveness.test_deadlines),
    ("at if since is None else max(at, since)", "at", liveness.test_deadlines),
    ("return min(times", "return max(times", liveness.test_deadlines),
    ("would_lose >= MIN_MASS and", "", liveness.test_the_brake),
    ("and 100 * would_lose >= MASS_PERCENT * connected_agents", "", liveness.test_the_brake),
    ("100 * would_lose >= MASS_PERCENT", "100 * would_lose > MASS_PERCENT", liveness.test_the_brake),
    ("mass and held_for < timeouts.mass_silence_hold", "mass", liveness.test_the_brake),
    ("held_for < timeouts.mass_silence_hold", "held_for <= timeouts.mass_silence_hold", liveness.test_the_brake),
]

BUILDS: list[Guard] = [
    ("state.number >= MAX_BUILD_NUMBER", "state.number > MAX_BUILD_NUMBER", builds.test_no_number_past_the_last),
    ("    if is_exhausted(state):\n", "    if False:\n", builds.test_no_number_past_the_last),
    ("len(asked) > MAX_REQUESTED_BUILDS", "False", builds.test_what_was_asked_is_remembered_within_bounds),
    ("del asked[min(asked)]", "del asked[max(asked)]", builds.test_what_was_asked_is_remembered_within_bounds),
    (
        "deletion is None or deletion.done or state.active:",
        "deletion is None or deletion.done:",
        builds.test_a_delete_waits_for_the_active_build,
    ),
    ("deletion is None or deletion.done or", "deletion is None or", builds.test_nothing_is_deleted_unasked),
    ("deletion is None or deletion.done or", "deletion.done or", builds.test_nothing_is_deleted_unasked),
    ("if deleting and state.job is", "if state.job is", builds.test_a_delete_ends_with_its_build),
    (
        "if deleting and state.job is JobStatus.SUCCEEDED",
        "if deleting",
        builds.test_a_failed_delete_is_asked_for_again,
    ),
    ("deletion.attempts == 0 or", "", builds.test_a_delete_waits_for_the_active_build),
    (
        "deletion.retry_at is not None and now >= deletion.retry_at",
        "True",
        builds.test_a_failed_delete_is_asked_for_again,
    ),
    (
        "deletion.retry_at is not None and now >= deletion.retry_at",
        "deletion.retry_at is not None",
        builds.test_a_failed_delete_is_asked_for_again,
    ),
    ("    if deletion.retry_at is None:\n", "    if True:\n", builds.test_a_failed_delete_is_asked_for_again),
]

INBOX: list[Guard] = [
    ("state.inbox.in_flight is not None or", "", inbox.test_one_at_a_time),
    (
        "or (stamped is not None and stamped.report.state is AgentState.WORKING)",
        "",
        inbox.test_an_input_goes_to_an_active_task_that_is_not_busy,
    ),
    (
        "is not Status.ACTIVE or is_busy(state):",
        "is not Status.ACTIVE:",
        inbox.test_an_input_goes_to_an_active_task_that_is_not_busy,
    ),
    (
        "status_of(state, agent_of(state), app_health_of(state)) is not Status.ACTIVE or",
        "",
        inbox.test_an_input_goes_to_an_active_task_that_is_not_busy,
    ),
    (
        "(stamped is not None and stamped.received_at > delivered)",
        "stamped is not None",
        inbox.test_the_next_goes_after_a_new_state_or_five_seconds,
    ),
    (
        "(stamped is not None and stamped.received_at > delivered)",
        "False",
        inbox.test_the_next_goes_after_a_new_state_or_five_seconds,
    ),
    (
        "return now >= delivered + SETTLE_TIME",
        "return True",
        inbox.test_the_next_goes_after_a_new_state_or_five_seconds,
    ),
    (
        "return now >= delivered + SETTLE_TIME",
        "return False",
        inbox.test_the_next_goes_after_a_new_state_or_five_seconds,
    ),
    ("not inbox.queued or is_busy(state)", "is_busy(state)", inbox.test_when_the_inbox_wants_to_be_looked_at),
    ("not inbox.queued or is_busy(state) or", "not inbox.queued or", inbox.test_when_the_inbox_wants_to_be_looked_at),
    ("if silent else None", "", inbox.test_when_the_inbox_wants_to_be_looked_at),
    (
        "not state.inbox.queued or not is_ready(state, now)",
        "not is_ready(state, now)",
        inbox.test_nothing_goes_from_an_empty_queue_or_to_a_busy_agent,
    ),
    (
        "not state.inbox.queued or not is_ready(state, now)",
        "not state.inbox.queued",
        inbox.test_nothing_goes_from_an_empty_queue_or_to_a_busy_agent,
    ),
    ("if input_id not in decided:", "if True:", inbox.test_the_first_undecided_input_goes_next),
    ("return fail_all(state), None", "return state, None", inbox.test_a_queue_of_decided_inputs_is_empty),
    ("inbox.in_flight != input_id", "False", inbox.test_one_at_a_time),
    ("now if delivered else inbox.delivered_at", "now", inbox.test_one_at_a_time),
    ("queued=0, in_flight=None", "queued=0", inbox.test_the_count),
    ("queued=inbox.queued - 1", "queued=inbox.queued", inbox.test_the_count),
]

GUARDS = [
    pytest.param(organ, *guard, id=f"{organ}: {guard[0].strip()} -> {guard[1].strip()}")
    for organ, guards in {
        "fold": FOLD,
        "view": VIEW,
        "task": TASK,
        "liveness": LIVENESS,
        "builds": BUILDS,
        "inbox": INBOX,
    }.items()
    for guard in guards
]


@pytest.mark.parametrize(("organ", "guard", "instead", "law"), GUARDS)
def test_a_missing_guard_is_noticed(organ: str, guard: str, instead: str, law: Law) -> None:
    """Without this guard the law beside it does not hold."""
    hollow = without(organ, guard, instead)
    with pytest.raises((AssertionError, AttributeError, KeyError, OverflowError, TypeError, ValueError)):
        law(hollow)
