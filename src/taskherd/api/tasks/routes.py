"""The task routes, as Coder's Tasks API has them; those that are ours beyond it are declared beside what they do."""

from __future__ import annotations

from typing import Final

from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.route import Header, ResponseSpec, Route
from taskherd.api.tasks import commands, long_poll, queries, search
from taskherd.api.tasks.schemas import CreateTask, TaskInput, TaskLogs, TasksList
from taskherd.api.workspaces.builds import BuildAsked
from taskherd.messages.document import TaskDocument

_ONE: Final = "/tasks/{user}/{task}"
_ETAG: Final = {"ETag": "Changes with the document."}
_WAITED: Final = {**_ETAG, long_poll.TIMED_OUT: "true where the wait was in vain."}
_IF_NONE_MATCH: Final = Header("If-None-Match", "An ETag of an earlier answer; 304 where nothing has changed since.")
_UNCHANGED: Final = ResponseSpec("Not changed since the ETag in If-None-Match.", headers=_ETAG)
_CONFLICT: Final = "The task can't be changed so as it is now; the message says why."

ROUTES: Final = (
    Route(
        method="GET",
        path="/tasks",
        handler=queries.list_tasks,
        summary="List AI tasks",
        description="All that the caller may read, newest first. With `limit` or `after` in pages.",
        query=search.ListQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: ResponseSpec(
                "The tasks.", TasksList, {**_ETAG, "X-Taskherd-Truncated": "true where a list had to be cut."}
            ),
            304: _UNCHANGED,
        },
        experimental=True,
    ),
    Route(
        method="POST",
        path="/tasks/{user}",
        handler=commands.create,
        summary="Create a new AI task",
        body=CreateTask,
        headers=(KEY_HEADER,),
        responses={
            200: ResponseSpec("The task that was created with this Idempotency-Key before.", TaskDocument),
            201: ResponseSpec("The task.", TaskDocument),
            404: ResponseSpec("No such user, or none that the caller may create tasks for."),
            409: ResponseSpec("The name is taken, or the Idempotency-Key was used for another request."),
        },
        experimental=True,
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=long_poll.get,
        summary="Get AI task by ID or name",
        description="With `wait`, once its status or state is one of `until`, or as it is when the time is up.",
        query=long_poll.TaskQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: ResponseSpec("The task.", TaskDocument, _WAITED),
            304: _UNCHANGED,
        },
        experimental=True,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=commands.delete,
        summary="Delete AI task",
        headers=(KEY_HEADER,),
        responses={202: ResponseSpec("Accepted; the task is gone from lists and look-ups.")},
        experimental=True,
    ),
    Route(
        method="PATCH",
        path=f"{_ONE}/input",
        handler=commands.update_input,
        summary="Update AI task input",
        body=TaskInput,
        headers=(KEY_HEADER,),
        responses={204: ResponseSpec("The prompt was replaced."), 409: ResponseSpec(_CONFLICT)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/send",
        handler=commands.send,
        summary="Send input to AI task",
        body=TaskInput,
        headers=(KEY_HEADER,),
        responses={
            204: ResponseSpec("Taken.", None, {"X-Taskherd-Queued": "true where it waits until the agent is idle."}),
            409: ResponseSpec(_CONFLICT),
        },
        experimental=True,
    ),
    Route(
        method="GET",
        path=f"{_ONE}/logs",
        handler=queries.logs,
        summary="Get AI task logs",
        responses={200: ResponseSpec("The conversation.", TaskLogs)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/pause",
        handler=commands.pause,
        summary="Pause AI task",
        headers=(KEY_HEADER,),
        responses={202: ResponseSpec("The build that stops the workspace.", BuildAsked), 409: ResponseSpec(_CONFLICT)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/resume",
        handler=commands.resume,
        summary="Resume AI task",
        headers=(KEY_HEADER,),
        responses={202: ResponseSpec("The build that starts the workspace.", BuildAsked), 409: ResponseSpec(_CONFLICT)},
        experimental=True,
    ),
)
