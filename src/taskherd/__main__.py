"""Run the command ``taskherd`` as ``python -m taskherd``."""

from taskherd.cli.main import app

app(prog_name="taskherd")
