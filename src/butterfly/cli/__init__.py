"""The command line: parse, build, start. The only room that picks concrete classes.

Promises: bad input is one line on standard error and a non-zero exit; nothing that was started outlives the
command. Must not contain logic that deserves a unit test of its own.

A new command is one module here and one line in `main`.
"""
