"""What a task is and everything that can happen to it: pure values and functions, no I/O and no clock."""
