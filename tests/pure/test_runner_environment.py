"""What the runner of ``taskherd dev`` is handed of the developer's environment."""

from __future__ import annotations

import re
from pathlib import Path

from taskherd.dev import runner_environment
from taskherd.settings.fields import Settings
from taskherd.settings.loading import variable_of

RUNNER = Path(runner_environment.__file__).parents[1] / "runner"


def test_only_what_is_needed_or_inherited_is_passed_on() -> None:
    """A variable that nobody knows stays behind, and a template cannot have the servers' secrets passed on."""
    inherited = {"OPENAI_API_KEY", "TASKHERD_SECRET_KEY", "UNSET"}
    needed = {
        *("PATH", "HOME", "LC_ALL", "TMPDIR", "https_proxy", "OTEL_EXPORTER_OTLP_ENDPOINT", "PYTHONPATH"),
        *("TASKHERD_AMQP_URL", "TASKHERD_RUNNER_AGENT_UIDS", "TASKHERD_LOG_LEVEL"),
    }
    others = {
        *("AWS_SECRET_ACCESS_KEY", "ANTHROPIC_API_KEY", "PGPASSWORD", "TASKHERD_DATABASE_URL", "TASKHERD_SECRET_KEY"),
        *("TASKHERD_DATABASE_READ_URL", "TASKHERD_SECRET_KEY_FILE", "TASKHERD_TOKEN", "TASKHERD_LATER_SECRET"),
    }
    environ = {name: name.lower() for name in {*needed, *others, "OPENAI_API_KEY"}}
    expected = {name: environ[name] for name in {*needed, "OPENAI_API_KEY"}}
    assert runner_environment.select(environ, inherited) == expected


def test_every_setting_that_a_runner_reads_is_passed_on() -> None:
    """And of the settings that are secret only the URL of its broker."""
    source = "".join(path.read_text() for path in RUNNER.rglob("*.py"))
    read = {name for name in re.findall(r"settings\.(\w+)", source) if name in Settings.model_fields}
    assert {"amqp_url", "grace", "runner_root", "log_entries_rate"} <= read
    variables = {variable_of(name): "" for name in Settings.model_fields}
    passed = runner_environment.select(variables, ()).keys()
    assert {variable_of(name) for name in {*read, "ops_port"}} <= passed
    secret = {variable_of(name) for name, field in Settings.model_fields.items() if field.repr is False}
    assert passed & secret == {"TASKHERD_AMQP_URL"}
