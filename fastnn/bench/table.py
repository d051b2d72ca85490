"""The bench results as text, markdown and CSV. A result is the dictionary that `main.collect` builds."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

_HEAD = ("case", "pass", "torch", "torch cl", "fastnn", "fastnn cl", "ratio", "ratio cl", "limit", "")
_WIDTHS = (58, 8, 9, 9, 9, 9, 7, 8, 6, 0)
_SHORT = {"forward": "fwd", "forward+backward": "fwd+bwd"}


def milliseconds(seconds: float | None) -> str:
    """Three significant digits of milliseconds, or a dash."""
    return "-" if seconds is None else f"{seconds * 1e3:#.3g}".rstrip(".")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def mark(row: dict[str, Any]) -> str:
    """WRONG or ERROR with its reason; "loss" where fastnn is slower by 1% in either layout."""
    if row["status"] != "ok":
        return f"{row['status']} {row['note']}"
    ratios = [r for r in (row["ratio"], row["ratio_channels_last"]) if r is not None]
    return "loss" if round(min(ratios), 2) < 1 else ""


def cells(row: dict[str, Any]) -> list[str]:
    times = [milliseconds(row[k]) for k in ("torch", "torch_channels_last", "fastnn", "fastnn_channels_last")]
    ratios = [_ratio(row["ratio"]), _ratio(row["ratio_channels_last"]), _share(row["limit"])]
    return [row["name"], _SHORT[row["passed"]], *times, *ratios, mark(row)]


def _line(values: list[str]) -> str:
    first = values[0] if len(values[0]) <= _WIDTHS[0] else values[0][: _WIDTHS[0] - 3] + "..."
    return " ".join(
        [first.ljust(_WIDTHS[0])] + [v.rjust(w) for v, w in zip(values[1:], _WIDTHS[1:], strict=True)]
    )


def head() -> str:
    """The head of the table; times in milliseconds, cl: input in channels_last."""
    return _line(list(_HEAD)).rstrip()


def line(row: dict[str, Any]) -> str:
    return _line(cells(row)).rstrip()


def geometric_mean(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per family and pass: number of cases, means of ratios and limit, worst case, losses."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["passed"]), []).append(row)
    summary = []
    for (family, passed), members in groups.items():
        timed = [row for row in members if row["ratio"] is not None]
        worst = min(timed, key=lambda row: row["ratio"], default=None)
        means = {
            key: geometric_mean([row[key] for row in timed if row[key] is not None])
            for key in ("ratio", "ratio_channels_last", "limit")
        }
        summary.append({
            "family": family, "passed": passed, "cases": len(members), **means,
            "worst": worst["ratio"] if worst else None, "worst_case": worst["name"] if worst else "",
            "losses": sum(mark(row) == "loss" for row in members),
            "failed": sum(row["status"] != "ok" for row in members),
        })  # fmt: skip
    return summary


def summary_text(summary: list[dict[str, Any]]) -> str:
    """One line per family and pass."""
    lines = [
        f"{'family':12} {'pass':8} {'cases':>5} {'ratio':>7} {'cl':>7} {'limit':>6} {'losses':>6}  worst"
    ]
    for s in summary:
        failed = f"  {s['failed']} WRONG or ERROR" if s["failed"] else ""
        lines.append(
            f"{s['family']:12} {_SHORT[s['passed']]:8} {s['cases']:5d} {_ratio(s['ratio']):>7} "
            f"{_ratio(s['ratio_channels_last']):>7} {_share(s['limit']):>6} {s['losses']:6d}  "
            f"{_ratio(s['worst'])} {s['worst_case']}{failed}"
        )
    return "\n".join(lines)


def as_csv(rows: list[dict[str, Any]]) -> str:
    """All rows with their numbers in full; the spread is left to the JSON."""
    out = io.StringIO()
    keys = [key for key in rows[0] if key != "spread"] if rows else []
    writer = csv.DictWriter(out, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def markdown(result: dict[str, Any]) -> str:
    """The README's section: machine, summary per family, and all rows."""
    limits = result["limits"]
    lines = [
        f"{result['machine']['cpu']}, {limits['threads']} threads, torch {result['machine']['torch']}, "
        f"float32, {result['machine']['date']}. Measured limits: {limits['peak'] / 1e9:.0f} GFLOP/s, "
        f"{limits['bandwidth'][-1][1] / 1e9:.0f} GB/s. Ratio: torch's time over fastnn's, above 1 is faster than "
        "torch; `cl`: both with channels_last input. Limit: the least time that arithmetic or memory traffic "
        "takes, over fastnn's.",
        "",
        "| family | pass | cases | ratio | ratio cl | of the limit | losses | worst |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for s in result["families"]:
        lines.append(
            f"| {s['family']} | {s['passed']} | {s['cases']} | {_ratio(s['ratio'])} "
            f"| {_ratio(s['ratio_channels_last'])} | {_share(s['limit'])} | {s['losses']} "
            f"| {_ratio(s['worst'])} `{s['worst_case']}` |"
        )
    lines += [
        "",
        "<details><summary>All rows, milliseconds</summary>",
        "",
        "| case | pass | torch | torch cl | fastnn | fastnn cl | ratio | ratio cl | of the limit | |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [f"| `{c[0]}` | " + " | ".join(c[1:]) + " |" for c in map(cells, result["rows"])]
    return "\n".join([*lines, "", "</details>"])
