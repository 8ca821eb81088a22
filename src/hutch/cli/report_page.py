"""The page of `hutch report`: its sections, and how they become text or one file of HTML. Computes; prints nothing.

Names, commands, paths and reasons on it were chosen inside a workspace, or by whoever wrote its file: what a terminal
would take as a command is replaced, and HTML is escaped. The file has no script, and loads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import chain

from hutch.access.git_changes import Changes, FileChange, RepositoryChanges
from hutch.api.summary import Destination, Peaks, Report, Session
from hutch.audit.events import Entry
from hutch.cli.common import printable
from hutch.frozen import dataclass
from hutch.spec.record import stamp

LONGEST = 120  # characters of a cell in text; a page of HTML breaks lines
MOST_ROWS = 100  # of a section in text; HTML and JSON have all that the report has
NOT_FOR_SURE = "names and paths are chosen inside, and commits are dated there: read them as a workspace's own word"

PEAKS = "memory and processes are the most at once, processor time is that of all runs together"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page: a table, or lines of prose where there is no header. `more` is what has no room."""

    title: str
    header: Row = ()
    rows: tuple[Row, ...] = ()
    note: str = ""
    more: int = 0
    is_alarm: bool = False


def sections_of(report: Report) -> list[Section]:
    """All sections that have something to tell, in the order of the page."""
    more = report.left_out.get
    found = [
        _head(report),
        *_damages(report),
        Section(
            "Starts and stops",
            ("TIME", "EVENT", "BY", "DETAILS"),
            tuple((_when(each.time), each.event, each.by or "-", _details(each)) for each in report.life),
            more=more("life", 0),
        ),
        Section(
            "Peaks",
            ("MEMORY", "PROCESSOR", "PROCESSES"),
            _peaks(report.peaks),
            PEAKS if report.peaks != Peaks() else "",
        ),
        Section(
            "Plans",
            ("TIME", "BY", "COMMAND", "ACTION", "FILE", "REASONS"),
            tuple(map(_plan, report.plans)),
            more=more("plans", 0),
        ),
        Section(
            "Commands and sessions",
            ("TIME", "BY", "KIND", "TOOK", "CODE", "COMMAND"),
            tuple(_session(each) for each in report.sessions if each.kind != "forward"),
            _connections(report),
            more=more("sessions", 0),
        ),
        Section(
            "Names asked for, allowed, refused",
            ("VERDICT", "NAME", "PORT", "COUNT", "FIRST", "LAST", "WHY"),
            tuple(map(_destination, report.destinations)),
            more=more("destinations", 0),
        ),
        Section(
            "Approvals",
            ("TIME", "BY", "DECISION", "NAME", "UNTIL"),
            tuple(
                (_when(each.time), each.by or "-", each.event, each.values["host"], _until(each))
                for each in report.decisions
            ),
            more=more("decisions", 0),
        ),
        Section(
            "Ports",
            ("TIME", "BY", "TOOK", "FORWARDED", "REVERSED"),
            tuple(_forward(each) for each in report.sessions if each.kind == "forward"),
        ),
        *_changes(report),
        Section(
            "Missing in the record",
            ("TIME", "COUNT", "KINDS", "WHY"),
            tuple(
                (
                    _when(each.time),
                    str(each.values["count"]),
                    ", ".join(each.values["kinds"]) or "-",
                    each.values["why"],
                )
                for each in report.cuts
            ),
            more=more("cuts", 0),
            is_alarm=True,
        ),
    ]
    return [each for each in found if each.rows or each.note]


def _head(report: Report) -> Section:
    begin = report.since if report.since is not None else report.first
    span = "nothing is recorded" if begin is None else f"{_when(begin)} to {_when(report.made)}"
    last = "" if report.last is None else f", the last at {_when(report.last)}"
    rows = [("span", span), ("events", f"{report.lines}{last}")]
    if unknown := report.left_out.get("unknown"):
        rows.append(("unknown", f"{unknown} lines are no events that this hutch knows"))
    if report.damages is not None:
        count = len(report.damages)
        looked = "whole" if report.is_verified else "as it was written, in its newest file; --verify looks at all"
        looked += "" if report.is_end_known else "; where it ends, only root's state can tell"
        rows.append(("record", f"damaged in {count} place{'s' if count > 1 else ''}" if count else looked))
    return Section("", (), tuple(rows))


def _damages(report: Report) -> list[Section]:
    rows = tuple((each,) for each in report.damages or ())
    return [Section("Damage", ("WHERE AND WHAT",), rows, is_alarm=True)] if rows else []


def _changes(report: Report) -> list[Section]:
    found = report.changes
    if found is None:
        return [Section("Files changed", note=report.unseen)] if report.unseen else []
    told = [_repository(each) for each in found.repositories]
    if found.more:
        told.append(Section("Files changed", note=f"{found.more} more repositories have changes"))
    if found.problem:
        told.append(Section("Files changed", note=found.problem, is_alarm=True))
    return [*told, *_new_repositories(found)]


def _repository(found: RepositoryChanges) -> Section:
    commits = f", {found.commits} commit{'s' if found.commits > 1 else ''}" if found.commits else ""
    title = f"Files changed in {found.path}{commits}"
    if found.problem:
        return Section(title, note=found.problem)
    if not found.files:
        return Section(title, note="the files are as they were")
    return Section(title, ("ADDED", "DELETED", "FILE"), tuple(map(_file, found.files)), more=found.more)


def _file(change: FileChange) -> Row:
    if not change.is_tracked:
        return "new", "-", change.path
    if change.added is None:
        return "binary", "-", change.path
    return str(change.added), str(change.deleted), change.path


def _new_repositories(found: Changes) -> list[Section]:
    if not found.new:
        return []
    note = "they lie below a shared directory, where the workspace may have written: look before you run git there"
    rows = tuple((path,) for path in found.new)
    title = "Repositories made, or with changed configuration or hooks"
    return [Section(title, ("PATH INSIDE",), rows, note, found.more_new, is_alarm=True)]


# Cells.


def _when(time: float) -> str:
    """A time in UTC, which a page says at its top."""
    return stamp(time)[:19].replace("T", " ")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _size(value: int | None) -> str:
    return "-" if value is None else f"{value / (1 << 20):.0f} MiB"


def _peaks(peaks: Peaks) -> tuple[Row, ...]:
    if peaks == Peaks():
        return ()
    return ((_size(peaks.memory), _seconds(peaks.cpu_seconds), _number(peaks.tasks)),)


def _details(entry: Entry) -> str:
    values, told = entry.values, []
    if entry.event == "created":
        told = [values["type"], values["image"], values["file"]]
    elif entry.event == "started":
        took = values["seconds"]
        told = [values["start_kind"], f"ready after {_seconds(took)}" if took is not None else ""]
    elif entry.event in ("stopped", "failed", "restarted"):
        ran, memory, processor = values["seconds"], values["memory_peak"], values["cpu_seconds"]
        told = [
            values["reason"],
            f"after {_seconds(ran)}" if ran is not None else "",
            f"memory {_size(memory)}" if memory is not None else "",
            f"processor {_seconds(processor)}" if processor is not None else "",
        ]
    elif entry.event == "removed":
        told = [f"home kept: {values['kept']}" if values["kept"] else "home deleted"]
    else:
        told = [str(value) for value in values.values() if value is not None]
    return ", ".join(filter(None, told)) or "-"


def _plan(entry: Entry) -> Row:
    values = entry.values
    reasons = "; ".join(
        f"{each['key']}: {_or_unset(each['old'])} → {_or_unset(each['new'])}" for each in values["reasons"]
    )
    return (
        _when(entry.time),
        entry.by or "-",
        values["command"],
        values["action"],
        values["file"] or "-",
        reasons or "-",
    )


def _or_unset(value: str | None) -> str:
    return "unset" if value is None else value


def _session(session: Session) -> Row:
    kind = f"{session.kind} as root" if session.root else session.kind
    command = " ".join(map(_quoted, session.argv)) or "-"
    return _when(session.time), session.by or "-", kind, _took(session), _number(session.code), command


def _took(session: Session) -> str:
    return "not seen to end" if session.has_end and session.seconds is None else _seconds(session.seconds)


def _connections(report: Report) -> str:
    found = report.connections
    if found is None:
        return ""
    many = "" if found.count == 1 else "s"
    return f"{found.count} connection{many} from this host to its port 22, the last at {_when(found.last)}"


def _quoted(word: str) -> str:
    """A word of a command line, in quotes where it would not be seen as one. It is for reading."""
    is_plain = word and not set(word) & set(" \"'")
    return word if is_plain else "'" + word.replace("'", "'\\''") + "'"


def _forward(session: Session) -> Row:
    ports = ", ".join(map(str, session.ports)) or ("auto" if session.auto else "-")
    return _when(session.time), session.by or "-", _took(session), ports, ", ".join(map(str, session.reverse)) or "-"


def _destination(found: Destination) -> Row:
    where = "(nobody knows)" if found.where is None else found.where
    ports = ", ".join(found.ports) or "-"
    return (
        found.verdict,
        where,
        ports,
        str(found.count),
        _when(found.first),
        _when(found.last),
        found.why or "-",
    )


def _until(entry: Entry) -> str:
    until = entry.values["until"]
    return "-" if until is None else until[:19].replace("T", " ")


# Text and HTML.


def title_of(report: Report) -> str:
    return f"Report on {report.workspace}, times in UTC"


def render_text(report: Report) -> str:
    """The page for a terminal: no line of it holds what a terminal would take as a command."""
    lines = [title_of(report)]
    for section in sections_of(report):
        if section.title:
            lines += ["", _one_line(section.title)]
        lines += _table(section)
    return "".join(f"{line}\n" for line in [*lines, "", NOT_FOR_SURE])


def _table(section: Section) -> list[str]:
    rows = [tuple(map(_one_line, row)) for row in section.rows]
    kept = rows[-MOST_ROWS:] if section.header[:1] == ("TIME",) else rows[:MOST_ROWS]
    told = [section.header, *kept] if section.header and kept else kept
    widths = [max(len(row[column]) for row in told) for column in range(len(told[0]))] if told else []
    indent = "" if not section.title else "  "
    lines = [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in told
    ]
    if more := section.more + len(rows) - len(kept):
        lines.append(f"{indent}and {more} more")
    return [*lines, *([indent + _one_line(section.note)] if section.note else [])]


def _one_line(cell: str) -> str:
    cell = printable(cell).replace("\n", " ").replace("\t", " ")
    return cell if len(cell) <= LONGEST else f"{cell[: LONGEST - 1]}…"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1b1f24;
  background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #d8dee4 }
th { font-weight: 600; font-size: .8rem; color: #57606a }
td { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere }
.alarm h2 { color: #b42318 } p { color: #57606a; margin: .4rem 0 }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } th, td { border-color: #30363d }
  th, p { color: #9198a1 } .alarm h2 { color: #ff7b72 } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing, should anything in it ask."""


def render_html(report: Report) -> str:
    """The page as one file of HTML."""
    title = _safe(title_of(report))
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
        *chain.from_iterable(map(_html_section, sections_of(report))),
        f"<p>{_safe(NOT_FOR_SURE)}</p>",
        "</body>",
        "</html>",
    ]
    return "".join(f"{part}\n" for part in parts)


def _html_section(section: Section) -> list[str]:
    parts = [f'<section class="{"alarm" if section.is_alarm else "part"}">']
    if section.title:
        parts.append(f"<h2>{_safe(section.title)}</h2>")
    if section.rows:
        parts += ["<table>", *([_html_row("th", section.header)] if section.header else [])]
        parts += [_html_row("td", row) for row in section.rows] + ["</table>"]
    if section.more:
        parts.append(f"<p>and {section.more} more</p>")
    if section.note:
        parts.append(f"<p>{_safe(section.note)}</p>")
    return [*parts, "</section>"]


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_safe(cell)}</{tag}>" for cell in cells) + "</tr>"


def _safe(text: str) -> str:
    return escape(printable(text))
