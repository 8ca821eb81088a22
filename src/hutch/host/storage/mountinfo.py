"""The text of /proc/self/mountinfo as data. Its imports stay few: each start uses it."""

from __future__ import annotations

TYPE_CHECKING = False  # see runtime/steps
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


def file_system_options(text: str, type: str) -> set[str]:
    """The options of the first file system of a type: those that all mounts of it share. Empty without one."""
    for line in text.split("\n"):
        _, _, after = line.partition(" - ")
        if after.startswith(f"{type} "):
            return set(after.rpartition(" ")[2].split(","))
    return set()


def _lines(text: str) -> Iterator[tuple[list[str], str]]:
    """(the fields before the dash, the type behind it) of each line."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 5:
            yield fields, after.partition(" ")[0]


class Tree:
    """The tree of mounts, as a path finds them: a mount is hidden by one on top of it, and by one at a directory that
    leads there."""

    def __init__(self, text: str) -> None:
        self._fields = {fields[0]: fields for fields, _ in _lines(text)}
        # (id of the mount around it, mount point) -> id. Around the root is none that is seen; nor, in a changed root
        # that is none itself, around all that is mounted there.
        self._at = {(self._around(fields), plain(fields[4])): number for number, fields in self._fields.items()}

    def options(self, path: str) -> set[str]:
        """The options of the mount at exactly this path, empty where there is none."""
        number = self._find(path)
        return set(self._fields[number][5].split(",")) if number else set()

    def over_itself(self, path: str) -> str:
        """The id of the mount at exactly this path, if it is that very directory; "" for all else."""
        number = self._find(path)
        return number if number and self._is_over_itself(number) else ""

    def self_binds(self) -> dict[str, int]:
        """Mount point -> id of each directory that is mounted over itself, hidden ones too. The id stays when the
        directory is renamed."""
        return {plain(self._fields[number][4]): int(number) for number in self._fields if self._is_over_itself(number)}

    def _is_over_itself(self, number: str) -> bool:
        fields = self._fields[number]
        outer = self._fields.get(self._around(fields))
        if outer is None:
            return False
        inner = plain(fields[4]).removeprefix(plain(outer[4]).rstrip("/"))
        return (fields[2], plain(fields[3])) == (outer[2], plain(outer[3]).rstrip("/") + inner or "/")

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


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is the directory itself or something in it."""
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def plain(path: str) -> str:
    """A plain path. The kernel writes blanks and backslashes as "\\040", always three digits; all else is as it is."""
    first, *coded = path.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in coded)
