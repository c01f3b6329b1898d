"""Bills of materials: one artefact, read and judged once, written in the formats that others ask for.

`write` is the face. The same facts give the same bytes (ids are derived, the time is passed in). Knows no terminal.
"""

from __future__ import annotations

import datetime as dt
import importlib
import os

from freehold.errors import UsageError
from freehold.progress import Progress
from freehold.provenance import artefact as artefacts
from freehold.provenance.audit import examine
from freehold.provenance.bom.bill import Bill

__all__ = ["FORMATS", "write"]

FORMATS = {
    "spdx": "spdx",
    "cyclonedx": "cyclonedx",
    "croissant": "croissant",
    "mof": "mof",
    "eu-summary": "eu_summary",
    "notice": "notice",
}
"""Formats, and the module of each; every one has `render(bill) -> str`."""


def write(
    reference: str,
    form: str,
    *,
    supplier: str = "",
    released: dt.datetime | None = None,
    version: str = "",
    url: str = "",
    offline: bool = False,
    progress: Progress | None = None,
) -> str:
    """The bill of materials of what a reference names.

    Args:
        reference: see `artefact.read`; for "mof" also the YAML file of a Model Openness Tool release.
        form: one of FORMATS.
        supplier, released, version, url: who gives it out, since when, as what and where, if the artefact doesn't say.
        offline: never use the network.
        progress: told about transfers.

    Raises:
        UsageError: a format that does not fit the artefact.
        StoreError, FormatError: it can't be read.
    """
    if form not in FORMATS:
        raise UsageError(f"expected a format of {', '.join(FORMATS)}, found {form!r}")
    module = importlib.import_module(f"freehold.provenance.bom.{FORMATS[form]}")
    if form == "mof" and reference.endswith((".yml", ".yaml")):
        page: str = module.render_release(reference)
        return page
    artefact = artefacts.read(reference, offline=offline, progress=progress)
    judgement = examine(artefact, "redistribute")
    text: str = module.render(Bill(artefact, judgement, now(), supplier, released, version, url))
    return text


def now() -> dt.datetime:
    """The present, or SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdecimal():
        return dt.datetime.fromtimestamp(int(epoch), dt.UTC)
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
