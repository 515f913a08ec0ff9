# One image for all processes: `docker run … taskherd worker`, `api`, `runner`, and `db upgrade` as the migration job.
# `make image` builds it; deploy/compose.yaml and deploy/helm run it.
# `make image BASE=python:3.13-slim@sha256:…` pins the base by digest (docs/operations.md, "The image").
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
RUN python -m venv /tools && python -m venv --without-pip /opt/taskherd
# Install dependencies first, because they change less often than the source.
COPY deploy/image/build.lock deploy/image/requirements.lock ./
RUN /tools/bin/python -m pip install --require-hashes -r build.lock \
 && /tools/bin/python -m pip --python /opt/taskherd/bin/python install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY deploy/example-directory.yaml deploy/
RUN /tools/bin/python -m pip wheel --no-deps --no-build-isolation -w dist . \
 && /tools/bin/python -m pip --python /opt/taskherd/bin/python install --no-deps dist/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="taskherd" \
      org.opencontainers.image.description="Runs and tracks fleets of AI coding agents" \
      org.opencontainers.image.licenses="Apache-2.0"
# Debian packages to add, such as bubblewrap for templates with `sandbox: bwrap`: --build-arg PACKAGES=bubblewrap
ARG PACKAGES=""
RUN if [ -n "$PACKAGES" ]; then apt-get update && apt-get install -y --no-install-recommends $PACKAGES \
 && rm -rf /var/lib/apt/lists/*; fi
# An unprivileged user, who owns nothing but /var/lib/taskherd. Only the runner writes there. Other users may pass through:
# with TASKHERD_RUNNER_AGENT_UIDS each task's folder is its user's own.
RUN groupadd --gid 10001 taskherd \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/taskherd --shell /usr/sbin/nologin taskherd \
 && install -d -o 10001 -g 10001 -m 0711 /var/lib/taskherd
COPY --from=build /opt/taskherd /opt/taskherd
# TASKHERD_RUNNER_DRAIN: no agent outlives its runner's container, so the runner pauses them, and the next one starts them.
ENV PATH=/opt/taskherd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    TASKHERD_OPS_HOST=0.0.0.0 TASKHERD_OPS_PORT=9590 TASKHERD_API_HOST=0.0.0.0 TASKHERD_LOG_FORMAT=json \
    TASKHERD_RUNNER_DRAIN=pause
WORKDIR /var/lib/taskherd
USER 10001:10001
EXPOSE 9590 7080
STOPSIGNAL SIGTERM
# Checks liveness, not readiness: a process is not restarted because its database is unavailable.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-m", "taskherd.observability.health"]
# Exec form, without a shell, so that signals reach the process itself.
ENTRYPOINT ["taskherd"]
CMD ["worker"]
