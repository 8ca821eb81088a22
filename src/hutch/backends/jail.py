"""The jail of each process of a virtual machine: bwrap and setpriv, with no more than that process needs."""

from __future__ import annotations

CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")  # for setpriv, which drops them
PROGRAMS = (
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--dir", "/dev"),  # else it is root's alone
    *("--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"),
)
"""Options of bwrap that show the host's programs, and the devices that these cannot do without."""


def jailed(files: tuple[str, ...], uid: int, command: tuple[str, ...], groups: str = "") -> tuple[str, ...]:
    """`command` as `uid`, in namespaces of its own, with the host's programs and `files` (options of bwrap) and nothing
    else. See bwrap(1) and setpriv(1)."""
    return (
        *("bwrap", "--die-with-parent", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup", *PROGRAMS, *files, "--chdir", "/", "--clearenv"),
        *(word for capability in CAPABILITIES for word in ("--cap-add", capability)),
        *("--", "setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={groups}" if groups else "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--", *command),
    )
