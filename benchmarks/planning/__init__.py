"""Emulated clusters on which the planner's predictions and its plans are measured: `python -m benchmarks.planning`."""
