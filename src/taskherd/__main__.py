"""So that `python -m taskherd` is the command `taskherd`."""

from taskherd.cli.main import app

app(prog_name="taskherd")
