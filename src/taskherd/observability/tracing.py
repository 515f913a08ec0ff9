"""Propagate traces through messages as W3C Trace Context, and record OpenTelemetry spans.

https://www.w3.org/TR/trace-context/. With ``TASKHERD_TRACING=off`` traces are only propagated: messages caused by a
request or command carry its ``traceparent``. With ``otlp``, which needs the extra ``[otel]``, there is a span for each
request, command, batch, commit and publish.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Carrier = dict[str, str]
"""The headers ``traceparent`` and, optionally, ``tracestate``; empty if there is no trace."""

PARENT, STATE = "traceparent", "tracestate"
MAX_LINKS: Final = 32
"""Maximum number of links of a span."""
MAX_STATE: Final = 512
"""Maximum length of a ``tracestate``, in characters; a longer one is dropped."""
EXPORT_TIMEOUT: Final = 5.0
"""Timeout of an export to the collector, in seconds."""
_WELL_FORMED: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def extract(headers: Mapping[str, Any]) -> Carrier:
    """Return the trace in the headers of a message or request, or an empty carrier if they are not well-formed."""
    parent, state = headers.get(PARENT), headers.get(STATE)
    if not isinstance(parent, str) or not _WELL_FORMED.fullmatch(parent):
        return {}
    if isinstance(state, str) and state and len(state) <= MAX_STATE and state.isprintable():
        return {PARENT: parent, STATE: state}
    return {PARENT: parent}


class Tracing:
    """A propagator of traces that records no spans."""

    def __init__(self) -> None:
        self._current: ContextVar[Carrier] = ContextVar("trace")

    @contextmanager
    def span(
        self,
        name: str,  # noqa: ARG002 - used by ``OtelTracing``, like the attributes
        *,
        parent: Carrier | None = None,
        links: Iterable[Carrier] = (),
        **attributes: str | int,  # noqa: ARG002
    ) -> Iterator[None]:
        """Run the block in trace ``parent``, or in the common trace of ``links`` if they share one."""
        if not parent:
            parents = {each[PARENT]: each for each in links if each}
            parent = next(iter(parents.values())) if len(parents) == 1 else None
        if not parent:
            yield
            return
        token = self._current.set(parent)
        try:
            yield
        finally:
            self._current.reset(token)

    def current(self) -> Carrier:
        """Return the trace headers for a message that is sent now."""
        return self._current.get({})

    def close(self) -> None:
        """Send all remaining spans, within ``EXPORT_TIMEOUT``."""


class OtelTracing(Tracing):
    """A recorder of spans that sends them from a separate thread; spans are dropped while the collector is down."""

    def __init__(self, provider: TracerProvider) -> None:
        super().__init__()
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("taskherd")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self, name: str, *, parent: Carrier | None = None, links: Iterable[Carrier] = (), **attributes: str | int
    ) -> Iterator[None]:
        """Run the block in a span with ``links``, a child of ``parent`` or else of the current span."""
        from opentelemetry import trace  # noqa: PLC0415 - an optional dependency

        context = self._propagator.extract(parent) if parent else None
        different = {each[PARENT]: each for each in links if each}.values()
        contexts = (trace.get_current_span(self._propagator.extract(each)) for each in islice(different, MAX_LINKS))
        linked = [trace.Link(span.get_span_context()) for span in contexts]
        with self._tracer.start_as_current_span(
            f"taskherd {name}",
            context=context,
            links=linked,
            attributes={f"taskherd.{key}": value for key, value in attributes.items()},
        ):
            yield

    def current(self) -> Carrier:
        """Return the trace headers for a message that is sent now."""
        carrier: Carrier = {}
        self._propagator.inject(carrier)
        return carrier

    def close(self) -> None:
        """Send all remaining spans, within ``EXPORT_TIMEOUT``."""
        self._provider.force_flush(int(EXPORT_TIMEOUT * 1000))
        self._provider.shutdown()


def open_tracing(mode: str, process: str, version: str) -> Tracing:
    """Return the tracing for ``mode`` (off or otlp). Raise ``Misconfigured`` if the extra ``otel`` is not installed.

    The collector's address, the sampling rate and other options are set with OpenTelemetry's variables, ``OTEL_…``
    (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
    """
    if mode == "off":
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise Misconfigured("tracing", "otlp needs `pip install taskherd[otel]`; expected off without it") from error
    resource = Resource.create({"service.name": f"taskherd-{process}", "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=EXPORT_TIMEOUT)))
    return OtelTracing(provider)
