"""The routes of task actions."""

from __future__ import annotations

from typing import Final

from taskherd.api.actions import handlers, progress
from taskherd.api.actions.schemas import MAX_BYTES, Action, ActionPreview, ActionResults, Actions, CreateAction
from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.route import ResponseSpec, Route

_ONE: Final = "/task-actions/{action}"
_RETRY: Final = {"Retry-After": "Number of seconds after which to repeat the request."}

ROUTES: Final = (
    Route(
        method="POST",
        path="/task-actions",
        handler=handlers.create,
        summary="Create an action for many AI tasks",
        description=(
            "Pauses, resumes or deletes up to 10,000 tasks, or sends an input to them. The tasks are those that match"
            " now; with the `ids` of a dry run, only those of them. They are changed one after the other at a limited"
            " rate, also while the API or the worker is restarted; the action ends when the token of this request does."
        ),
        body=CreateAction,
        max_body=MAX_BYTES,
        admit=handlers.admit,
        headers=(KEY_HEADER,),
        responses={
            200: ResponseSpec(
                "With `dry_run`: what the action would be for. Otherwise the action that an earlier request with this"
                " Idempotency-Key made.",
                ActionPreview | Action,
            ),
            202: ResponseSpec("The action, which is executed in the background.", Action),
            409: ResponseSpec("Ten actions are unfinished, or the Idempotency-Key was used for another request."),
            413: ResponseSpec("The body is larger than 2 MiB."),
            429: ResponseSpec(
                "The caller has exceeded its rate limit, has four requests for actions in progress, or has made so many"
                " actions that some have to be deleted first.",
                headers=_RETRY,
            ),
            503: ResponseSpec(
                "The database is unavailable, others of the caller's actions are being added, or the index that `q`"
                " needs is behind the tasks.",
                headers=_RETRY,
            ),
        },
        tag="actions",
    ),
    Route(
        method="GET",
        path="/task-actions",
        handler=handlers.list_actions,
        summary="List actions",
        description="Returns the actions of the caller, newest first.",
        query=handlers.ActionListQuery,
        responses={200: ResponseSpec("The actions.", Actions)},
        compressed=True,
        tag="actions",
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=handlers.get,
        summary="Get an action",
        responses={200: ResponseSpec("The action and its progress.", Action)},
        tag="actions",
    ),
    Route(
        method="GET",
        path=f"{_ONE}/results",
        handler=handlers.results,
        summary="Get the results of an action",
        description="Returns what became of each task. For the next page, set `after` to the value of `next`.",
        query=handlers.ResultQuery,
        responses={200: ResponseSpec("The results.", ActionResults)},
        compressed=True,
        tag="actions",
    ),
    Route(
        method="GET",
        path=f"{_ONE}/watch",
        handler=progress.watch,
        summary="Watch the progress of an action",
        responses={
            200: ResponseSpec(
                "Server-sent events: `action.progress` (the action) first and after each change, until it is finished."
                " `resume`: the stream ends before, connect again.",
                media="text/event-stream",
                events=(progress.PROGRESS, "resume"),
            )
        },
        tag="actions",
    ),
    Route(
        method="POST",
        path=f"{_ONE}/cancel",
        handler=handlers.cancel,
        summary="Cancel an action",
        description=(
            "Ends the action after the commands that are in progress; tasks without a result stay as they are. A task"
            " whose command was sent and not confirmed has the result 503: it may still take effect."
        ),
        responses={202: ResponseSpec("The action.", Action)},
        tag="actions",
    ),
)
