"""A workspace's identity as systemd credentials: systemd inside applies them, so no agent of ours runs there.

The same set serves a container (nspawn's --load-credential) and a VM (fw_cfg). See systemd.system-credentials(7).
"""

from __future__ import annotations

import base64
from pathlib import Path

from hutch.frozen import dataclass

HOST_KEY = "hutch.ssh-host-key"  # named by the image's sshd configuration
NETWORK = "network.network.50-hutch"
NETWORK_FILE = "/run/systemd/network/50-hutch.network"
"""The file that a guest's systemd makes of NETWORK early at boot. In a container the host can put it there at once,
which spares a program on the way to sshd."""
NOTIFY_SOCKET = "hutch.notify-socket"
"""A credential: where a machine says that it is ready, as in sd_notify's $NOTIFY_SOCKET. It is not vmm.notify_socket,
by which PID 1 speaks for itself: it says READY=1 when no unit is left to start, whether sshd answers or not."""
KEYS_DIRECTORY = "/etc/ssh/authorized_keys.d"
CONTAINERS = "/etc/containers"
PODMAN = '[containers]\npids_limit = 0\n[engine]\ncgroup_manager = "cgroupfs"\n'
SUBORDINATE_IDS = ("/etc/subuid", "/etc/subgid")
SSHD_ENVIRONMENT = "/etc/ssh/sshd_config.d/20-hutch-environment.conf"
CONTEXT = "/run/hutch-context.md"
"""The context file, which tells whoever works inside where that is. Nobody on the host reads it back."""
WHY = "/usr/local/bin/hutch-why"
WHY_PROGRAM = Path(__file__).with_name("why.pl")


@dataclass(frozen=True)
class Identity:
    """The identity of a guest. `match` is the line of a .network file that finds its interface; `subordinates` are
    ranges of uids, and of gids, that the user may hand out in user namespaces of its own: (the first, how many).
    `context` is the text of the context file."""

    hostname: str
    user: str
    uid: int
    shell: str
    address: str
    prefix: int
    gateway: str
    authorized_keys: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    match: str
    subordinates: tuple[tuple[int, int], ...] = ()
    context: str = ""


def session_environment(env: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The environment of login sessions: what the workspace says, and where the context file is unless it says so."""
    return tuple({"HUTCH_CONTEXT": CONTEXT, **dict(env)}.items())


def render_credentials(identity: Identity) -> dict[str, str]:
    """The credentials: name -> text. The host key is not among them: it travels as a file."""
    user = identity.user
    return {
        "system.hostname": identity.hostname,
        NETWORK: render_network(identity),
        "sysusers.extra": f'u {user} {identity.uid} "{user}" /home/{user} {identity.shell}\n',
        "tmpfiles.extra": render_tmpfiles(identity),
    }


def render_network(identity: Identity) -> str:
    """The guest's interface: static, IPv4 only; the gateway is its resolver."""
    return (
        f"[Match]\n{identity.match}\n"
        "[Network]\n"
        f"Address={identity.address}/{identity.prefix}\nGateway={identity.gateway}\nDNS={identity.gateway}\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\nLLMNR=no\nMulticastDNS=no\n"
    )


def render_tmpfiles(identity: Identity) -> str:
    """Files that systemd-tmpfiles makes at every boot; contents travel in base64, so no value can add a line."""
    user, env = identity.user, session_environment(identity.env)
    lines = [
        _file("/etc/doas.conf", "0400", f"permit nopass {user}\n"),
        f"d {KEYS_DIRECTORY} 0755 root root - -",
        _file(f"{KEYS_DIRECTORY}/{user}", "0644", "".join(f"{key}\n" for key in identity.authorized_keys)),
        _file("/etc/environment", "0644", render_environment(env)),
        _file(SSHD_ENVIRONMENT, "0644", render_sshd_environment(env)),
        _file(CONTEXT, "0644", identity.context),
        _file(WHY, "0755", WHY_PROGRAM.read_text(encoding="utf-8")),
        *(render_nesting(identity) if identity.subordinates else ()),
        f"C /home/{user} - {user} {user} - /etc/skel",
    ]
    return "\n".join(lines) + "\n"


def render_nesting(identity: Identity) -> tuple[str, ...]:
    """tmpfiles lines for rootless containers inside: the uids that the user may use, as in subuid(5); and for Podman,
    that cgroups are the workspace's affair: it would count processes, which not every host lets it, and by a session of
    systemd's, which few images have. Users' own files go before this one."""
    lent = "".join(f"{identity.user}:{first}:{count}\n" for first, count in identity.subordinates)
    return (
        *(_file(path, "0644", lent) for path in SUBORDINATE_IDS),
        f"d {CONTAINERS} 0755 root root - -",
        f"d {CONTAINERS}/containers.conf.d 0755 root root - -",
        _file(f"{CONTAINERS}/containers.conf.d/50-hutch.conf", "0644", PODMAN),
    )


def render_environment(env: tuple[tuple[str, str], ...]) -> str:
    """/etc/environment as pam_env reads it. There a "#" begins a comment even between quotes, and nothing escapes
    it; hence sshd is told too."""
    return "".join(f'{name}="{value}"\n' for name, value in env)


def render_sshd_environment(env: tuple[tuple[str, str], ...]) -> str:
    """The environment as one SetEnv line (sshd takes no second one), every word in quotes."""
    words = [f"{name}={value}".replace("\\", "\\\\").replace('"', '\\"') for name, value in env]
    return "SetEnv " + " ".join(f'"{word}"' for word in words) + "\n" if words else ""


def _file(path: str, mode: str, content: str) -> str:
    return f"f+~ {path} {mode} root root - {base64.b64encode(content.encode()).decode()}"
