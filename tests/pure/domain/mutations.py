"""Mutations of the fold and of the view: a part of the source, its replacement, and the test that must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.pure.domain import test_fold as fold
from tests.pure.domain import test_liveness as liveness
from tests.pure.domain import test_view as view
from tests.pure.domain.mutated_core import Core

DomainTest: TypeAlias = Callable[[Core], None]
Mutation: TypeAlias = tuple[str, str, DomainTest]
"""A part of the source, its replacement, and the test that must fail."""

ORDER: DomainTest = fold.test_any_order_gives_the_view_of_the_contract

FOLD: list[Mutation] = [
    # only a greater report replaces a facet
    ("report.sort_key > stamped.report.sort_key", "report.sort_key >= stamped.report.sort_key", ORDER),
    ("report.sort_key > stamped.report.sort_key", "report.sort_key < stamped.report.sort_key", ORDER),
    ("report.sort_key > stamped.report.sort_key", "report.seq > stamped.report.seq", ORDER),
    ("report.sort_key > stamped.report.sort_key", "report.sort_key[0] > stamped.report.sort_key[0]", ORDER),
    # a clash is decided by the canonical JSON
    ("report.sort_key == stamped.report.sort_key and canonical_json", "False and canonical_json", ORDER),
    ("report.sort_key == stamped.report.sort_key and canonical_json", "canonical_json", ORDER),
    (
        "canonical_json(report) > canonical_json(stamped.report)",
        "canonical_json(report) < canonical_json(stamped.report)",
        ORDER,
    ),
    (
        "canonical_json(report) > canonical_json(stamped.report)",
        "canonical_json(report) >= canonical_json(stamped.report)",
        fold.test_a_repeated_report_is_stale,
    ),
    ("canonical_json(report) > canonical_json(stamped.report)", "True", ORDER),
    # a build report that contradicts the request is a conflict, any other is folded
    (
        "state.requested_builds.get(number, report.transition) is not report.transition",
        "False",
        fold.test_a_build_report_that_contradicts_the_request_is_a_conflict,
    ),
    (
        "state.requested_builds.get(number, report.transition)",
        "state.requested_builds.get(number)",
        fold.test_a_build_report_that_contradicts_the_request_is_a_conflict,
    ),
    # a build report concerns a facet only if it names it
    ("if report.workspace else state.workspace", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.runner else state.runner", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.agent_id else state.agent", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.app else state.app", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if any(new is not old", "if all(new is not old", ORDER),
    # an answered request, and a report after a timeout
    ("if state.unanswered_build == number:", "if False:", fold.test_a_request_is_answered_by_its_build),
    ("if state.unanswered_build == number:", "if True:", fold.test_a_request_is_answered_by_its_build),
    ("if build is not state.build:", "if False:", fold.test_a_later_report_ends_the_timeout_of_a_build),
    ("if build is not state.build:", "if True:", fold.test_a_later_report_ends_the_timeout_of_a_build),
    # last_heartbeat and first_seen
    (
        "return replace(after, last_heartbeat=_keep_latest_builds",
        "return after if after is state else replace(after, last_heartbeat=_keep_latest_builds",
        fold.test_first_seen_is_kept_and_last_heartbeat_is_updated,
    ),
    ("number in state.first_seen:", "False:", fold.test_first_seen_is_kept_and_last_heartbeat_is_updated),
    (
        "_record_first_seen(state, report, now) if report.agent_id else state",
        "state",
        fold.test_which_reports_set_first_seen,
    ),
    (
        "_record_first_seen(state, report, now) if report.agent_id else state",
        "_record_first_seen(state, report, now)",
        fold.test_which_reports_set_first_seen,
    ),
    (
        "first_seen = _record_first_seen(state, report, now)",
        "first_seen = state",
        fold.test_which_reports_set_first_seen,
    ),
    (
        "_connection(_record_first_seen(state, report, now), report, now))",
        "_connection(state, report, now))",
        fold.test_which_reports_set_first_seen,
    ),
    (
        "after = _connection(_record_first_seen(state, report, now), report, now)\n",
        "after = _connection(state, report, now)\n",
        fold.test_which_reports_set_first_seen,
    ),
    ("return FoldResult(_heartbeat(state", "return FoldResult(_connection(state", ORDER),
    (
        "return _fold_result(state, _connection(_record_first_seen",
        "return _fold_result(state, _heartbeat(_record_first_seen",
        fold.test_only_heartbeats_set_last_heartbeat,
    ),
    ("len(after) > MAX_TRACKED_BUILDS", "False", fold.test_only_the_16_highest_builds_are_kept),
    ("len(after) > MAX_TRACKED_BUILDS", "len(after) > 8", fold.test_only_the_16_highest_builds_are_kept),
    ("del after[min(after)]", "del after[max(after)]", ORDER),
    ("del after[min(after)]", "del after[next(iter(after))]", ORDER),
    ("del after[min(after)]", "del after[number]", ORDER),
    # silence
    ("        silence = None\n", "        pass\n", fold.test_a_heartbeat_ends_the_silence_of_its_build),
    (
        "silence is not None and silence.build_number == number",
        "True",
        fold.test_a_heartbeat_ends_the_silence_of_its_build,
    ),
    # a missing build number
    ("if report.build_number is not None:", "if False:", fold.test_a_missing_build_number_means_the_latest_build),
    ("default=1) + MAX_BUILDS_AHEAD", "default=1)", fold.test_which_build_numbers_are_out_of_range),
    ("max(state.requested_builds, default=1)", "1", fold.test_which_build_numbers_are_out_of_range),
    ("and number > max", "and number >= max", fold.test_which_build_numbers_are_out_of_range),
    ("state.build_number if state else 1", "1", fold.test_a_missing_build_number_means_the_latest_build),
]

VIEW: list[Mutation] = [
    # which facets are current
    ("latest.transition is Transition.START and facet", "facet", view.test_no_agent_while_stopping),
    ("and facet.report.build_number == latest.build_number", "", view.test_which_facets_outlive_a_build),
    (
        "state.app_health and is_current(state, state.app_health)",
        "state.app_health",
        view.test_which_app_health_counts,
    ),
    ("state.app and is_current(state, state.app)", "state.app", view.test_which_facets_outlive_a_build),
    ("state.agent if is_current(state, state.agent) else None", "state.agent", view.test_which_facets_outlive_a_build),
    (
        "state.lifecycle if is_current(state, state.lifecycle) else None",
        "state.lifecycle",
        view.test_which_facets_outlive_a_build,
    ),
    (
        "state.connection if is_current(state, state.connection) else None",
        "state.connection",
        view.test_which_facets_outlive_a_build,
    ),
    ("stamped is not None and is_current(state, stamped) and", "stamped is not None and", ORDER),
    ("and isinstance(stamped.report, AgentDisconnected)", "", ORDER),
    (
        "stamped and state.is_start and stamped.report",
        "stamped and stamped.report",
        view.test_current_state_from_an_app_status,
    ),
    ("stamped.report.build_number != state.build_number:", "False:", view.test_current_state_from_an_app_status),
    (
        "stamped.report.build_number != state.build_number:",
        "stamped.report.build_number < state.build_number:",
        view.test_current_state_from_an_app_status,
    ),
    # which agent
    (
        "build is None and lifecycle is None and connection is None",
        "build is None and lifecycle is None",
        view.test_which_agent_id_is_shown,
    ),
    (
        "build is None and lifecycle is None and connection is None",
        "lifecycle is None and connection is None",
        view.test_which_agent_id_is_shown,
    ),
    (
        "build is None and lifecycle is None and connection is None",
        "build is None and connection is None",
        view.test_status_of_each_agent,
    ),
    (
        "build.report.agent_id if build else max(candidates)[2] if candidates else None",
        "max(candidates)[2] if candidates else None",
        view.test_which_agent_id_is_shown,
    ),
    ("max(candidates)", "min(candidates)", view.test_which_agent_id_is_shown),
    ("(lifecycle.report.seq, 1,", "(lifecycle.report.seq, -1,", view.test_which_agent_id_is_shown),
    ("if connection and connection.report.agent_id:", "if connection:", view.test_which_agent_id_is_shown),
    ("if lifecycle and lifecycle.report.agent_id:", "if lifecycle:", view.test_which_agent_id_is_shown),
    ("else Lifecycle.CREATED", "else Lifecycle.READY", view.test_which_agent_id_is_shown),
    # the three tables
    ("    if build is not Status.ACTIVE:", "    if False:", view.test_status_of_each_build),
    (
        "    if agent is None:\n        return Status.INITIALIZING\n",
        "    if agent is None:\n        return Status.ACTIVE\n",
        view.test_status_of_each_agent,
    ),
    ("STATUS_BY_APP_HEALTH[app] if by_agent is Status.ACTIVE else by_agent", "by_agent", view.test_status_of_each_app),
    (
        "STATUS_BY_APP_HEALTH[app] if by_agent is Status.ACTIVE else by_agent",
        "STATUS_BY_APP_HEALTH[app]",
        view.test_status_of_each_agent,
    ),
    ("app.health if app and app.health else Health.DISABLED", "Health.DISABLED", view.test_which_app_health_counts),
    # connected
    ("return state.build_number in state.last_heartbeat and", "return", view.test_who_is_connected),
    (
        "and not _has_disconnected(state) and not is_silent",
        "and not is_silent",
        view.test_health_reasons_in_order,
    ),
    (
        "and not _has_disconnected(state) and not is_silent",
        "and not _has_disconnected(state)",
        view.test_health_reasons_in_order,
    ),
    (
        "is_silent = silence is not None and silence.build_number == state.build_number",
        "is_silent = silence is not None",
        liveness.test_silence_lasts_until_a_heartbeat_or_the_next_build,
    ),
    # the reasons
    ("if not alive and agent.lifecycle is Lifecycle.OFF:", "if False:", view.test_health_reasons_in_order),
    (
        "if not alive and agent.lifecycle is Lifecycle.OFF:",
        "if agent.lifecycle is Lifecycle.OFF:",
        view.test_health_reasons_in_order,
    ),
    (
        "state.build_number not in state.last_heartbeat and not _has_disconnected",
        "not _has_disconnected",
        view.test_health_reasons_in_order,
    ),
    (
        "state.build_number not in state.last_heartbeat and not _has_disconnected(state)",
        "state.build_number not in state.last_heartbeat",
        view.test_health_reasons_in_order,
    ),
    (
        "late = silence is not None and silence.build_number == state.build_number",
        "late = False",
        view.test_health_reasons_in_order,
    ),
    (
        "late = silence is not None and silence.build_number == state.build_number",
        "late = silence is not None",
        liveness.test_silence_lasts_until_a_heartbeat_or_the_next_build,
    ),
    ("    if not alive:\n", "    if False:\n", view.test_health_reasons_in_order),
    ("if agent.lifecycle is Lifecycle.START_ERROR:", "if False:", view.test_health_reasons_in_order),
    ("if agent.lifecycle in SHUTTING_DOWN:", "if False:", view.test_health_reasons_in_order),
    # the current state
    (
        "AgentState.FAILED if report.state is AgentState.FAILURE else report.state",
        "report.state",
        view.test_current_state_from_an_app_status,
    ),
    ("    if stamped:\n        report", "    if False:\n        report", view.test_current_state_from_an_app_status),
    ("if status is Status.INITIALIZING:", "if False:", view.test_start_up_messages_in_order),
    ("if state.job_status is JobStatus.FAILED:", "if False:", view.test_current_state_without_an_app_status),
    (
        "if state.job_status is JobStatus.FAILED:",
        "if status is Status.ERROR:",
        view.test_current_state_without_an_app_status,
    ),
    ("if state.job_status is JobStatus.RUNNING:", "if False:", view.test_start_up_messages_in_order),
    (
        '    if agent is None:\n        return "Initializing workspace"\n    if agent.lifecycle',
        "    if agent is None or agent.lifecycle",
        view.test_start_up_messages_in_order,
    ),
    ("if agent.lifecycle is Lifecycle.CREATED:", "if False:", view.test_start_up_messages_in_order),
    ("workspace.name if workspace else task_name", "task_name", view.test_which_facets_outlive_a_build),
]
