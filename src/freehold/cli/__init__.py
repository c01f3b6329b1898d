"""The command line: one file per verb, imported only when that verb is used.

Turns words into calls of the rooms below, and their results and errors into text, JSON and exit codes. It knows
nothing of tensors, kernels or HTTP; `freehold --help` imports none of them.

Exit codes: 0 good, 1 the thing checked fell short, 2 wrong use, 3 a dependency (file, network, provider) failed,
70 a bug of ours, 130 interrupted, 141 the reader of our output went away.
"""

from freehold.cli.frame import VERBS, app, main

__all__ = ["VERBS", "app", "main"]
