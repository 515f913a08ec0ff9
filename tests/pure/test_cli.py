"""The command line without services: exit codes, error messages, hidden secrets, fast start."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from taskherd.cli.main import WITHOUT_SETTINGS, app
from taskherd.cli.output import command_line

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset all ``TASKHERD_…`` variables, so that only those of a test are set."""
    for name in [name for name in os.environ if name.startswith("TASKHERD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")


def test_an_invalid_setting_exits_with_2_and_a_message() -> None:
    """``Misconfigured`` exits with 2 and names every invalid variable on stderr, without a traceback."""
    result = CliRunner().invoke(
        app, ["topology", "apply"], env={"TASKHERD_GRACE": "soon", "TASKHERD_LOG_LEVEL": "loud"}
    )
    assert result.exit_code == 2
    assert "TASKHERD_GRACE: 'soon' is wrong (not a duration); expected" in result.stderr
    assert "TASKHERD_LOG_LEVEL: 'loud' is wrong" in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_a_missing_setting_is_named_with_an_example() -> None:
    """A command names each required setting that is not set, with the expected value."""
    result = CliRunner().invoke(app, ["topology", "apply"])
    assert result.exit_code == 2
    assert "TASKHERD_AMQP_URL: not set; expected amqp://" in result.stderr


def test_a_database_that_cannot_be_reached_is_named() -> None:
    """The one line of the error has the server's address, and never the password."""
    env = {"TASKHERD_DATABASE_URL": "postgresql://u:s3cr3t@127.0.0.1:1/x"}
    result = CliRunner().invoke(app, ["db", "current"], env=env)
    error = "taskherd: PostgreSQL can't be reached: 127.0.0.1:1: Connection refused\n"
    assert (result.exit_code, result.stderr) == (1, error)


def test_an_unknown_variable_is_warned_about() -> None:
    """A misspelled variable causes a warning on stderr with the nearest name; the command still runs."""
    result = CliRunner().invoke(app, ["config", "-o", "json"], env={"TASKHERD_AGENT_LOST_AFTR": "5s"})
    assert result.exit_code == 0
    assert "unknown setting TASKHERD_AGENT_LOST_AFTR; did you mean TASKHERD_AGENT_LOST_AFTER?" in result.stderr


@pytest.mark.parametrize("arguments", [["config"], ["config", "-o", "json"]])
def test_config_hides_secrets(arguments: list[str]) -> None:
    """``taskherd config`` shows every setting and no secret."""
    env = {
        "TASKHERD_SECRET_KEY": KEY,
        "TASKHERD_AMQP_URL": "amqp://alice:s3cr3t@mq.example/",
        "TASKHERD_PREFETCH": "7000",
    }
    result = CliRunner().invoke(app, arguments, env=env)
    assert result.exit_code == 0
    assert "7000" in result.stdout
    assert "alice:********@mq.example" in result.stdout
    assert KEY not in result.output
    assert "s3cr3t" not in result.output


def test_a_command_to_be_copied_is_quoted_for_a_shell() -> None:
    """Each argument is one word of it as it is; one that looks like an option comes after ``--``."""
    assert command_line("taskherd task resume", "alice/fix") == "taskherd task resume alice/fix"
    assert command_line("taskherd dead replay", "$(id)") == "taskherd dead replay '$(id)'"
    assert command_line("taskherd dead replay", "-x", "") == "taskherd dead replay -- -x ''"


def test_version_and_help_need_no_settings() -> None:
    """``--version`` and ``--help`` work without any setting."""
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("taskherd ")
    assert "doctor" in CliRunner().invoke(app, ["--help"]).stdout


def test_shell_completion_needs_no_settings() -> None:
    """Commands are completed without any setting; without an API no task names are offered, and no error is shown."""
    for words, expected in (("taskherd task w", {"wait", "watch"}), ("taskherd task show ", set())):
        env = {"_TASKHERD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(app, [], prog_name="taskherd", env=env)
        assert set(result.stdout.split()) == expected, result.output


def test_doctor_names_each_missing_setting() -> None:
    """Without any setting, doctor exits with 1 and names each required setting."""
    result = CliRunner().invoke(app, ["doctor"], env={"TASKHERD_OPS_PORT": "1"})
    assert result.exit_code == 1
    for variable in ("TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"):
        assert variable in result.stdout


def test_the_nearest_command_is_suggested_for_a_mistyped_one() -> None:
    """A mistyped command exits with 2 and suggests the nearest command."""
    result = CliRunner().invoke(app, ["wroker"])
    assert result.exit_code == 2
    assert "Did you mean 'worker'?" in result.stderr


@pytest.mark.parametrize("command", WITHOUT_SETTINGS)
def test_clients_of_the_api_import_neither_settings_nor_database(command: str) -> None:
    """``taskherd task`` and the like start quickly because they do not import the heavy libraries."""
    run = f"import sys; from taskherd.cli.main import app; app(['{command}', '--help'], standalone_mode=False)"
    heavy = "print(sorted({'sqlalchemy', 'pydantic_settings', 'aio_pika', 'structlog'} & set(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", f"{run}; {heavy}"], capture_output=True, text=True, timeout=30, check=True
    )
    assert process.stdout.splitlines()[-1] == "[]"
