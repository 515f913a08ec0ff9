"""The routes of agents' requests."""

from __future__ import annotations

from typing import Final

from taskherd.api.agent_requests import handlers
from taskherd.api.agent_requests.schemas import AgentRequestPage, AnswerBody, WaitingRequests
from taskherd.api.commands import KEY_HEADER
from taskherd.api.http.route import ResponseSpec, Route

ROUTES: Final = (
    Route(
        method="GET",
        path="/requests",
        handler=handlers.queue,
        summary="List what agents ask and wait for",
        description="Returns the open requests of all tasks that the caller may see and that match `q`, oldest first,"
        " with all that answering needs.",
        query=handlers.QueueQuery,
        responses={
            200: ResponseSpec(
                "The requests.",
                WaitingRequests,
                {"X-Taskherd-Truncated": "`true` if more tasks wait than are looked at; then the newest of them are."},
            )
        },
        compressed=True,
        tag="requests",
    ),
    Route(
        method="GET",
        path="/tasks/{user}/{task}/requests",
        handler=handlers.of_task,
        summary="List what the agent of an AI task has asked",
        description="Returns the requests of the task with what became of them, open ones first.",
        query=handlers.TaskRequestsQuery,
        responses={200: ResponseSpec("The requests.", AgentRequestPage)},
        compressed=True,
        tag="requests",
    ),
    Route(
        method="POST",
        path="/tasks/{user}/{task}/requests/{request}/answer",
        handler=handlers.answer,
        summary="Answer what the agent of an AI task asks",
        description="The first answer that is accepted counts, and goes to the agent. Who may change the task may"
        " answer.",
        body=AnswerBody,
        headers=(KEY_HEADER,),
        responses={
            204: ResponseSpec("The answer was accepted."),
            404: ResponseSpec("There is no such task, or it has no such request."),
            409: ResponseSpec("The request is no longer open; the detail says what became of it, by whom and when."),
        },
        tag="requests",
    ),
)
