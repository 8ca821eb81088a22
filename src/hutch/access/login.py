"""The login that a command inside runs with, whichever way it gets there."""

from __future__ import annotations

import os

from hutch.frozen import dataclass


@dataclass(frozen=True)
class Login:
    """The login that a command runs with: user, directories, environment."""

    user: str
    uid: int
    home: str
    shell: str
    env: tuple[tuple[str, str], ...]
    cwd: str = ""
    """An absolute path; "" for the home, or the root where there is none."""

    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.home,
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": self.shell,
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            **dict(self.env),
        }
