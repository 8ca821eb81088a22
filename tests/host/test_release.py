"""What a release consists of: built from a tag, the same at each time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from package.control import DISTRIBUTIONS
from tests.support.enclosure import OUTER_NETWORK
from tests.support.packages import CHECKOUT

VERSION = "0.1.0"
ME = ("-c", "user.name=a", "-c", "user.email=a@b.c")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """With the tools of this checkout, and a tag of a version that its changelog knows."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(CHECKOUT), str(clone))
    for name in ("script/release", "pyproject.toml", "uv.lock"):  # as they are, committed or not
        (clone / name).write_bytes((CHECKOUT / name).read_bytes())
    (clone / ".venv").symlink_to(CHECKOUT / ".venv")
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]", f"## [{VERSION}] - 2026-12-01", 1))
    git(clone, *ME, "commit", "-qam", "release")
    git(clone, "tag", f"v{VERSION}")
    return clone


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "safe.directory=*", *words], cwd=directory, check=True, timeout=60)


def release(clone: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With the machine's own network: the tools of the build come from where uv looks."""
    outside = ("nsenter", f"--net={os.environ[OUTER_NETWORK]}", "--")
    return subprocess.run(
        [*outside, str(clone / "script/release"), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


OTHERS = {
    "DEBFULLNAME": "Somebody",
    "DEBEMAIL": "some@body.example",
    "TZ": "Asia/Tokyo",
    "PYTHONHASHSEED": "7",
    "TAR_OPTIONS": "--exclude=cli",
    "GIT_DIR": "/nonexistent",
    "LC_ALL": "C.UTF-8",
}
SETTINGS = """
[core]
autocrlf = true
attributesFile = {attributes}
"""


@pytest.mark.slow
def test_a_tag_gives_the_same_bytes_each_time(clone: Path, tmp_path: Path) -> None:
    first = release(clone, f"v{VERSION}")
    assert first.returncode == 0, first.stderr
    built = {Path(line).name: Path(line).read_bytes() for line in first.stdout.splitlines()}
    wheel, *_ = files = (
        f"hutch-{VERSION}-py3-none-any.whl",
        f"hutch-{VERSION}.tar.gz",
        *(f"hutch_{VERSION}-1{distribution.mark}_amd64.deb" for distribution in DISTRIBUTIONS.values()),
    )
    assert built.keys() == {"SHA256SUMS", *files}
    assert built["SHA256SUMS"].decode() == "".join(
        f"{hashlib.sha256(built[name]).hexdigest()}  {name}\n" for name in files
    )
    with zipfile.ZipFile(clone / f"dist/v{VERSION}" / wheel) as opened:
        names = opened.namelist()
    assert {"hutch/spec/schema.json", f"hutch-{VERSION}.data/data/share/man/man1/hutch.1"} <= {*names}

    for name in ("later.py", "errors.py"):  # of the checkout nothing counts but its tag
        (clone / "src/hutch" / name).write_text("")
    settings, attributes, planted = tmp_path / "gitconfig", tmp_path / "attributes", tmp_path / "tmp"
    attributes.write_text("* export-ignore\n")
    settings.write_text(SETTINGS.format(attributes=attributes))
    planted.mkdir()
    (planted / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["tmp.*/hutch"]\n')
    (planted / ".hgignore").write_text("syntax: glob\nsrc/hutch/cli/*\n")
    (clone / ".git/info/attributes").write_text("src/** export-ignore\n")
    others = {**OTHERS, "GIT_CONFIG_GLOBAL": str(settings), "TMPDIR": str(planted)}
    umask = os.umask(0o077)
    try:
        again = release(clone, "--output", str(tmp_path / "again"), f"v{VERSION}", **others)
    finally:
        os.umask(umask)
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == built
    assert "is there already" in release(clone, f"v{VERSION}").stderr


def test_what_is_no_release_is_refused(clone: Path) -> None:
    git(clone, "tag", "v9.9.9")
    git(clone, "branch", "v8.0.0")
    git(clone, "reset", "-q", "--hard", "HEAD~1")
    git(clone, "tag", "-f", f"v{VERSION}")
    for tag, said in (
        ("v8.0.0", "there is no tag v8.0.0"),
        ("v9.9.9", f"v9.9.9 is a tag of version {VERSION}, which would be v{VERSION}"),
        (f"v{VERSION}", f"CHANGELOG.md of v{VERSION} has no section [{VERSION}]"),
    ):
        refused = release(clone, tag)
        assert (refused.returncode, refused.stderr) == (1, f"script/release: {said}\n")
    assert release(clone).returncode == 2
    assert not (clone / "dist").exists()
