"""The task routes: Coder's Tasks API, and taskherd's extensions ``watch``, ``events`` and ``explain``."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.event_ids import LAST_EVENT_ID
from taskherd.api.http.route import Header, ResponseSpec, Route
from taskherd.api.tasks import (
    batches,
    commands,
    deleted,
    durations,
    explain,
    log_follow,
    long_poll,
    overview,
    queries,
    search,
    sse,
    task_follow,
    totals,
)
from taskherd.api.tasks.explain_schemas import TaskExplanation, Timeline
from taskherd.api.tasks.schemas import (
    CreateResults,
    CreateTask,
    CreateTasks,
    DeletedTasks,
    Durations,
    LabelsRequest,
    RequestedInterrupt,
    SendRequest,
    TaskInputRequest,
    TaskLogs,
    TaskOut,
    TaskOverview,
    TasksList,
    TaskTotals,
)
from taskherd.api.workspaces.schemas import RequestedBuild
from taskherd.messages.document import TaskDocument

_ONE: Final = "/tasks/{user}/{task}"
_ETAG: Final = {"ETag": "Tag of this version of the response, for If-None-Match."}
_WAITED: Final = {
    **_ETAG,
    long_poll.TIMED_OUT: "`true` if the task had none of the requested values in time.",
}
_IF_NONE_MATCH: Final = Header(
    "If-None-Match", "ETag of an earlier response; if nothing has changed since, the response is a 304."
)
_UNCHANGED: Final = ResponseSpec("The response has not changed since the ETag in If-None-Match.", headers=_ETAG)
_CONFLICT: Final = "The task's status does not allow the change; the message explains why."
_LAST_EVENT_ID: Final = Header(
    LAST_EVENT_ID, "Id of the last event that was received; the stream resumes after it.", {"type": "string"}
)
_STREAM: Final = ResponseSpec(
    "Server-sent events: first `task.snapshot` (a task document) for each task, then `task.created`, `task.updated` and"
    " `task.deleted` (a CloudEvent) for each change, with its position as id. `reset`: the history after Last-Event-ID"
    " was pruned, and snapshots follow. `resume`: the stream ends, connect again with the last id. A comment is sent"
    " after at most 15 seconds without an event.",
    media="text/event-stream",
    events=("task.snapshot", "task.created", "task.updated", "task.deleted", "reset", "resume"),
)

ROUTES: Final = (
    Route(
        method="GET",
        path=_ONE,
        handler=long_poll.get,
        summary="Get an AI task by ID or name",
        description="With `wait`, the response is sent once the status or state is one of `until`, or on timeout.",
        query=long_poll.TaskQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: ResponseSpec("The task.", TaskOut, _WAITED),
            304: _UNCHANGED,
        },
        experimental=True,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=commands.delete,
        summary="Delete an AI task",
        headers=(KEY_HEADER,),
        responses={202: ResponseSpec("The task is hidden; its workspace will be deleted.")},
        experimental=True,
    ),
    Route(
        method="GET",
        path="/tasks",
        handler=queries.list_tasks,
        summary="List AI tasks",
        description=(
            "Returns all tasks that the caller may see and that match `q`, newest first; in pages with `limit` or"
            " `after`. What no index serves is refused, and the answer says what to leave out."
        ),
        query=search.ListQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: ResponseSpec(
                "The tasks.", TasksList, {**_ETAG, "X-Taskherd-Truncated": "`true` if the list is truncated."}
            ),
            304: _UNCHANGED,
        },
        experimental=True,
        compressed=True,
    ),
    Route(
        method="GET",
        path="/tasks/watch",
        handler=sse.watch_all,
        summary="Watch AI tasks",
        description=(
            "Streams the changes of all tasks that the caller may see and that match `q`. With a status, a task that"
            " leaves it is sent once more: as a `task.updated` whose document has another status."
        ),
        query=search.WatchQuery,
        headers=(_LAST_EVENT_ID,),
        responses={200: _STREAM},
    ),
    Route(
        method="GET",
        path=f"{_ONE}/watch",
        handler=task_follow.watch,
        summary="Watch an AI task",
        description="Streams the changes of one task, with `logs` also its log, and ends when it is deleted.",
        query=task_follow.WatchTaskQuery,
        headers=(_LAST_EVENT_ID,),
        responses={200: replace(_STREAM, events=(*_STREAM.events, log_follow.EVENT, log_follow.INBOX_EVENT))},
    ),
    Route(
        method="GET",
        path="/task-totals",
        handler=totals.get,
        summary="Get the totals of AI tasks",
        description=(
            "Returns how many tasks the caller may see and match `q`, by status, state and health, and how many of them"
            " need a person. The totals are maintained with the tasks: the cost does not depend on their number."
        ),
        query=search.TotalsQuery,
        headers=(_IF_NONE_MATCH,),
        responses={200: ResponseSpec("The totals.", TaskTotals, _ETAG), 304: _UNCHANGED},
    ),
    Route(
        method="GET",
        path="/task-overview",
        handler=overview.get,
        summary="Get an overview of AI tasks",
        description=(
            "Returns in one answer what the first page of a board shows of the tasks that the caller may see and that"
            " match `q`: their totals, the oldest open requests, and the first tasks of each group of those that need a"
            " person, run, or are complete. To follow the changes, watch with `position` as Last-Event-ID."
        ),
        query=overview.OverviewQuery,
        responses={200: ResponseSpec("The overview.", TaskOverview)},
        compressed=True,
    ),
    Route(
        method="GET",
        path="/deleted-tasks",
        handler=deleted.list_deleted,
        summary="List deleted AI tasks",
        description=(
            "Returns the deleted tasks that the caller may see and that match `q`, last deleted first, with who deleted"
            " each, until they are erased. A page looks at no more than 10,000 deleted tasks of all users, the last"
            " before its cursor; if few of them are the caller's, `next` leads to those before."
        ),
        query=deleted.DeletedQuery,
        responses={200: ResponseSpec("The deleted tasks.", DeletedTasks)},
        compressed=True,
    ),
    Route(
        method="POST",
        path="/tasks/{user}",
        handler=commands.create,
        summary="Create a new AI task",
        body=CreateTask,
        headers=(KEY_HEADER,),
        responses={
            200: ResponseSpec("The task that an earlier request with this Idempotency-Key created.", TaskDocument),
            201: ResponseSpec("The new task.", TaskDocument),
            404: ResponseSpec("The user does not exist, or the caller may not create tasks for it."),
            409: ResponseSpec("The name is in use, or the Idempotency-Key was used for another request."),
        },
        experimental=True,
    ),
    Route(
        method="POST",
        path="/task-batches",
        handler=batches.create,
        summary="Create many AI tasks",
        description=(
            "Creates up to 1,000 tasks. Each is judged by itself and counts against the caller's rate of creates; one"
            " beyond the rate has a 429 in its result. Repeating the request with the same Idempotency-Key creates"
            " nothing twice, and what was created before is not counted again."
        ),
        body=CreateTasks,
        max_body=batches.MAX_BYTES,
        admit=batches.admit,
        headers=(batches.BATCH_KEY_HEADER,),
        responses={
            200: ResponseSpec("The results, in the order of the tasks.", CreateResults),
            413: ResponseSpec("The body is larger than 4 MiB."),
            429: ResponseSpec(
                "The caller has exceeded its rate limit, or has two batches in progress.",
                headers={"Retry-After": "Number of seconds after which to repeat the request."},
            ),
        },
    ),
    Route(
        method="PATCH",
        path=f"{_ONE}/input",
        handler=commands.update_input,
        summary="Update the input of an AI task",
        body=TaskInputRequest,
        headers=(KEY_HEADER,),
        responses={204: ResponseSpec("The prompt was replaced."), 409: ResponseSpec(_CONFLICT)},
        experimental=True,
    ),
    Route(
        method="PATCH",
        path=f"{_ONE}/labels",
        handler=commands.update_labels,
        summary="Update the labels of an AI task",
        body=LabelsRequest,
        headers=(KEY_HEADER,),
        responses={200: ResponseSpec("The task.", TaskDocument)},
    ),
    Route(
        method="POST",
        path=f"{_ONE}/send",
        handler=commands.send,
        summary="Send input to an AI task",
        body=SendRequest,
        headers=(KEY_HEADER,),
        responses={
            204: ResponseSpec(
                "The input was accepted.",
                None,
                {
                    "X-Taskherd-Queued": "`true` if the input waits for an idle agent.",
                    "X-Taskherd-Answered": "ID of the agent's request that the input answered: its only open one, if"
                    " that wants a text.",
                },
            ),
            409: ResponseSpec(_CONFLICT),
        },
        experimental=True,
    ),
    Route(
        method="GET",
        path=f"{_ONE}/logs",
        handler=queries.logs,
        summary="Get the logs of an AI task",
        query=queries.TaskLogQuery,
        responses={200: ResponseSpec("The log entries.", TaskLogs)},
        experimental=True,
        compressed=True,
    ),
    Route(
        method="GET",
        path=f"{_ONE}/logs/watch",
        handler=log_follow.watch,
        summary="Watch the logs of an AI task",
        description=(
            "Streams the newest entries of the task's log, then entries that are added, and that are replaced while a"
            " tool call or a message goes on. It ends when the task is deleted."
        ),
        query=log_follow.LogStreamQuery,
        headers=(_LAST_EVENT_ID,),
        responses={
            200: ResponseSpec(
                "Server-sent events `task.logs`, each a `LogChanges` with its revision as id. `resume`: the stream"
                " ends, connect again with the last id. A comment is sent after at most 15 seconds without an event.",
                media="text/event-stream",
                events=("task.logs", "resume"),
            )
        },
    ),
    Route(
        method="GET",
        path=f"{_ONE}/durations",
        handler=durations.durations,
        summary="Get how long an AI task was in each state",
        responses={200: ResponseSpec("The durations.", Durations)},
    ),
    Route(
        method="POST",
        path=f"{_ONE}/pause",
        handler=commands.pause,
        summary="Pause an AI task",
        headers=(KEY_HEADER,),
        responses={
            202: ResponseSpec("The build that stops the workspace.", RequestedBuild),
            409: ResponseSpec(_CONFLICT),
        },
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/resume",
        handler=commands.resume,
        summary="Resume an AI task",
        headers=(KEY_HEADER,),
        responses={
            202: ResponseSpec("The build that starts the workspace.", RequestedBuild),
            409: ResponseSpec(_CONFLICT),
        },
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/interrupt",
        handler=commands.interrupt,
        summary="Interrupt the agent of an AI task",
        description=(
            "Ends what the agent does: its turn, or the agent itself if nothing less helps. Until that is done,"
            " `interrupt` of the task says since when it is going on, and no input is sent; another request joins it."
        ),
        headers=(KEY_HEADER,),
        responses={
            202: ResponseSpec("The interrupt.", RequestedInterrupt),
            409: ResponseSpec("The agent is not working."),
        },
    ),
    Route(
        method="GET",
        path=f"{_ONE}/events",
        handler=explain.timeline,
        summary="Get the timeline of an AI task",
        description="Returns the changes of the task in order. For the next page, set `after` to the last position.",
        query=explain.TimelineQuery,
        responses={
            200: ResponseSpec(
                "The changes.", Timeline, {"X-Taskherd-Truncated": "`true` if large ones left no room for others."}
            )
        },
        compressed=True,
    ),
    Route(
        method="GET",
        path=f"{_ONE}/explain",
        handler=explain.explain_task,
        summary="Explain an AI task",
        description="Returns why the task has its status, state and health, and what would change them.",
        responses={200: ResponseSpec("The reasons.", TaskExplanation)},
    ),
)
