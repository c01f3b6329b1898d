"""Where models, data sets and answers come from, and what may be done with them: licences, lineage, ledger, tracing.

It knows no HTTP and no tensors: finished exchanges, model cards and texts are handed to it as plain data.
"""
