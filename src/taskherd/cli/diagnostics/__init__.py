"""The checks of ``taskherd doctor``, one module for each thing that is checked; every wait has a timeout."""
