"""Butterfly: one transformer, several ordinary machines."""

__version__ = "0.1.0"
