"""The task routes, as Coder's Tasks API has them; those that are ours beyond it are declared beside what they do."""

from __future__ import annotations

from typing import Final

from taskherd.api.builds import BuildAsked
from taskherd.api.orders import KEY_HEADER
from taskherd.api.route import Header, Route, Says
from taskherd.api.tasks import reading, search, waiting, writing
from taskherd.api.tasks.bodies import CreateTask, TaskInput, TaskLogs, TasksList
from taskherd.wire.document import TaskDocument

_ONE: Final = "/tasks/{user}/{task}"
_ETAG: Final = {"ETag": "Changes with the document."}
_WAITED: Final = {**_ETAG, waiting.TIMED_OUT: "true where the wait was in vain."}
_IF_NONE_MATCH: Final = Header("If-None-Match", "An ETag of an earlier answer; 304 where nothing has changed since.")
_UNCHANGED: Final = Says("Not changed since the ETag in If-None-Match.", headers=_ETAG)
_CONFLICT: Final = "The task can't be changed so as it is now; the message says why."

ROUTES: Final = (
    Route(
        method="GET",
        path="/tasks",
        handler=reading.listed,
        summary="List AI tasks",
        description="All that the caller may read, newest first. With `limit` or `after` in pages.",
        query=search.ListQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: Says("The tasks.", TasksList, {**_ETAG, "X-Taskherd-Truncated": "true where a list had to be cut."}),
            304: _UNCHANGED,
        },
        experimental=True,
    ),
    Route(
        method="POST",
        path="/tasks/{user}",
        handler=writing.create,
        summary="Create a new AI task",
        body=CreateTask,
        headers=(KEY_HEADER,),
        responses={
            200: Says("The task that was created with this Idempotency-Key before.", TaskDocument),
            201: Says("The task.", TaskDocument),
            404: Says("No such user, or none that the caller may create tasks for."),
            409: Says("The name is taken, or the Idempotency-Key was used for another request."),
        },
        experimental=True,
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=waiting.get,
        summary="Get AI task by ID or name",
        description="With `wait`, once its status or state is one of `until`, or as it is when the time is up.",
        query=waiting.TaskQuery,
        headers=(_IF_NONE_MATCH,),
        responses={
            200: Says("The task.", TaskDocument, _WAITED),
            304: _UNCHANGED,
        },
        experimental=True,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=writing.delete,
        summary="Delete AI task",
        headers=(KEY_HEADER,),
        responses={202: Says("Accepted; the task is gone from lists and look-ups.")},
        experimental=True,
    ),
    Route(
        method="PATCH",
        path=f"{_ONE}/input",
        handler=writing.update_input,
        summary="Update AI task input",
        body=TaskInput,
        headers=(KEY_HEADER,),
        responses={204: Says("The prompt was replaced."), 409: Says(_CONFLICT)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/send",
        handler=writing.send,
        summary="Send input to AI task",
        body=TaskInput,
        headers=(KEY_HEADER,),
        responses={
            204: Says("Taken.", None, {"X-Taskherd-Queued": "true where it waits until the agent is idle."}),
            409: Says(_CONFLICT),
        },
        experimental=True,
    ),
    Route(
        method="GET",
        path=f"{_ONE}/logs",
        handler=reading.logs,
        summary="Get AI task logs",
        responses={200: Says("The conversation.", TaskLogs)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/pause",
        handler=writing.pause,
        summary="Pause AI task",
        headers=(KEY_HEADER,),
        responses={202: Says("The build that stops the workspace.", BuildAsked), 409: Says(_CONFLICT)},
        experimental=True,
    ),
    Route(
        method="POST",
        path=f"{_ONE}/resume",
        handler=writing.resume,
        summary="Resume AI task",
        headers=(KEY_HEADER,),
        responses={202: Says("The build that starts the workspace.", BuildAsked), 409: Says(_CONFLICT)},
        experimental=True,
    ),
)
