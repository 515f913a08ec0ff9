"""The rules of a task, as pure values and functions: no I/O, no clock (``now`` is an argument), no logging.

A task has no status that is moved from state to state. It has a *task state* (``task.py``): one *facet* for each aspect
that is reported independently, such as the build, the agent's lifecycle or the connection. A facet holds the report
with the greatest ``(build_number, seq)``. To fold a report (``fold.py``) is to compare it with the facets that it
concerns and to replace those that are smaller. Since a maximum depends neither on order nor on repetition, the same
reports give the same facets however they arrive: late, twice, in any order, in any batches.

Everything that users see is derived from the task state by tables (``view.py``) and never stored in it. ``explain.py``
returns the rule and the report behind each derived value.

A task changes for one of three reasons: a report (``reports.py``, ``fold.py``), a command (``commands.py``,
``handle_command.py``) or a timer check, which detects missing reports (``liveness.py``). ``task_update.py`` applies all
inputs of a batch to one task and collects what has to be saved or sent because of them.
"""
