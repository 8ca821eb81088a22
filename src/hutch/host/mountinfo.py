"""The text of /proc/self/mountinfo as data. Its imports stay few: the supervisor uses it."""

from __future__ import annotations

TYPE_CHECKING = False  # see supervise/status
if TYPE_CHECKING:
    from collections.abc import Iterator


def observe_mountinfo(process: int | str = "self") -> str:
    """The text as it is now; bytes that are not UTF-8 are kept as surrogates, as in all paths."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def parse_mountinfo(text: str) -> Iterator[tuple[str, str, str, set[str], str]]:
    """(device, directory of the file system, mount point, options of the mount, type) of each mount, in their order: of
    two at one place, the later one lies on top."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 5:
            options = set(fields[5].split(","))
            yield fields[2], plain(fields[3]), plain(fields[4]), options, after.partition(" ")[0]


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is the directory itself or something in it."""
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def plain(path: str) -> str:
    """The kernel writes blanks and backslashes as "\\040", always three digits; all else in a path is as it is."""
    first, *coded = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in coded)
