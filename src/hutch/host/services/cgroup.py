"""The cgroups of workspaces, on cgroup v2: a slice for each, with its limits, and in it the service, with the groups
supervisor, machine and exec.

Hosts differ in where cgroup2 is mounted, if at all: a hybrid host has it beside the v1 controllers, a new
network namespace made by `ip netns exec` hides it. So the hierarchy is reached through a descriptor: of
the mount where there is one, of a detached mount otherwise. Imports stay few: the runner uses this.
"""

from __future__ import annotations

import errno
import os
import select
import time

from hutch.host.storage.mountinfo import file_system_options, observe_mountinfo, parse_mountinfo
from hutch.libc import mount_nowhere

DEPTH, DESCENDANTS = 15, 2000  # cgroups that a guest may make
CPU_PERIOD = 100_000  # microseconds, for cpu.max
LEAST_RESERVE, MOST_RESERVE = 256 << 20, 2 << 30  # bytes of memory that no workspace gets
SERVICE_MEMORY, SERVICE_TASKS = 1 << 30, 64
"""Bytes, and processes and threads, of a service for all workspaces: none needs a tenth of that, and guests have no say
in more."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
JOIN = ("sh", "-euc", 'echo 0 >/proc/self/fd/0/cgroup.procs; exec <"$1"; shift; exec "$@"', "sh")
"""A command that joins the cgroup whose directory is standard input, before anything else. The next standard input, and
the command, follow."""


def find_mount(mountinfo: str) -> str | None:
    """The first writable cgroup2 mount in the text of /proc/self/mountinfo."""
    lines = (line for line in mountinfo.split("\n") if " - cgroup2 " in line)  # the others are many, and cost more
    for _, root, point, options, type in parse_mountinfo("\n".join(lines)):
        if type == "cgroup2" and root == "/" and "rw" in options:
            return point
    return None


def open_root() -> int:
    """A directory descriptor of the root of the cgroup2 hierarchy."""
    text = observe_mountinfo()
    path = find_mount(text)
    if path is not None:
        try:
            descriptor = os.open(path, DIRECTORY)
        except FileNotFoundError:  # another mount lies over it
            return mount_nowhere("cgroup2", *find_flags(text))
        if os.access("cgroup.procs", os.F_OK, dir_fd=descriptor):
            return descriptor
        os.close(descriptor)
    return mount_nowhere("cgroup2", *find_flags(text))


def find_flags(mountinfo: str) -> list[str]:
    """The options of the whole hierarchy, which is one for all: who mounts it without them takes them from it. Where no
    mount of it is to be seen from here, process 1 may have one."""
    options = file_system_options(mountinfo, "cgroup2") or file_system_options(observe_mountinfo(1), "cgroup2")
    return sorted(word for word in options - {"rw", "ro", "seclabel"} if "=" not in word)


class Cgroup:
    """A cgroup by its path below the root. Every method may be called again; absence is not an error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = open_root()

    def close(self) -> None:
        os.close(self._root)

    def _at(self, *parts: str) -> str:
        return "/".join((self.path, *parts))

    def make(self, *groups: str) -> None:
        """Create the cgroup, its parents, and the named groups in it."""
        for path in (*_prefixes(self.path), *(self._at(group) for group in groups)):
            try:
                os.mkdir(path, 0o755, dir_fd=self._root)
            except FileExistsError:
                pass
            except FileNotFoundError:  # another hutch has just removed a parent that was empty
                self.make(*groups)

    def freeze(self, group: str) -> None:
        """Make a group whose processes do not run, until it is thawed. They can be killed all the same."""
        self.make(group)
        _write(self._root, self._at(group, "cgroup.freeze"), "1")

    def thaw(self, group: str) -> None:
        _write(self._root, self._at(group, "cgroup.freeze"), "0")

    def await_process(self, group: str, patience: float, *, unless: int) -> bool:
        """Wait for a process in a group; False when none has come after so many seconds, or by the time that `unless`
        can be read."""
        events = os.open(self._at(group, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            poll.register(unless, select.POLLIN)
            deadline = time.monotonic() + patience
            while b"populated 1" not in os.pread(events, 256, 0):
                left = deadline - time.monotonic()
                if left <= 0 or unless in dict(poll.poll(left * 1000)):
                    return False
            return True
        finally:
            os.close(events)

    def keep_reserve(self) -> None:
        """Leave a part of the host's memory to the host: all workspaces together, whose slice this is, get no more than
        the rest, whether they have a limit of their own or not. Where memory cannot be limited, nothing happens."""
        try:
            if _read(self._root, self._at("memory.max")).strip() == "max":
                _write(self._root, self._at("memory.max"), str(memory_for_workspaces()))
        except OSError:
            pass

    def limit(self, limits: dict[str, str]) -> list[str]:
        """Write control files ({"memory.max": "1073741824"}); returns the names that this host does not have."""
        missing = []
        for controller in {name.partition(".")[0] for name in limits}:
            try:
                for group in ("", *_prefixes(self.path)[:-1]):
                    _write(self._root, f"{group}/cgroup.subtree_control".lstrip("/"), f"+{controller}")
            except OSError:
                pass  # the control file below will be missing, and is reported
        for name, value in limits.items():
            try:
                _write(self._root, self._at(name), value)
            except OSError:
                missing.append(name)
        return missing

    def join(self, group: str, pid: int = 0) -> None:
        """Move a process (0: the caller) into a group of this cgroup."""
        _write(self._root, self._at(group, "cgroup.procs"), str(pid))

    def open(self, group: str) -> int:
        """A descriptor of a group's own directory."""
        return os.open(self._at(group), DIRECTORY, dir_fd=self._root)

    def leave(self) -> None:
        """Move the caller to the root of the hierarchy, so that its own cgroup can go."""
        try:
            _write(self._root, "cgroup.procs", "0")
        except OSError:
            pass  # the root of a container may not take processes; whoever stops us removes the cgroup then

    def processes(self, *parts: str) -> list[int]:
        """The processes in the group itself, as far as they are to be seen from here."""
        try:
            return [pid for pid in map(int, _read(self._root, self._at(*parts, "cgroup.procs")).split()) if pid]
        except OSError:
            return []

    def groups(self) -> list[str]:
        """The names of the groups in it."""
        try:
            directory = self.open("")
        except FileNotFoundError:
            return []
        try:
            return _groups(directory)
        finally:
            os.close(directory)

    def has(self, file: str) -> bool:
        """Whether there is such a control file."""
        return os.access(self._at(file), os.F_OK, dir_fd=self._root)

    def memory_in_use(self) -> int | None:
        """The bytes of memory in use; None on a host whose cgroups do not count them."""
        try:
            return int(_read(self._root, self._at("memory.current")))
        except (OSError, ValueError):
            return None

    def spent(self) -> tuple[int | None, float | None, int | None]:
        """The most bytes of memory, the seconds of processor time, and the most processes and threads so far; None for
        what this host's cgroups do not count."""
        microseconds = self._first_number("cpu.stat")
        seconds = None if microseconds is None else microseconds / 1e6
        return self._first_number("memory.peak"), seconds, self._first_number("pids.peak")

    def _first_number(self, file: str) -> int | None:
        """The number that the first line of a control file ends with."""
        try:
            return int(_read(self._root, self._at(file)).splitlines()[0].split()[-1])
        except (OSError, ValueError, IndexError):
            return None

    def is_populated(self, *parts: str) -> bool:
        """Whether any process lives in the group or below."""
        try:
            return "populated 1" in _read(self._root, self._at(*parts, "cgroup.events"))
        except OSError:
            return False

    def kill(self, *parts: str, patience: float = 10.0) -> bool:
        """SIGKILL everything in the group and below, and wait until it is empty; False when it is not by then."""
        try:
            _write(self._root, self._at(*parts, "cgroup.kill"), "1")
            events = os.open(self._at(*parts, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return True
            raise
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            deadline = time.monotonic() + patience
            while b"populated 1" in os.pread(events, 256, 0):
                if time.monotonic() >= deadline:
                    return False
                poll.poll(200)
        except OSError as error:
            if error.errno != errno.ENODEV:  # removed meanwhile, so it is empty
                raise
        finally:
            os.close(events)
        return True

    def remove(self, *parts: str) -> None:
        """Remove the empty group and all empty groups below; then parents that hutch made and nobody uses."""
        self._remove_tree(self._at(*parts))
        if not parts:
            for parent in reversed(_prefixes(self.path)[:-1]):
                try:
                    os.rmdir(parent, dir_fd=self._root)
                except OSError:
                    break

    def _remove_tree(self, path: str) -> None:
        """Remove groups, deepest first, from one to the next: the path of a deep one is longer than a path may be."""
        try:
            current = os.open(path, DIRECTORY, dir_fd=self._root)
        except FileNotFoundError:
            return
        try:
            above: list[str] = []
            pending = [_groups(current)]
            while pending:
                if pending[-1]:
                    name = pending[-1].pop()
                    current = _go(current, name)
                    above.append(name)
                    pending.append(_groups(current))
                else:
                    pending.pop()
                    if above:
                        current = _go(current, "..")
                        _rmdir(above.pop(), current)
        except FileNotFoundError:
            pass  # somebody else removes it too
        finally:
            os.close(current)
        _rmdir(path, self._root)


def control_files(cpus: int | None, memory: int | None, tasks: int | None) -> dict[str, str]:
    """The control files of a workspace's slice, name -> content; None is no limit. `memory` are bytes."""
    return {
        "cpu.weight": "100",  # however many processes it has, it is one among the workspaces
        "cpu.max": f"{cpus * CPU_PERIOD} {CPU_PERIOD}" if cpus else "max",
        "memory.max": str(memory or "max"),
        "memory.swap.max": "0" if memory else "max",  # or the guest would go on in the host's swap
        "pids.max": str(tasks or "max"),
    }


def memory_for_workspaces() -> int:
    """The memory of this host, in bytes, that all workspaces together may use."""
    return for_workspaces(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def for_workspaces(total: int) -> int:
    """The part of `total` bytes of memory that all workspaces may use: a sixteenth is the host's, within reason."""
    return total - min(max(total // 16, LEAST_RESERVE), MOST_RESERVE)


def _groups(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _go(directory: int, name: str) -> int:
    """Exchange one directory's descriptor for another's."""
    there = os.open(name, DIRECTORY, dir_fd=directory)
    os.close(directory)
    return there


def _rmdir(name: str, directory: int) -> None:
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EBUSY:  # still populated: the caller decides what that means
            raise


def _prefixes(path: str) -> list[str]:
    """The prefixes of a path: "a/b/c" -> ["a", "a/b", "a/b/c"]."""
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _read(directory: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read().decode()


def _write(directory: int, name: str, value: str) -> None:
    with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory), "wb", buffering=0) as file:
        file.write(value.encode())
