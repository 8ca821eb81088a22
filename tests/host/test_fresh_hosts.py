"""The package on hosts that a stranger has: a fresh root tree of each distribution that there is one for, from its own
mirror, in which `apt` installs the file and what it needs, and takes it away again.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from package.control import DISTRIBUTIONS
from tests.support.enclosure import OUTER_NETWORK
from tests.support.packages import build_package

SOURCES = {
    "debian13": ("trixie", "http://deb.debian.org/debian", "main"),
    "ubuntu24.04": ("noble", "http://archive.ubuntu.com/ubuntu", "main,universe"),
}
INSIDE = """
set -eux
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
apt-get install -qq --yes --no-install-recommends /tmp/hutch.deb >/dev/null
[ -z "$(dpkg --verify hutch)" ]
cd /root
hutch --version
hutch init
hutch plan
printf '[workspaces.web]\ntype = "vm"\nmemroy = "1GiB"\n' >wrong.toml
if hutch -f wrong.toml plan 2>said; then exit 1; fi
grep 'wrong.toml:3' said
python3 -I -c 'import hutch.egress.proxy, hutch.apply.hardware; print(hutch.apply.hardware.library("qemu.qmp"))'
python3 -I -c 'import importlib, hutch.cli.member as m; [importlib.import_module(name) for name in m.BEFORE]'
hutch schema >/dev/null
hutch doctor >doctor || :
grep 'optional: nothing here' doctor
if grep 'nothing here' doctor | grep -v 'optional: '; then exit 1; fi
apt-get purge -qq --yes hutch >/dev/null
find / -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /tmp -o -path /var/log \\) -prune -o \\
    -path '*hutch*' -print >left
[ ! -s left ]
"""


def test_there_is_a_tree_for_each_package() -> None:
    assert SOURCES.keys() == DISTRIBUTIONS.keys()


@pytest.mark.long  # downloads
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_it_comes_and_goes(distribution: str, tmp_path: Path) -> None:
    suite, mirror, components = SOURCES[distribution]
    built = build_package(tmp_path, "1", distribution)
    script = tmp_path / "inside.sh"
    script.write_text(INSIDE)
    hooks = (f'cp "{built}" "$1/tmp/hutch.deb"', f'cp "{script}" "$1/tmp/inside.sh"', 'chroot "$1" sh /tmp/inside.sh')
    command = (
        *("nsenter", f"--net={os.environ[OUTER_NETWORK]}", "--", "mmdebstrap", "--mode=root", "--variant=minbase"),
        *(f"--components={components}", *(f"--customize-hook={hook}" for hook in hooks), "--format=null"),
        *(suite, "/dev/null", mirror),
    )
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
