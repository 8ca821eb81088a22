"""The text of /proc/self/mountinfo as data. Its imports stay few: the supervisor uses it."""

from __future__ import annotations

TYPE_CHECKING = False  # see supervise/status
if TYPE_CHECKING:
    from collections.abc import Iterator


def observe_mountinfo(process: int | str = "self", *, most: int = -1) -> str:
    """The text as it is now, or the first `most` characters of it; bytes that are not UTF-8 are kept as surrogates, as
    in all paths, and so are carriage returns: a line ends with a newline only."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read(most)


def parse_mountinfo(text: str) -> Iterator[tuple[str, str, str, set[str], str]]:
    """(device, directory of the file system, mount point, options of the mount, type) of each mount, in their order: of
    two at one place, the later one lies on top."""
    for fields, type in _lines(text):
        yield fields[2], plain(fields[3]), plain(fields[4]), set(fields[5].split(",")), type


def _lines(text: str) -> Iterator[tuple[list[str], str]]:
    """(the fields before the dash, the type behind it) of each line."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 5:
            yield fields, after.partition(" ")[0]


class Tree:
    """What is mounted where, as a path finds it: a mount is hidden by one on top of it, and by one at a directory
    that leads there."""

    def __init__(self, text: str) -> None:
        self._fields = {fields[0]: fields for fields, _ in _lines(text)}
        # (id of the mount around it, mount point) -> id. Around the root is none that is seen; nor, in a changed root
        # that is none itself, around all that is mounted there.
        self._at = {(self._around(fields), plain(fields[4])): number for number, fields in self._fields.items()}

    def options(self, path: str) -> set[str]:
        """Those of the mount at exactly this path, empty where there is none."""
        number = self._find(path)
        return set(self._fields[number][5].split(",")) if number else set()

    def over_itself(self, path: str) -> str:
        """The id of the mount at exactly this path, if it is that very directory; "" for all else."""
        number = self._find(path)
        outer = self._fields.get(self._around(self._fields[number])) if number else None
        if outer is None:
            return ""
        device, root = self._fields[number][2], plain(self._fields[number][3])
        inner = path.removeprefix(plain(outer[4]).rstrip("/"))
        return number if (device, root) == (outer[2], plain(outer[3]).rstrip("/") + inner or "/") else ""

    def _find(self, path: str) -> str:
        mount, found = "", False
        parts = [part for part in path.split("/") if part]
        for place in ("/", *("/" + "/".join(parts[: count + 1]) for count in range(len(parts)))):
            found = False
            while (mount, place) in self._at:
                mount, found = self._at[mount, place], True
        return mount if found else ""

    def _around(self, fields: list[str]) -> str:
        return fields[1] if fields[1] in self._fields and fields[1] != fields[0] else ""


def self_binds(text: str) -> dict[str, int]:
    """Mount point -> id of each directory that is mounted over itself. The id stays when the directory is renamed."""
    found: dict[str, int] = {}
    seen: dict[str, tuple[str, str]] = {}  # parents come before what is mounted on them
    for fields, _ in _lines(text):
        device, root, point = fields[2], plain(fields[3]), plain(fields[4])
        around = point
        while around not in seen and around != "/":
            around = around.rpartition("/")[0] or "/"
        if around in seen:
            inner = point.removeprefix(around.rstrip("/"))
            if (device, root) == (seen[around][0], seen[around][1].rstrip("/") + inner or "/"):
                found[point] = int(fields[0])
        seen[point] = device, root
    return found


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is the directory itself or something in it."""
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def plain(path: str) -> str:
    """The kernel writes blanks and backslashes as "\\040", always three digits; all else in a path is as it is."""
    first, *coded = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in coded)
