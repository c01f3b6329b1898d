"""A server that keeps to all three specifications, with a scripted model behind it, and faults that can be switched on.

It is what the suite itself is tested with: well, it passes everything; with a fault, exactly that fault must be found. It
knows the specifications and HTTP, nothing of the checks.
"""

from freehold.certify.reference.server import ReferenceServer

__all__ = ["ReferenceServer"]
