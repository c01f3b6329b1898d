"""An interoperability certification over plain HTTP, for any endpoint.

It imports no other room, so that it can judge servers that are not ours; ours gets no special case.
"""
