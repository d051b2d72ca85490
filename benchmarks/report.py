"""Rewrites the table of README.md from a results file: `python benchmarks/report.py benchmarks/results/cpu.json`.

Results come from `python -m fastnn bench --json FILE`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastnn.bench.table import markdown

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
README = Path(__file__).resolve().parent.parent / "README.md"


def rewrite(text: str, section: str) -> str:
    """`text` with `section` between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    README.write_text(rewrite(README.read_text(encoding="utf-8"), markdown(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
