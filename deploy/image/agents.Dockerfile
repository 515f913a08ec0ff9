# An optional layer for runners: agents on top of taskherd's image. No test builds it; choose what your templates need.
#   make image && docker build -f deploy/image/agents.Dockerfile -t taskherd-agents:dev tests/real_agents
# The versions are those that `make agents` runs, with the hashes of what is downloaded; the context is their folder.
ARG TASKHERD=taskherd:dev
FROM ${TASKHERD}
USER 0:0
RUN apt-get update \
 && apt-get install -y --no-install-recommends nodejs npm git bubblewrap ca-certificates \
 && rm -rf /var/lib/apt/lists/*

# Claude Code, Codex, OpenCode and Gemini CLI, in the PATH. claude-agent-acp asks for Node 22; 20 was seen to do.
COPY npm/package.json npm/package-lock.json /opt/agents/
RUN npm install --omit=dev --no-fund --no-audit --prefix /opt/agents

# mini-SWE-agent.
COPY python/mini-swe-agent.txt /opt/agents/
RUN python -m venv /opt/agents/mini \
 && /opt/agents/mini/bin/pip install --no-cache-dir --require-hashes -r /opt/agents/mini-swe-agent.txt \
 && ln -s /opt/agents/mini/bin/mini /usr/local/bin/mini

# Aider and OpenHands need a Python 3.12 of their own; the hashes of Aider are those of tests/real_agents/python.
# COPY --from=docker.io/library/python:3.12-slim-trixie /usr/local /opt/python3.12
# COPY python/aider-chat.txt /opt/agents/
# RUN /opt/python3.12/bin/python3.12 -m venv /opt/agents/aider-chat \
#  && /opt/agents/aider-chat/bin/pip install --no-cache-dir --require-hashes -r /opt/agents/aider-chat.txt \
#  && ln -s /opt/agents/aider-chat/bin/aider /usr/local/bin/aider
# RUN apt-get update && apt-get install -y --no-install-recommends tmux && rm -rf /var/lib/apt/lists/* \
#  && /opt/python3.12/bin/python3.12 -m venv /opt/agents/openhands \
#  && /opt/agents/openhands/bin/pip install --no-cache-dir openhands==1.16.0 \
#  && ln -s /opt/agents/openhands/bin/openhands /usr/local/bin/openhands

# Goose is a binary of its releases on GitHub (github.com/block/goose): put the one for your machine, with its checksum, into the context.
# COPY --chmod=0755 goose /usr/local/bin/goose

# /opt is visible in sandboxes (TASKHERD_RUNNER_SANDBOX_PATHS).
ENV PATH=/opt/agents/node_modules/.bin:$PATH
USER 10001:10001
CMD ["runner"]
