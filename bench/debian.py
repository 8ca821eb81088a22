"""Debian trees from the mirrors, for what hutch is measured against. Needs the network."""

from __future__ import annotations

from pathlib import Path

from bench.measure import run

SUITE = "trixie"
# The scratch directory is shown at /tmp: apt's unprivileged downloader cannot reach below a private directory.
_IN_SCRATCH = 'mount --bind "$1" /tmp; shift; exec "$@"'
_PRIVATE = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", _IN_SCRATCH, "sh")


def bootstrap(scratch: Path, variant: str, packages: str) -> Path:
    """A new tree in `scratch`, which must not exist: a variant of mmdebstrap's, and packages with commas between."""
    scratch.mkdir(parents=True, mode=0o755)
    mmdebstrap = ["mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}", "--format=directory"]
    run([*_PRIVATE, str(scratch), *mmdebstrap, f"--include={packages}", SUITE, "/tmp/root"], timeout=1800)
    return scratch / "root"
