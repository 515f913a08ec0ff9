"""The end of an agent: report its last output and how it has ended, whatever goes wrong meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from taskherd import retry
from taskherd.runner.agents.context import report_exit
from taskherd.runner.agents.interrupting import as_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.runner.agents.context import AgentContext, Follower
    from taskherd.runner.workspaces.processes import ExitRecord

log = structlog.get_logger(__name__)

ATTEMPTS: Final = 10
"""Number of attempts to report an agent's last output; with the waits of ``retry.OUTAGE`` they take 22 s at most."""


async def conclude(
    context: AgentContext,
    agent_exit: ExitRecord,
    make_follower: Callable[[], Follower],
    *,
    follower: Follower | None = None,
) -> None:
    """Report the last output of an agent that has exited and how it ended, or in the end the latter alone.

    The first attempt is that of ``follower``, if there is one. After an unexpected error, such as a full disk, it is
    tried again by a new one, which continues from the last checkpoint: ``ATTEMPTS`` times in all, or only once more
    when the agent is to be stopped.
    """
    task_id = str(context.journal.task_id)
    for failures in range(1, ATTEMPTS + 1):
        is_last = context.stopping.is_set() or failures == ATTEMPTS
        try:
            await (follower or make_follower()).conclude(agent_exit)
        except Exception as error:
            if failures == 1:
                log.exception("reporting the last output of an agent failed, trying again", task_id=task_id)
            if is_last:
                log.error("the last output of an agent is not reported", task_id=task_id, reason=str(error))  # noqa: TRY400 - its traceback is logged above
                break
        else:
            return
        follower = None
        await retry.wait(context.stopping, retry.delay(failures))
    try:
        _report_exit_alone(context, agent_exit)
    except Exception:
        log.exception("reporting the exit of an agent failed", task_id=task_id)


def _report_exit_alone(context: AgentContext, agent_exit: ExitRecord) -> None:
    """Report how the agent ended, as far as that is known without its follower."""
    ended, because = as_interrupted(context, agent_exit), context.journal.ended_because
    if ended is agent_exit and because is not None:
        ended = replace(agent_exit, reason="exited", ended_because=because)
    report_exit(context, ended, context.checkpoint.get("state", ""), "", "")
