"""The Incus contender: a private server of its own, one image of the same tree, a bridge with static addresses.

The server, its storage pool (`dir`), the bridge and the import of the image are made once, and not counted.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.measure import BenchError, run, spawn, try_run, wait_for_banner

SERVER = "/usr/libexec/incus/incusd"
BRIDGE, GATEWAY, ADDRESS = "bench-incus", "10.97.0.1", "10.97.0.50"
MARKS = (BRIDGE, "lxc.payload", "lxc.monitor")
MAC = "02:11:22:33:44:66"
PRESEED = f"""
config: {{}}
storage_pools: [{{name: default, driver: dir}}]
profiles:
- name: default
  devices:
    root: {{type: disk, path: /, pool: default}}
    eth0: {{type: nic, nictype: bridged, parent: {BRIDGE}, name: eth0, hwaddr: "{MAC}"}}
"""
METADATA = "architecture: x86_64\ncreation_date: 1700000000\nproperties: {os: debian, release: bench}\n"
NETWORK = """[Match]
Name=eth0
[Network]
Address={address}
Gateway={gateway}
DNS={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


class Incus:
    """`incus init`, `incus start`, ssh."""

    def __init__(self, tree: Path, work: Path) -> None:
        self.work = work / "incus"
        self.work.mkdir()
        os.environ["INCUS_DIR"] = str(self.work / "server")
        os.environ["INCUS_CONF"] = str(self.work / "client")
        _ensure_uids()
        self._start_server()
        self._import_image(tree)

    def _start_server(self) -> None:
        log = str(self.work / "server.log")
        (self.work / "server").mkdir()
        self._server = spawn([SERVER, "--group", "root"], log)
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        # The same courtesy that hutch and the bare container have: no second lost to an unanswered ARP request.
        run(["ip", "neighbour", "replace", ADDRESS, "lladdr", MAC, "dev", BRIDGE, "nud", "permanent"])
        run([SERVER, "waitready", "--timeout", "60"])
        run(["incus", "admin", "init", "--preseed"], stdin=PRESEED)

    def _import_image(self, tree: Path) -> None:
        self.key, *files = pack(tree, self.work, f"{ADDRESS}/24", GATEWAY)
        run(["incus", "image", "import", *files, "--alias", "bench"])

    def new_to_ssh(self, number: int) -> float:
        """Seconds from `incus init` of a new container to the end of a first ssh into it."""
        name = f"c{number}"
        start = time.perf_counter()
        run(["incus", "init", "bench", name])
        run(["incus", "start", name])
        self._ssh_until_it_works()
        took = time.perf_counter() - start
        run(["incus", "delete", "--force", name])
        return took

    def stop(self) -> None:
        """End the server: what is measured later should not share the machine with it."""
        self._server.terminate()
        self._server.wait(timeout=60)

    def _ssh_until_it_works(self) -> None:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        argv = ["ssh", "-F", "none", "-i", self.key, *options, f"dev@{ADDRESS}", "true"]
        end = time.monotonic() + 60
        while time.monotonic() < end:
            wait_for_banner(ADDRESS)
            if try_run(argv):
                return
        raise BenchError(f"Incus's container does not answer to ssh\n{(self.work / 'server.log').read_text()[-2000:]}")


def pack(tree: Path, work: Path, address: str, gateway: str) -> tuple[str, str, str]:
    """The user's key, and the two files of an image, all made in `work`. The image is the tree, plus what hutch gives
    by credentials: address, user and keys."""
    key = make_key(work / "key")
    layers = {name: work / name for name in ("upper", "layer-work", "merged", "meta")}
    for folder in layers.values():
        folder.mkdir()
    merged = layers["merged"]
    options = f"lowerdir={tree},upperdir={layers['upper']},workdir={layers['layer-work']}"
    run(["mount", "-t", "overlay", "-o", options, "overlay", str(merged)])
    root = str(work / "root.squashfs")
    try:
        _add_identity(merged, key, NETWORK.format(address=address, gateway=gateway))
        run(["mksquashfs", str(merged), root, "-comp", "zstd", "-quiet", "-no-progress"])
    finally:
        run(["umount", str(merged)])
    (layers["meta"] / "metadata.yaml").write_text(METADATA)
    meta = str(work / "meta.tar.gz")
    run(["tar", "-C", str(layers["meta"]), "-czf", meta, "metadata.yaml"])
    return key, meta, root


def make_key(path: Path) -> str:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(path)])
    return str(path)


def _add_identity(root: Path, key: str, network: str) -> None:
    (root / "etc/systemd/network").mkdir(parents=True, exist_ok=True)
    (root / "etc/systemd/network/50-bench.network").write_text(network)
    run(["useradd", "--root", str(root), "--uid", "1000", "--create-home", "--shell", "/bin/bash", "dev"])
    run(["usermod", "--root", str(root), "--password", "*", "dev"])  # "!" would be a locked account to sshd
    keys = root / "home/dev/.ssh"
    keys.mkdir(mode=0o700)
    (keys / "authorized_keys").write_text(Path(f"{key}.pub").read_text())
    for path in (keys, keys / "authorized_keys"):
        os.chown(path, 1000, 1000)
    make_key(root / "etc/ssh/ssh_host_ed25519_key")
    (root / "etc/ssh/sshd_config.d/05-bench.conf").write_text("HostKey /etc/ssh/ssh_host_ed25519_key\n")


def _ensure_uids() -> None:
    """Give root a range of user ids to hand to containers (in the private /etc)."""
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = file.read_text() if file.exists() else ""
        if not any(line.startswith("root:") for line in lines.splitlines()):
            file.write_text(lines + "root:1000000:1000000000\n")
