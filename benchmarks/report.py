"""Rewrites the tables of README.md from results files: `python benchmarks/report.py benchmarks/results/*.json`.

Results come from `python -m fastnn bench --json FILE` and `python -m fastnn bench --memory --json FILE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastnn.bench import memory, table

README = Path(__file__).resolve().parent.parent / "README.md"
# What the results name as their section: the text between <!-- name:begin --> and <!-- name:end -->.
SECTIONS = {"bench": table.markdown, "memory": memory.markdown}


def rewrite(text: str, name: str, section: str) -> str:
    """`text` with `section` between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if not (begin in text and end in text):
        raise SystemExit(f"README.md lacks {begin} or {end}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{section}\n\n{end}{rest.partition(end)[2]}"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    for path in sys.argv[1:]:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        name = result.get("section")
        if name in SECTIONS:
            text = README.read_text(encoding="utf-8")
            README.write_text(rewrite(text, name, SECTIONS[name](result)), encoding="utf-8")


if __name__ == "__main__":
    main()
