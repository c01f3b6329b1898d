"""Freehold: own your AI instead of renting it.

Rooms, from the street inward: `cli`, `gateway`, `engine` and `compress`, `formats` and `kernels`, `settings`, `errors`.
Imports go only downward (see `docs/architecture.md`). This module imports nothing, so that `freehold --help` stays light.
"""

__version__ = "0.1.0"
