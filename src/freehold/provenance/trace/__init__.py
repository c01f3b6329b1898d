"""Tracing text to its source: index a corpus once, then ask where any text may be from.

    build_index(corpus, index)         a directory of texts -> an index on disk
    trace(Index(index), text)          -> Report: exact spans and near-duplicates with file, offset, line, licence file
    page(report)                       -> the report as one self-contained HTML page

It judges nothing: licences are named by file, and equal text is no proof of copying.
"""

from freehold.provenance.trace.index import Built, Index, build_index, default_index
from freehold.provenance.trace.page import page, visible
from freehold.provenance.trace.report import NearDuplicate, Report, Similar, Source, Span, Stretch, stretches
from freehold.provenance.trace.search import LONGEST_QUERY, Limits, trace

__all__ = [
    "LONGEST_QUERY",
    "Built",
    "Index",
    "Limits",
    "NearDuplicate",
    "Report",
    "Similar",
    "Source",
    "Span",
    "Stretch",
    "build_index",
    "default_index",
    "page",
    "stretches",
    "trace",
    "visible",
]
