"""Checkouts as git makes them, and what hutch protects in them."""

from __future__ import annotations

from pathlib import Path

from hutch.host.storage.protected import find_protected

NAMES = dict.fromkeys((
    ".vscode", ".idea", ".cursor", ".envrc", "hutch.toml", ".husky", ".github/hooks", ".claude/settings.json",
    ".claude/settings.local.json",
), "directory")  # fmt: skip
WAYS = {".github": "way", ".claude": "way"}
GIT = {".git/config": "", ".git/hooks": "", ".git/commondir": "itself"}


def make_git_directory(git: Path, config: str = "[core]\n\tbare = false\n") -> None:
    for name in ("objects", "refs", "hooks"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(config)


def make_worktree(top: Path, name: str, tree: Path) -> Path:
    """Make a linked working tree as `git worktree add` does; returns its git directory."""
    own = top / ".git/worktrees" / name
    own.mkdir(parents=True)
    (own / "commondir").write_text("../..\n")
    (own / "gitdir").write_text(f"{tree}/.git\n")
    tree.mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {own}\n")
    return own


def found(source: Path, *more: str, is_default: bool = True) -> dict[str, str]:
    """What is protected, without the ways to it."""
    return {path: hold for path, hold in all_found(source, *more, is_default=is_default).items() if hold != "way"}


def all_found(source: Path, *more: str, is_default: bool = True) -> dict[str, str]:
    paths = find_protected(str(source), more, is_default=is_default)
    return {path.removeprefix(f"{source}/"): hold for path, hold in paths.items()}
