"""The environment in which real agents use the scripted model instead of their own."""

from __future__ import annotations

import json

ANTHROPIC_API_KEY = "sk-ant-api03-of-the-scripted-model-0123456789"
MODEL = "scripted"
CLAUDE_SETTINGS = json.dumps({"permissions": {"defaultMode": "default"}})
"""The settings with which Claude Code asks for permission, instead of having a model decide."""


def environment(url: str) -> dict[str, str]:
    """Return the variables that lead the agents to the model server at ``url``."""
    codex = {
        "model": MODEL,
        "model_providers": {
            MODEL: {
                "name": MODEL,
                "base_url": f"{url}/v1",
                "wire_api": "responses",
                "env_key": "OPENAI_API_KEY",
            }
        },
    }
    config_toml = (
        f'model = "{MODEL}"\nmodel_provider = "{MODEL}"\n[model_providers.{MODEL}]\nname = "{MODEL}"\n'
        f'base_url = "{url}/v1"\nwire_api = "responses"\nenv_key = "OPENAI_API_KEY"\n'
    )
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Scripted",
        "options": {"baseURL": f"{url}/v1", "apiKey": "of-the-scripted-model"},
        "models": {MODEL: {"name": "Scripted", "tool_call": True}},
    }
    opencode = {
        "provider": {MODEL: provider},
        "model": f"{MODEL}/{MODEL}",
        "small_model": f"{MODEL}/{MODEL}",
        "permission": {"bash": "ask", "edit": "ask"},
        "autoupdate": False,
        "share": "disabled",
    }
    return {
        "ANTHROPIC_API_KEY": ANTHROPIC_API_KEY,
        "ANTHROPIC_BASE_URL": url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "GEMINI_API_KEY": "of-the-scripted-model",
        "GOOGLE_GEMINI_BASE_URL": url,
        "OPENAI_API_KEY": "of-the-scripted-model",
        "DEFAULT_AUTH_REQUEST": json.dumps({"methodId": "api-key"}),
        "MODEL_PROVIDER": MODEL,
        "INITIAL_AGENT_MODE": "workspace-write",
        "AIDER_MODEL": f"openai/{MODEL}",
        "LLM_API_KEY": "of-the-scripted-model",
        "LLM_BASE_URL": f"{url}/v1",
        "LLM_MODEL": f"openai/{MODEL}",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_MODEL_NAME": f"openai/{MODEL}",
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_BASE_URL": f"{url}/v1",
        "CODEX_CONFIG": json.dumps(codex),
        "CODEX_CONFIG_TOML": config_toml,
        "OPENCODE_CONFIG_CONTENT": json.dumps(opencode),
    }
