"""Aliases for shells: their text, and the files by which every shell of this host has them.

The installed files start nothing of hutch's: a shell finds out for itself which workspaces it may look at, each time
that it starts. So they cost it next to nothing, follow the workspaces that exist, and are silent when hutch is gone.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from hutch.errors import explained
from hutch.files import read_or_none, write_atomic
from hutch.host.services.lock import host_lock
from hutch.spec.names import DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, Layout, hostname
from hutch.state import make_directory

VERBS = ("start", "stop", "restart", "status")
NOTE = "# Written by `hutch aliases --install`, do not edit."


def commands(layout: Layout, name: str) -> dict[str, str]:
    """The command behind each alias of a workspace. Names have no `_`, so no two workspaces have an alias in common."""
    prefix = prefix_of(layout)
    return {
        f"workspace_{name}": f"ssh {hostname(name)}",
        **{f"workspace_{name}_{verb}": f"{prefix}hutch {verb} {name}" for verb in VERBS},
    }


def prefix_of(layout: Layout) -> str:
    """The words that make a command one of another hutch of this host; "" for the usual one."""
    if (str(layout.state), str(layout.run)) == (DEFAULT_STATE_DIR, DEFAULT_RUN_DIR):
        return ""
    return f"env HUTCH_STATE_DIR={layout.state} HUTCH_RUN_DIR={layout.run} "


def render_aliases(layout: Layout, shell: str, names: Iterable[str]) -> str:
    """Lines for a shell to evaluate."""
    lines = []
    for name in names:
        for alias, command in commands(layout, name).items():
            if shell == "fish":  # whose aliases are functions, and slow to make
                lines.append(f"function {alias} --wraps {shlex.quote(command)}; {command} $argv; end")
            else:
                lines.append(f"alias {alias}={shlex.quote(command)}")
    return "".join(f"{line}\n" for line in lines)


# Installed scripts.

POSIX = """{note}
for hutch_name in {directory}/*.json; do
    [ -r "$hutch_name" ] || continue
    hutch_name=${{hutch_name##*/}}
    hutch_name=${{hutch_name%.json}}
    case $hutch_name in *[!a-z0-9-]*) continue ;; esac
    alias "workspace_$hutch_name=ssh workspace-$hutch_name"
    for hutch_verb in {verbs}; do
        alias "workspace_${{hutch_name}}_$hutch_verb={prefix}hutch $hutch_verb $hutch_name"
    done
done
unset hutch_name hutch_verb
"""
ZSH = """{note}
() {{
    emulate -L zsh
    local name verb
    for name in {directory}/*.json(N:t:r); do
        [[ -r {directory}/$name.json && $name != *[^a-z0-9-]* ]] || continue
        alias "workspace_$name=ssh workspace-$name"
        for verb in {verbs}; do
            alias "workspace_${{name}}_$verb={prefix}hutch $verb $name"
        done
    done
}}
"""
FISH = """{note}
begin
    set -l path
    set -l verb
    for path in {directory}/*.json
        test -r $path; or continue
        set -l name (string replace -r '^.*/([a-z0-9-]+)[.]json$' '$1' -- $path)
        string match -qr '^[a-z0-9-]+$' -- $name; or continue
        function workspace_$name --wraps "ssh workspace-$name" --inherit-variable name
            ssh workspace-$name $argv
        end
        for verb in {verbs}
            function workspace_{{$name}}_$verb --wraps "{prefix}hutch $verb $name" -V name -V verb
                {prefix}hutch $verb $name $argv
            end
        end
    end
end
"""
SCRIPTS = {"bash": POSIX, "zsh": ZSH, "fish": FISH}


def render_script(layout: Layout, shell: str) -> str:
    """The script that a shell reads at its start."""
    return SCRIPTS[shell].format(
        note=NOTE, directory=layout.user_views, verbs=" ".join(VERBS), prefix=prefix_of(layout)
    )


def script_paths(layout: Layout, etc: Path) -> dict[str, Path]:
    """The path of each shell's script."""
    return {
        "bash": etc / "profile.d" / f"{layout.instance}.sh",
        "zsh": etc / "zsh" / f"{layout.instance}.zsh",
        "fish": etc / "fish" / "conf.d" / f"{layout.instance}.fish",
    }


def readers(shell: str, etc: Path) -> list[Path]:
    """The files of the host's own that must name a script, since the shell reads no directory: the first is the
    distribution's. bash reads profile.d in login shells alone. What leads out of /etc, as on NixOS, is written by
    something else, again and again."""
    candidates = {"bash": ("bash.bashrc",), "zsh": ("zsh/zshrc", "zshrc")}.get(shell, ())
    found = [Path(os.path.realpath(etc / name)) for name in candidates if (etc / name).is_file()]
    return [path for path in found[:1] if path.is_relative_to(os.path.realpath(etc))]


def is_here(shell: str, etc: Path = Path("/etc")) -> bool:
    """Whether this host has a place for the shell's script."""
    return shell == "bash" or (bool(readers(shell, etc)) if shell == "zsh" else (etc / "fish").is_dir())


def render_line(content: bytes, layout: Layout, script: Path | None) -> bytes:
    """`content` with a line that reads `script`, or without one. Its other lines stay, byte for byte."""
    mark = f"# {layout.instance}: written by hutch"
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if f" {mark}".encode() not in line]
    if lines and kept != lines and b"(line end added)" in lines[-1]:
        kept[-1] = kept[-1].removesuffix(b"\n")
    content = b"".join(kept)
    if script is None:
        return content
    joint, note = (b"", "") if not content or content.endswith(b"\n") else (b"\n", " (line end added)")
    return content + joint + f"if [ -r {script} ]; then . {script}; fi {mark}{note}\n".encode()


def install(layout: Layout, shells: Iterable[str], etc: Path = Path("/etc")) -> list[Path]:
    """Let every shell of this host have the aliases. Returns the paths of files that were written."""
    with host_lock():  # another hutch has lines of its own in the same files
        return _write({path: content for shell in shells for path, content in _wanted(layout, shell, etc).items()})


def missing_shells(layout: Layout, etc: Path = Path("/etc")) -> tuple[str, ...]:
    """The shells of this host whose aliases are missing or differ."""
    return tuple(
        shell
        for shell in SCRIPTS
        if is_here(shell, etc) and any(read_or_none(path) != new for path, new in _wanted(layout, shell, etc).items())
    )


def _wanted(layout: Layout, shell: str, etc: Path) -> dict[Path, bytes]:
    """The shell's script, and the file of the host's own with the line that reads it."""
    script = script_paths(layout, etc)[shell]
    lines = {path: render_line(path.read_bytes(), layout, script) for path in readers(shell, etc)}
    return {script: render_script(layout, shell).encode(), **lines}


def remove(layout: Layout, etc: Path = Path("/etc"), shells: Iterable[str] = tuple(SCRIPTS)) -> list[Path]:
    """Remove the installed scripts, and the line in the host's own files. May be called again."""
    gone = []
    with host_lock():
        for shell in shells:
            blocks = {path: render_line(path.read_bytes(), layout, None) for path in readers(shell, etc)}
            gone += _write(blocks)
            script = script_paths(layout, etc)[shell]
            if script.exists():
                script.unlink()
                gone.append(script)
    return gone


def _write(wanted: Mapping[Path, bytes]) -> list[Path]:
    changed = [path for path, content in wanted.items() if read_or_none(path) != content]
    for path in changed:
        with explained(f"{path} cannot be written"):
            make_directory(path.parent)
            write_atomic(path, wanted[path])
    return changed
