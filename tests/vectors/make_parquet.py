"""Makes tests/vectors/provenance/tiny.parquet: two row groups, nested columns, a licence in the metadata.

pip install pyarrow && python tests/vectors/make_parquet.py     (made with pyarrow 26.0.1)
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parent / "provenance" / "tiny.parquet"


def main() -> None:
    table = pa.table(
        {
            "text": ["one", "two", "three"],
            "license": ["MIT", "CC-BY-4.0", None],
            "meta": [{"source": "a", "score": 0.5}, None, {"source": "b", "score": 1.0}],
        }
    )
    table = table.replace_schema_metadata({"license": "cc-by-sa-4.0", "about": "a vector for tests"})
    pq.write_table(table, OUT, row_group_size=2, compression="snappy")
    print(f"{OUT.stat().st_size:,} bytes, pyarrow {pa.__version__}")


if __name__ == "__main__":
    main()
