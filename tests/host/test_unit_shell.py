"""The part of a unit's script that stays beside the guest for its shared directories."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "src/hutch/runtime/unit.sh"
STAGE = """
set -eu
runtime=$3
mkdir -p "$runtime/noted"
[ ! -e "$runtime/full" ] || ln -s /dev/full "$runtime/noted/reason"
sleep 100 &
main=$!
. "$2" # which ends with "$1"
watch() { %s; }
"""


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
@pytest.mark.parametrize(
    ("watch", "ended", "said"),
    [
        ("exit 3", 137, "has ended: code 3"),
        ("exec sh -c 'kill -KILL $$'", 137, "has ended: code 137"),
        ("exit 4", 137, ""),
        ("kill -KILL $1", 137, ""),
        ("exec sleep 100", 0, ""),
    ],
    ids=["it fails", "it is killed", "there is no room to say so", "the guest ends", "it is to end"],
)
def test_the_guest_ends_with_what_keeps_its_paths_protected(
    tmp_path: Path, shell: str, watch: str, ended: int, said: str
) -> None:
    end = "kill $watching; wait $watching || :; kill $main && exit 0" if "sleep" in watch else ""
    script = f"{STAGE % watch}keep_watch & watching=$!\n{end}\nwait $main || code=$?\nexit $code"
    if watch == "exit 4":
        (tmp_path / "full").touch()
    argv = [*shell.split(), "-c", script, "sh", ":", str(SCRIPT), str(tmp_path)]
    result = subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=60)
    reason = tmp_path / "noted/reason"
    assert (result.returncode, reason.is_file()) == (ended, bool(said))
    assert not said or said in reason.read_text()
