"""An interoperability certification over plain HTTP, for any endpoint.

    certify = run (scenarios, against the network) -> transcript -> judge -> certificate
    verify  = the same, against the transcript

It imports no other room, so that it can judge servers that are not ours; ours gets no special case.
"""

from freehold.certify.certificate import Certificate, make, read, today
from freehold.certify.declaration import Declaration
from freehold.certify.runner import Plan, run
from freehold.certify.selftest import self_test
from freehold.certify.wire import Endpoint

__all__ = ["Certificate", "Declaration", "Endpoint", "Plan", "make", "read", "run", "self_test", "today"]
