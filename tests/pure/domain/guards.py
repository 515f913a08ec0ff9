"""The guards of the fold and of the view, each with what stands in its place and the test that must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.pure.domain import test_fold as fold
from tests.pure.domain import test_liveness as liveness
from tests.pure.domain import test_view as view
from tests.pure.domain.mutated_core import Core

Law: TypeAlias = Callable[[Core], None]
Guard: TypeAlias = tuple[str, str, Law]

ORDER: Law = fold.test_any_order_ends_as_the_contract_says

FOLD: list[Guard] = [
    # a facet takes only a greater report
    ("report.key > held.report.key", "report.key >= held.report.key", ORDER),
    ("report.key > held.report.key", "report.key < held.report.key", ORDER),
    ("report.key > held.report.key", "report.seq > held.report.seq", ORDER),
    ("report.key > held.report.key", "report.key[0] > held.report.key[0]", ORDER),
    # a clash is decided by the canonical JSON
    ("report.key == held.report.key and canonical", "False and canonical", ORDER),
    ("report.key == held.report.key and canonical", "canonical", ORDER),
    ("canonical(report) > canonical(held.report)", "canonical(report) < canonical(held.report)", ORDER),
    (
        "canonical(report) > canonical(held.report)",
        "canonical(report) >= canonical(held.report)",
        fold.test_a_repeat_is_stale,
    ),
    ("canonical(report) > canonical(held.report)", "True", ORDER),
    # a build report that contradicts what was asked is refused, one that does not is taken
    ("memory.asked.get(number, report.transition) is not report.transition", "False", fold.test_conflict),
    ("memory.asked.get(number, report.transition)", "memory.asked.get(number)", fold.test_conflict),
    # each facet of a build only where the report names it
    ("if report.workspace else memory.workspace", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.runner else memory.runner", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.agent_id else memory.agent", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if report.app else memory.app", "", fold.test_a_build_replaces_only_the_facets_it_names),
    ("if any(new is not old", "if all(new is not old", ORDER),
    # an answer, and a word after giving up
    ("if memory.unanswered == number:", "if False:", fold.test_a_request_is_answered_by_its_build),
    ("if memory.unanswered == number:", "if True:", fold.test_a_request_is_answered_by_its_build),
    ("if build is not memory.build:", "if False:", fold.test_a_later_word_ends_giving_up),
    ("if build is not memory.build:", "if True:", fold.test_a_later_word_ends_giving_up),
    # last-heard and appearance
    (
        "return replace(after, heard=_keep",
        "return after if after is memory else replace(after, heard=_keep",
        fold.test_the_first_appearance_stands_and_the_last_heartbeat_counts,
    ),
    ("number in memory.appeared:", "False:", fold.test_the_first_appearance_stands_and_the_last_heartbeat_counts),
    ("_appear(memory, report, now) if report.agent_id else memory", "memory", fold.test_what_makes_an_agent_appear),
    (
        "_appear(memory, report, now) if report.agent_id else memory",
        "_appear(memory, report, now)",
        fold.test_what_makes_an_agent_appear,
    ),
    ("appeared = _appear(memory, report, now)", "appeared = memory", fold.test_what_makes_an_agent_appear),
    (
        "_connection(_appear(memory, report, now), report, now))",
        "_connection(memory, report, now))",
        fold.test_what_makes_an_agent_appear,
    ),
    (
        "after = _connection(_appear(memory, report, now), report, now)\n",
        "after = _connection(memory, report, now)\n",
        fold.test_what_makes_an_agent_appear,
    ),
    ("return Folded(_heartbeat(memory", "return Folded(_connection(memory", ORDER),
    (
        "return _folded(memory, _connection(_appear",
        "return _folded(memory, _heartbeat(_appear",
        fold.test_only_a_heartbeat_is_heard,
    ),
    ("len(after) > BUILDS_KEPT", "False", fold.test_a_memory_is_bounded),
    ("len(after) > BUILDS_KEPT", "len(after) > 8", fold.test_a_memory_is_bounded),
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
    # a build number that is missing
    ("if report.build_number is not None:", "if False:", fold.test_a_missing_build_number_is_the_latest),
    ("memory.number if memory else 1", "1", fold.test_a_missing_build_number_is_the_latest),
]

VIEW: list[Guard] = [
    # what counts
    ("latest.transition is Transition.START and facet", "facet", view.test_no_agent_while_stopping),
    ("and facet.report.build_number == latest.build_number", "", view.test_what_outlives_a_build),
    (
        "memory.app_health and counts(memory, memory.app_health)",
        "memory.app_health",
        view.test_where_app_health_comes_from,
    ),
    ("memory.app and counts(memory, memory.app)", "memory.app", view.test_what_outlives_a_build),
    ("memory.agent if counts(memory, memory.agent) else None", "memory.agent", view.test_what_outlives_a_build),
    (
        "memory.lifecycle if counts(memory, memory.lifecycle) else None",
        "memory.lifecycle",
        view.test_what_outlives_a_build,
    ),
    (
        "memory.connection if counts(memory, memory.connection) else None",
        "memory.connection",
        view.test_what_outlives_a_build,
    ),
    ("held is not None and counts(memory, held) and", "held is not None and", ORDER),
    ("and isinstance(held.report, AgentDisconnected)", "", ORDER),
    ("held and memory.starting and held.report", "held and held.report", view.test_state_that_was_said),
    ("held.report.build_number != memory.number:", "False:", view.test_state_that_was_said),
    (
        "held.report.build_number != memory.number:",
        "held.report.build_number < memory.number:",
        view.test_state_that_was_said,
    ),
    # which agent
    (
        "build is None and lifecycle is None and connection is None",
        "build is None and lifecycle is None",
        view.test_which_agent,
    ),
    (
        "build is None and lifecycle is None and connection is None",
        "lifecycle is None and connection is None",
        view.test_which_agent,
    ),
    (
        "build is None and lifecycle is None and connection is None",
        "build is None and connection is None",
        view.test_status_of_each_agent,
    ),
    (
        "build.report.agent_id if build else max(named)[2] if named else None",
        "max(named)[2] if named else None",
        view.test_which_agent,
    ),
    ("max(named)", "min(named)", view.test_which_agent),
    ("(lifecycle.report.seq, 1,", "(lifecycle.report.seq, -1,", view.test_which_agent),
    ("if connection and connection.report.agent_id:", "if connection:", view.test_which_agent),
    ("if lifecycle and lifecycle.report.agent_id:", "if lifecycle:", view.test_which_agent),
    ("else Lifecycle.CREATED", "else Lifecycle.READY", view.test_which_agent),
    # the three rows
    ("    if build is not Status.ACTIVE:", "    if False:", view.test_status_of_each_build),
    (
        "    if agent is None:\n        return Status.INITIALIZING\n",
        "    if agent is None:\n        return Status.ACTIVE\n",
        view.test_status_of_each_agent,
    ),
    ("APP_STATUS[app] if running is Status.ACTIVE else running", "running", view.test_status_of_each_app),
    ("APP_STATUS[app] if running is Status.ACTIVE else running", "APP_STATUS[app]", view.test_status_of_each_agent),
    ("app.health if app and app.health else Health.DISABLED", "Health.DISABLED", view.test_where_app_health_comes_from),
    # connected
    ("return memory.number in memory.heard and", "return", ORDER),
    ("and not _said_goodbye(memory) and not found_silent", "and not found_silent", view.test_health_reasons_in_order),
    (
        "and not _said_goodbye(memory) and not found_silent",
        "and not _said_goodbye(memory)",
        view.test_health_reasons_in_order,
    ),
    (
        "found_silent = silence is not None and silence.build_number == memory.number",
        "found_silent = silence is not None",
        liveness.test_a_verdict_stands_until_a_heartbeat,
    ),
    # the reasons
    ("if not alive and agent.lifecycle is Lifecycle.OFF:", "if False:", view.test_health_reasons_in_order),
    (
        "if not alive and agent.lifecycle is Lifecycle.OFF:",
        "if agent.lifecycle is Lifecycle.OFF:",
        view.test_health_reasons_in_order,
    ),
    ("memory.number not in memory.heard and not _said_goodbye", "not _said_goodbye", view.test_health_reasons_in_order),
    (
        "memory.number not in memory.heard and not _said_goodbye(memory)",
        "memory.number not in memory.heard",
        view.test_health_reasons_in_order,
    ),
    (
        "late = silence is not None and silence.build_number == memory.number",
        "late = False",
        view.test_health_reasons_in_order,
    ),
    (
        "late = silence is not None and silence.build_number == memory.number",
        "late = silence is not None",
        liveness.test_a_verdict_stands_until_a_heartbeat,
    ),
    ("    if not alive:\n", "    if False:\n", view.test_health_reasons_in_order),
    ("if agent.lifecycle is Lifecycle.START_ERROR:", "if False:", view.test_health_reasons_in_order),
    ("if agent.lifecycle in SHUTTING_DOWN:", "if False:", view.test_health_reasons_in_order),
    # the state
    ("State.FAILED if report.state is State.FAILURE else report.state", "report.state", view.test_state_that_was_said),
    ("    if held:\n        report", "    if False:\n        report", view.test_state_that_was_said),
    ("if status is Status.INITIALIZING:", "if False:", view.test_start_up_messages_in_order),
    ("if memory.job is JobStatus.FAILED:", "if False:", view.test_state_without_a_word),
    ("if memory.job is JobStatus.FAILED:", "if status is Status.ERROR:", view.test_state_without_a_word),
    ("if memory.job is JobStatus.RUNNING:", "if False:", view.test_start_up_messages_in_order),
    (
        '    if agent is None:\n        return "Init',
        '    if False:\n        return "Init',
        view.test_start_up_messages_in_order,
    ),
    ("if agent.lifecycle is Lifecycle.CREATED:", "if False:", view.test_start_up_messages_in_order),
    ("workspace.name if workspace else task_name", "task_name", view.test_what_outlives_a_build),
]
