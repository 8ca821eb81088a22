"""The hutch.toml that `hutch init` writes: it works as it is, and shows the common keys."""

from __future__ import annotations

STARTER = """\
# hutch.toml: every table below [workspaces] is a machine of its own on this host.
#
#   sudo hutch plan              what `up` would do, and why
#   sudo hutch up                make it so
#   ssh workspace-NAME           go inside
#
# All keys: `hutch schema`.

[defaults]                       # for every workspace; a workspace overrides it
user = "dev"                     # login user inside, with passwordless doas
# authorized_keys = ["~/.ssh/id_ed25519.pub"]   # who may log in; default: all of your ~/.ssh/*.pub
# packages = ["git", "vim", "htop", "wget", "curl", "tmux", "dnsutils"]   # this list is the default

[workspaces.@NAME@]
type = "container"               # or "vm"
# image = "debian:trixie"        # or "debian:bookworm", "ubuntu:noble", "rootfs:PATH"
# setup = '''                    # shell script, run once as root when the image is built
# apt-get install -y --no-install-recommends python3-venv
# '''
# vcpus = 2
# memory = "4GiB"
# autostart = true               # start it when the host boots, where systemd is
# persist = "home"               # only the home outlives a restart; "all" keeps the whole system
# mounts = [{ source = "~/src/@NAME@", target = "/src", readonly = true, create = true }]
# egress = ["*.debian.org", "api.example.com:443"]   # all that it may reach; default: "internet"
# publish = ["127.0.0.1:8080:80"]   # [host_ip:]host_port:guest_port[/udp]
# env = { EDITOR = "vim" }
"""


def render_starter(name: str = "dev") -> str:
    """A commented hutch.toml with one workspace; the caller has checked its name."""
    return STARTER.replace("@NAME@", name)
