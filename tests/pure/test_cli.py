"""The command line's own promises: exit codes, plain messages, hidden secrets. None of it needs a service."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from taskherd.cli.main import app

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ours is set but what a test sets."""
    for name in [name for name in os.environ if name.startswith("TASKHERD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")


def test_a_wrong_setting_ends_with_2_and_a_plain_message() -> None:
    """Misconfigured exits 2, names every wrong variable on stderr, and shows no traceback."""
    result = CliRunner().invoke(
        app, ["topology", "apply"], env={"TASKHERD_GRACE": "soon", "TASKHERD_LOG_LEVEL": "loud"}
    )
    assert result.exit_code == 2
    assert "TASKHERD_GRACE: 'soon' is wrong (not a duration); expected" in result.stderr
    assert "TASKHERD_LOG_LEVEL: 'loud' is wrong" in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_a_missing_setting_is_named_with_an_example() -> None:
    """What a command needs and does not find, it names, with what was expected."""
    result = CliRunner().invoke(app, ["topology", "apply"])
    assert result.exit_code == 2
    assert "TASKHERD_AMQP_URL: not set; expected amqp://" in result.stderr


def test_an_unknown_variable_is_warned_about() -> None:
    """A misspelt variable is warned about on stderr with the nearest name, and stops nothing."""
    result = CliRunner().invoke(app, ["config", "--plain"], env={"TASKHERD_AGENT_LOST_AFTR": "5s"})
    assert result.exit_code == 0
    assert (
        "TASKHERD_AGENT_LOST_AFTR is no setting of taskherd; did you mean TASKHERD_AGENT_LOST_AFTER?" in result.stderr
    )


@pytest.mark.parametrize("arguments", [["config"], ["config", "--plain"]])
def test_config_hides_secrets(arguments: list[str]) -> None:
    """`taskherd config` shows every setting and no secret."""
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


def test_the_version_is_shown() -> None:
    """`--version` and `--help` need no setting."""
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("taskherd ")
    assert "doctor" in CliRunner().invoke(app, ["--help"]).stdout


def test_the_shell_completes_commands() -> None:
    """Completion needs no setting, and names of tasks are left out quietly where no API is set."""
    for words, expected in (("taskherd task w", {"wait", "watch"}), ("taskherd task show ", set())):
        env = {"_TASKHERD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(app, [], prog_name="taskherd", env=env)
        assert set(result.stdout.split()) == expected, result.output


def test_doctor_names_what_is_missing() -> None:
    """With nothing set, doctor exits 1 and says for each needed setting what to give."""
    result = CliRunner().invoke(app, ["doctor"], env={"TASKHERD_OPS_PORT": "1"})
    assert result.exit_code == 1
    for variable in ("TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL", "TASKHERD_SECRET_KEY"):
        assert variable in result.stdout


def test_a_command_is_suggested_for_one_that_is_not_there() -> None:
    """A mistyped command is answered with the nearest one."""
    result = CliRunner().invoke(app, ["wroker"])
    assert result.exit_code == 2
    assert "Did you mean 'worker'?" in result.stderr


def test_commands_over_the_api_load_neither_settings_nor_database() -> None:
    """`taskherd task` starts quickly, since it imports only what it needs."""
    told = "import sys; from taskherd.cli.main import app; app(['task', '--help'], standalone_mode=False)"
    heavy = "print(sorted({'sqlalchemy', 'pydantic_settings', 'aio_pika', 'structlog'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{told}; {heavy}"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
