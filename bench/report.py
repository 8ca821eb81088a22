"""Draws the result: a table for the terminal, Markdown, JSON and an SVG chart. Measures nothing, decides nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from bench.measure import BenchError
from bench.table import Row

BEGIN = {
    "elsewhere": "<!-- results: written by bench/run -->",
    "systemd": "<!-- results: written by bench/run --stand -->",
}
END = "<!-- end of results -->"
INK, FAINT, OURS, OTHERS = "#1f2328", "#656d76", "#0a7d4f", "#b8c0c8"


def quantity(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB" if abs(value) >= 2**20 else f"{value / 2**10:.0f} KiB"
    if unit == "bytes/s":
        return f"{value / 2**20:.0f} MiB/s"
    return f"{value:g}"


def _cells(row: Row) -> tuple[str, str, str, str, str, str]:
    reference = f"{quantity(row.reference.median, row.unit)} ({row.reference_name})" if row.reference else ""
    ratio = f"{row.value:.2f}" if row.reference else ""
    bound = ""
    if row.bound is not None:
        sign = "≥" if row.at_least else "≤"
        bound = f"{sign} {row.bound:g} times" if row.reference else f"{sign} {quantity(row.bound, row.unit)}"
    verdict = "" if row.bound is None else "met" if row.passed else "**missed**"
    return row.what, quantity(row.ours.median, row.unit), reference, ratio, bound, verdict


HEADINGS = ("what", "hutch", "compared with", "ratio", "bound", "")


def render_table(rows: Sequence[Row]) -> str:
    """Plain text, one row to a line; what a row is compared with comes below it."""
    lines = [f"{'hutch':>10} {'other':>10} {'ratio':>7} {'bound':>12}  what"]
    for row in rows:
        what, ours, _, ratio, bound, verdict = _cells(row)
        other = quantity(row.reference.median, row.unit) if row.reference else ""
        mark = {"met": "ok  ", "**missed**": "MISS", "": "    "}[verdict]
        lines.append(f"{ours:>10} {other:>10} {ratio:>7} {bound:>12}  {mark} {row.name}: {what}")
        details = "; ".join(text for text in (row.reference_name and f"other: {row.reference_name}", row.note) if text)
        if details:
            lines.append(f"{'':>49}{details}")
    return "\n".join(lines)


def render_markdown(rows: Sequence[Row], machine: dict[str, str], date: str) -> str:
    rounds = sorted({len(row.ours.values) for row in rows if row.reference})
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    notes = [f"- {row.what}: {row.note}" for row in rows if row.note]
    facts = [f"- {key}: {value}" for key, value in machine.items() if value]
    counts = " or ".join(map(str, rounds))
    head = f"Taken on {date}; medians of {counts} interleaved samples of each."
    return "\n".join([head, "", *lines, "", "Notes:", "", *notes, "", "The machine:", "", *facts])


def as_json(rows: Sequence[Row], machine: dict[str, str], date: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for row in rows:
        entry = asdict(row)
        entry["ours"] = {"median": row.ours.median, "samples": row.ours.values}
        if row.reference:
            entry["reference"] = {"median": row.reference.median, "samples": row.reference.values}
        entries.append({**entry, "value": row.value, "passed": row.passed})
    return {"date": date, "machine": machine, "rows": entries}


def render_chart(rows: Sequence[Row]) -> str:
    """Bars for every row that has something to be compared with, each pair on a scale of its own."""
    drawn = [row for row in rows if row.reference and row.unit == "s"]
    width, left, bar, pitch = 860, 20, 16, 74
    height = 50 + pitch * len(drawn)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    title = "Wall time, shorter is better; each pair has its own scale"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        f'<text x="{left}" y="28" font-size="15" font-weight="600" fill="{INK}">{title}</text>',
    ]
    for index, row in enumerate(drawn):
        parts += _pair(row, left, 62 + pitch * index, bar)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _pair(row: Row, left: int, top: int, bar: int) -> list[str]:
    assert row.reference
    longest = max(row.ours.median, row.reference.median)
    parts = [f'<text x="{left}" y="{top - 6}" fill="{INK}">{escape(row.what.replace("`", ""))}</text>']
    named = (("hutch", row.ours.median, OURS), (row.reference_name.replace("`", ""), row.reference.median, OTHERS))
    for line, (name, value, colour) in enumerate(named):
        y = top + line * (bar + 3)
        length = max(2.0, 380 * value / longest)
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar}" rx="3" fill="{colour}"/>')
        label = f"{quantity(value, row.unit)}  {name}"
        parts.append(
            f'<text x="{left + length + 8:.1f}" y="{y + bar - 4}" font-size="12" fill="{FAINT}">{escape(label)}</text>'
        )
    return parts


def write(folder: Path, world: str, rows: Sequence[Row], machine: dict[str, str], date: str) -> None:
    """The results of one of the worlds, within benchmarks.md and benchmarks.json; and benchmarks.svg, where the wall
    times themselves mean something."""
    page, data = folder / "benchmarks.md", folder / "benchmarks.json"
    text = (
        page.read_text()
        if page.exists()
        else "# Benchmarks\n\n" + "".join(f"{mark}\n{END}\n" for mark in BEGIN.values())
    )
    before, mark, rest = text.partition(BEGIN[world])
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise BenchError(f"{page} has lost the marks between which results are written")
    page.write_text(f"{before}{mark}\n\n{render_markdown(rows, machine, date)}\n\n{end}{after}")
    worlds = json.loads(data.read_text()) if data.exists() else {}
    worlds[world] = as_json(rows, machine, date)
    data.write_text(json.dumps(worlds, indent=1, ensure_ascii=False) + "\n")
    if world == "elsewhere":
        (folder / "benchmarks.svg").write_text(render_chart(rows))
