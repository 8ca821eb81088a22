"""Two workspaces that share one checkout: what protects it for one stays when the other ends, and comes again when
somebody takes it away.
"""

from __future__ import annotations

import os
import subprocess

from tests.support.world import World
from tests.systemd.conftest import call, open_instance
from tests.systemd.test_eject import until

SECONDS = 600.0


PROTECTED = """
cd /srv/it
[ -w .git/HEAD ] || exit 4
for each in .git/commondir .git/config .idea; do
    [ -e "$each" ] && [ ! -w "$each" ] || exit 3
done
"""
"""Asked as root, who may write whatever can be written."""


def test_what_protects_it_stays(world: World) -> None:
    with open_instance(world) as instance:
        checkout = instance.directory / "checkout"
        call("git", "init", "--quiet", str(checkout))
        subprocess.run(["chown", "-R", "1000:1000", str(checkout)], check=True, timeout=60)
        mount = f'mounts = [{{ source = "{checkout}", target = "/srv/it" }}]'
        held = [checkout / ".git/commondir", checkout / ".idea"]

        def is_protected(name: str) -> bool:
            return not instance.inside(name, "sh", "-c", PROTECTED, root=True, check=False).returncode

        def looks() -> list[tuple[int, int]]:
            return [(found.st_ino, found.st_ctime_ns) for found in map(os.stat, held)]

        def pids() -> list[int]:
            return [instance.status(name)["pid"] for name in ("web", "beside")]

        instance.declare("container", web=mount, beside=mount)
        instance.hutch("up", timeout=SECONDS)
        for first, second in (("web", "beside"), ("beside", "web")):
            instance.hutch("restart", second, timeout=SECONDS)  # so that it comes upon what the first one has made
            before = looks(), instance.status(second)["pid"]
            instance.hutch("stop", first, timeout=SECONDS)
            assert (looks(), instance.status(second)["pid"]) == before
            assert is_protected(second)
            instance.hutch("start", first, timeout=SECONDS)
        running = pids()
        held[0].unlink()
        until(lambda: is_protected("web") and is_protected("beside"))
        assert pids() == running
        assert held[0].exists()
        instance.hutch("down", timeout=SECONDS)
        assert not any(path.exists() for path in held)
