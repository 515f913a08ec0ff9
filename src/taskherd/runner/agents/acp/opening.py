"""Open an agent's session: initialize it, then continue its earlier session or begin a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskherd.runner.agents.acp import handshake
from taskherd.runner.agents.acp.connection import AUTH_REQUIRED

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.runner.agents.acp.connection import AgentResponse
    from taskherd.runner.agents.acp.conversation import Conversation
    from taskherd.runner.agents.context import AgentContext

MAX_SESSION_ID: Final = 1_024
MAX_WORDS: Final = 2_000


class SessionOpening:
    """The way to an open session of one agent; ``failure`` says why there is none."""

    def __init__(
        self,
        context: AgentContext,
        conversation: Conversation,
        call: Callable[[str, dict[str, Any]], None],
        checkpoint: dict[str, Any],
    ) -> None:
        self._context = context
        self._conversation = conversation
        self._call = call
        self.sign_in: str = checkpoint.get("sign_in", "")
        """What to do if the agent wants its user to sign in; some say so only when they are given a prompt."""
        self.session: str | None = checkpoint.get("session")
        if self.session is not None:  # or it is lost to the next build if the earlier runner did not save its journal
            context.journal.acp_session = self.session
        self.failure: str | None = None

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {"session": self.session, "sign_in": self.sign_in}

    def begin(self) -> None:
        """Call ``initialize``."""
        self._call("initialize", handshake.initialize_params(self._context.run))

    def fail(self, reason: str, *, entry: int | None = None) -> None:
        """Give up; the first reason counts. The log says why, as this ``entry`` if one is given."""
        if self.failure is None:
            self.failure = reason
            self._conversation.add_notice(reason, entry=entry)

    def handle(self, response: AgentResponse) -> None:
        """Take the next step after a response; at the end ``session`` or ``failure`` is set."""
        if response.method == "initialize":
            self._handle_initialized(response)
        elif response.error is None:
            self._handle_opened(response)
        else:
            self._handle_refused(response.method, response.error)

    def _handle_initialized(self, response: AgentResponse) -> None:
        if response.error is not None:
            self.fail(f"The agent refused `initialize`: {handshake.describe_error(response.error)}")
            return
        parsed = handshake.parse_initialized(response.result or {})
        if isinstance(parsed, str):
            self.fail(parsed)
            return
        self.sign_in = handshake.authentication_needed(response.result or {})[:MAX_WORDS]
        self._open(handshake.continuation(parsed, self._context.journal.acp_session))

    def _open(self, method: handshake.Continuation) -> None:
        """Request a session, or the continuation of the earlier one."""
        earlier = self._context.journal.acp_session if method != "session/new" else None
        if earlier is None and self._context.journal.acp_session is not None:
            self._conversation.add_notice("the agent cannot continue its earlier conversation, so it begins a new one")
        cwd, servers = str(self._context.workdir), self._context.mcp_servers
        self._call(method, handshake.session_params(cwd, servers, earlier))

    def _handle_opened(self, response: AgentResponse) -> None:
        """Use this session. The replay of a continued one came before this, and is not reported again."""
        journal = self._context.journal
        session: object = journal.acp_session
        if response.method == "session/new":
            session = (response.result or {}).get("sessionId")
        if not isinstance(session, str) or not 0 < len(session) <= MAX_SESSION_ID:
            self.fail("The agent's answer to `session/new` has no usable `sessionId`.")
            return
        self.session = journal.acp_session = session

    def _handle_refused(self, method: str, error: dict[str, Any]) -> None:
        words = handshake.describe_error(error)
        if error.get("code") == AUTH_REQUIRED:
            self.fail(f"{self.sign_in} Then resume the task.")
        elif method == "session/new":
            self.fail(f"The agent refused `{method}`: {words}")
        else:
            self._conversation.add_notice(f"the agent cannot continue its earlier conversation: {words}")
            self._context.journal.acp_session = None
            self._open("session/new")
