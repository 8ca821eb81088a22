"""Wrong files, and for each problem its line, its key and part of what is said: no fewer, no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hutch.errors import Problem

Expected = tuple[int, str, str]


def one(line: str, key: str, words: str) -> tuple[str, tuple[Expected, ...]]:
    """A workspace whose third line is wrong."""
    return f'[workspaces.web]\ntype = "container"\n{line}\n', ((3, f"workspaces.web.{key}", words),)


def two(first: str, second: str, *expected: Expected) -> tuple[str, tuple[Expected, ...]]:
    """Two workspaces, with something wrong between lines 3 and 6."""
    body = f'[workspaces.one]\ntype = "container"\n{first}\n[workspaces.two]\ntype = "vm"\n{second}\n'
    return body, expected


def lines(text: str, *expected: Expected) -> tuple[str, tuple[Expected, ...]]:
    """A longer file; its line 1 is the empty one."""
    return text, expected


WRONG: dict[str, tuple[str, tuple[Expected, ...]]] = {
    # The shape of the file.
    "syntax": ("a = \n", ((1, "", "is not valid TOML"),)),
    "syntax at the end": ('\n[workspaces.web]\ntype = "cont\n', ((3, "", "is not valid TOML"),)),
    "key twice": ("[network]\nbridge = 'a'\nbridge = 'b'\n", ((3, "", "Cannot overwrite a value"),)),
    "nesting": ("a = " + "[\n" * 20_000, ((0, "", "nests too deeply"),)),
    "a line of no person's": (f"# {'.' * 20_000}\n", ((1, "", "is longer than 16384 characters"),)),
    "dotted nesting": (f"[defaults.env]\n{'.'.join('a' * 2_000)} = 1\n", ((2, "defaults.env.a", "must be a string"),)),
    "number of many digits": (f"a = {'9' * 5000}\n", ((0, "", "is not valid TOML"),)),
    "hexadecimal of many digits": one(f"vcpus = 0x{'f' * 9000}", "vcpus", "must be a whole number"),
    "unknown table": ("[worskpaces.web]\n", ((1, "worskpaces", 'did you mean "workspaces"?'),)),
    "lost workspace": ('[web]\ntype = "vm"\n', ((1, "web", "did you mean [workspaces.web]?"),)),
    "unknown engine": ("[engines.lxd]\n", ((1, "engines.lxd", "unknown engine"),)),
    "unknown engine key": ('[engines.incus]\nremotes = "a"\n', ((2, "engines.incus.remotes", '"remote"'),)),
    "tables that are none": (
        "network = 1\ndefaults = []\nworkspaces = ''\nengines = { incus = 3 }\n",
        (
            (1, "network", "must be a table"),
            (2, "defaults", "must be a table"),
            (3, "workspaces", "must be a table"),
            (4, "engines.incus", "must be a table"),
        ),
    ),
    "array of tables": ('[[workspaces]]\nname = "a"\n', ((1, "workspaces", "must be a table"),)),
    "workspace that is none": ("[workspaces]\nweb = 'vm'\n", ((2, "workspaces.web", "must be a table"),)),
    # Names and types.
    "capital": ('[workspaces.Web]\ntype = "vm"\n', ((1, "workspaces.Web", "lower-case"),)),
    "path": ('[workspaces."../x"]\ntype = "vm"\n', ((1, 'workspaces."../x"', "cannot name"),)),
    "line break in a name": ('[workspaces."a\\nb"]\ntype = "vm"\n', ((1, 'workspaces."a\\nb"', "cannot name"),)),
    "long name": (f'[workspaces.{"a" * 33}]\ntype = "vm"\n', ((1, f"workspaces.{'a' * 33}", "cannot name"),)),
    "no type": ("\n[workspaces.web]\nvcpus = 2\n", ((2, "workspaces.web.type", 'is missing ("container" or "vm")'),)),
    "foreign type": ('[workspaces.web]\ntype = "docker"\n', ((2, "workspaces.web.type", '"container" or "vm"'),)),
    "unknown key": one("memroy = '1GiB'", "memroy", 'unknown key (did you mean "memory"?)'),
    "hyphen for underscore": one("restart-if-changed = true", "restart-if-changed", '"restart_if_changed"'),
    "truth in quotes": one('autostart = "true"', "autostart", "must be true or false"),
    "number for truth": one("autostart = 1", "autostart", "must be true or false"),
    "truth for a number": one("vcpus = true", "vcpus", "must be a whole number"),
    "word for a list": one('packages = "git"', "packages", "must be a list"),
    "date": one("user = 1979-05-27", "user", "must be a string"),
    "infinity": one("vcpus = inf", "vcpus", "must be a whole number (1 to 1024)"),
    # Single values.
    "no vcpus": one("vcpus = 0", "vcpus", "1 to 1024"),
    "size without a unit": one("memory = 512", "memory", "has no unit"),
    "decimal size": one('memory = "4GB"', "memory", "is not a size"),
    "small size": one('disk = "4MiB"', "disk", "at least 64MiB"),
    "line break in a user": one('user = "dev\\nroot"', "user", "line break"),
    "root as user": one('user = "root"', "user", "system account"),
    "relative shell": one('shell = "bash"', "shell", "absolute path"),
    "owner root": one("owner = 0", "owner", "is root"),
    "owner in quotes": one('owner = "1000"', "owner", "number in quotes"),
    "owner unknown": one('owner = "carol"', "owner", "is not a user of this host"),
    "shared with nobody known": one('share_with = ["carol"]', "share_with[0]", "is not a user of this host"),
    "shared with no group": one('share_with = ["bob", "@ops"]', "share_with[1]", "is not a group of this host"),
    "shared with a group as a user": one('share_with = ["devs"]', "share_with[0]", "a group is written with an @"),
    "shared with root": one('share_with = ["root"]', "share_with[0]", "root reaches it anyway"),
    "shared with root's group": one('share_with = ["@root"]', "share_with[0]", "is the group 0"),
    "shared with everybody's": one('share_with = ["@nogroup"]', "share_with[0]", "is the group 65534"),
    "shared with a range of hutch's": one('share_with = ["@hutchs"]', "share_with[0]", "is the group 1879048192"),
    "shared with a number": one("share_with = [1001]", "share_with[0]", "must be a string"),
    "shared with a word": one('share_with = "bob"', "share_with", "must be a list"),
    "shared with what is no name": one('share_with = ["bob\\n@all"]', "share_with[0]", "line break"),
    "shared with two in one": one('share_with = ["bob, alice"]', "share_with[0]", "neither a user name nor a group"),
    "shared with too many": one(f"share_with = {['bob'] * 65}", "share_with", "more than 64"),
    "owner nobody by name": one('owner = "nobody"', "owner", "ordinary user"),
    "image": one('image = "debian:sid"', "image", '"debian:trixie"'),
    "option as package": one('packages = ["git", "-o=x"]', "packages[1]", "is not a package name"),
    "removal as package": one('packages = ["systemd-"]', "packages[0]", "is not a package name"),
    "setup with NUL": one('setup = "a\\u0000b"', "setup", "NUL"),
    "leading zero": one('ip = "192.168.083.5"', "ip", "is not an IPv4 address"),
    "group mac": one('mac = "01:00:00:00:00:01"', "mac", "group address"),
    "low cid": one("cid = 2", "cid", "3 to 4294967294"),
    "idle": (
        '[workspaces.web]\ntype = "vm"\nidle = { after = "soon", then = "sleep" }\n',
        (
            (3, "workspaces.web.idle.after", "is not a duration"),
            (3, "workspaces.web.idle.then", '"suspend" or "stop"'),
        ),
    ),
    "egress word": one('egress = "lan"', "egress", '"internet", "none", "all"'),
    "egress of a number": one("egress = 3", "egress", "must be a string or a list"),
    "egress word in a list": one('egress = ["none"]', "egress[0]", 'egress = "none"'),
    "egress address": one('egress = ["a.org", "1.2.3.4"]', "egress[1]", '"1.2.3.4/32"'),
    "egress network": one('egress = ["10.1.2.3/8"]', "egress[0]", '"10.0.0.0/8"'),
    "egress with a quote": one("egress = ['a\".org']", "egress[0]", "is not a destination"),
    "port": one('publish = ["70000:80"]', "publish[0]", "ports are 1 to 65535"),
    "port of a name": one('publish = ["localhost:1:2"]', "publish[0]", "is not an IPv4 address"),
    "variable": one('env = { "A=B" = "x" }', 'env."A=B"', "cannot name a variable"),
    "variable's value": one('env = { A = "x\\ny" }', "env.A", "line break"),
    "variable's number": one("env.A = 3", "env.A", "must be a string"),
    # Paths.
    "home root": one('home = "/"', "home", "is the whole host"),
    "home root in disguise": one('home = "/srv/.."', "home", "is the whole host"),
    "home in /etc": one('home = "/etc/x"', "home", "host's own system"),
    "home of another": one('home = "~bob/x"', "home", "another user's home"),
    "home of the homeless": (
        '[workspaces.web]\ntype = "vm"\nowner = "homeless"\nhome = "~/x"\n',
        ((4, "workspaces.web.home", "has none on this host"),),
    ),
    "mount of /": one('mounts = [{ source = "/", target = "/s" }]', "mounts[0].source", "is the whole host"),
    "mount of state": one('mounts = [{ source = "/var/lib/hutch/x", target = "/s" }]', "mounts[0].source", "own state"),
    "mount around state": one('mounts = [{ source = "/var/lib", target = "/s" }]', "mounts[0].source", "holds hutch's"),
    "mount of runtime": one(
        'mounts = [{ source = "/run/hutch/services", target = "/s" }]',
        "mounts[0].source",
        "own runtime directory /run/hutch",
    ),
    "mount around runtime": one('mounts = [{ source = "/run", target = "/s" }]', "mounts[0].source", "holds hutch's"),
    "tree in runtime": one('image = "rootfs:/run/hutch/x"', "image", "is in hutch's own runtime directory"),
    "mount of /proc": one('mounts = [{ source = "/proc/1", target = "/s" }]', "mounts[0].source", "kernel"),
    "mount of this file": one('mounts = [{ source = ".", target = "/s" }]', "mounts[0].source", "rewrite"),
    "mount with a colon": one('mounts = [{ source = "/a:b", target = "/s" }]', "mounts[0].source", "holds :"),
    "target relative": one('mounts = [{ source = "/a", target = "s" }]', "mounts[0].target", "is not absolute"),
    "target dotted": one('mounts = [{ source = "/a", target = "/s/../etc" }]', "mounts[0].target", 'write "/etc"'),
    "target doubled": one('mounts = [{ source = "/a", target = "//s" }]', "mounts[0].target", 'write "/s"'),
    "target of the system": one('mounts = [{ source = "/a", target = "/run/x" }]', "mounts[0].target", "guest's own"),
    "target of the home": one(
        'mounts = [{ source = "/a", target = "/home/dev" }]', "mounts[0].target", "hide the home"
    ),
    "target missing": one('mounts = [{ source = "/a" }]', "mounts[0].target", "is missing (where it is inside)"),
    "mount that is none": one('mounts = ["/a:/b"]', "mounts[0]", "must be a table"),
    "mount key": one(
        'mounts = [{ source = "/a", target = "/s", ro = true }]', "mounts[0].ro", "source, target, mode, readonly"
    ),
    "mode twice": one(
        'mounts = [{ source = "/a", target = "/s", mode = "readonly", readonly = true }]',
        "mounts[0].readonly",
        'says it twice: there is mode = "readonly" too (leave readonly out, which is the older word)',
    ),
    "mode that contradicts": one(
        'mounts = [{ source = "/a", target = "/s", readonly = false, mode = "readonly" }]',
        "mounts[0].readonly",
        "says it twice",
    ),
    "mode unknown": one(
        'mounts = [{ source = "/a", target = "/s", mode = "ro" }]',
        "mounts[0].mode",
        'is not one of the known values ("readonly" or "writable" or "private")',
    ),
    "protected path absolute": one('protect = ["/etc"]', "protect[0]", "does not begin in the shared directory"),
    "protected path outside": one('protect = ["a/../.."]', "protect[0]", "is not in the shared directory"),
    "protected path all": one('protect = ["."]', "protect[0]", "is not in the shared directory"),
    "protected path dotted": one('protect = ["./a/"]', "protect[0]", 'write "a"'),
    "protected path with a comma": one('protect = ["a,b"]', "protect[0]", "holds ,"),
    "target twice": lines(
        """
        [workspaces.web]
        type = "vm"
        mounts = [
          { source = "/a", target = "/s" },
          "wrong",
          { source = "/b", target = "/s" },
        ]
        """,
        (6, "workspaces.web.mounts[1]", "must be a table"),
        (7, "workspaces.web.mounts[2].target", "of another mount too"),
    ),
    "mounts as tables": lines(
        """
        [[workspaces.web.mounts]]
        source = "/a"
        target = "/s"
        [[workspaces.web.mounts]]
        source = "/"
        target = "/t"
        [workspaces.web]
        type = "vm"
        """,
        (6, "workspaces.web.mounts[1].source", "is the whole host"),
    ),
    # Keys.
    "key missing": one('authorized_keys = ["~/.ssh/none*.pub"]', "authorized_keys[0]", "matches no file"),
    "key damaged": one('authorized_keys = ["ssh-ed25519 AAAA"]', "authorized_keys[0]", "damaged"),
    "key with options": one(
        'authorized_keys = ["command=\\"x\\" ssh-ed25519 AAAA"]', "authorized_keys[0]", "holds options"
    ),
    "key of no .pub": one('authorized_keys = ["/etc/shadow"]', "authorized_keys[0]", "neither a public key nor a path"),
    # The network.
    "public subnet": ('[network]\nsubnet = "8.8.8.0/24"\n', ((2, "network.subnet", "is not a private network"),)),
    "host bits": ('[network]\nsubnet = "10.0.0.1/24"\n', ((2, "network.subnet", 'write "10.0.0.0/24"'),)),
    "wide subnet": ('[network]\nsubnet = "10.0.0.0/8"\n', ((2, "network.subnet", "/16 to /29"),)),
    "wide uplink": ('[network]\nuplink = "10.0.0.0/24"\n', ((2, "network.uplink", "must be /30"),)),
    "uplink in the subnet": ('[network]\nuplink = "192.168.83.4/30"\n', ((2, "network.uplink", "overlaps"),)),
    "no room for an uplink": ('[network]\nsubnet = "192.168.0.0/16"\n', ((2, "network.subnet", "no room"),)),
    "long bridge": ('[network]\nbridge = "hutch-bridge0"\n', ((2, "network.bridge", "1 to 12"),)),
    "bridge like a port": ('[network]\nbridge = "ve-web"\n', ((2, "network.bridge", "uses otherwise"),)),
    "ip outside": one(
        'ip = "10.0.0.5"', "ip", "is outside the subnet 192.168.83.0/24 (192.168.83.2 to 192.168.83.253)"
    ),
    "ip of the gateway": one('ip = "192.168.83.1"', "ip", "is the gateway"),
    "ip of the network": one('ip = "192.168.83.0"', "ip", "is the network itself"),
    "ip of all": one('ip = "192.168.83.255"', "ip", "is the broadcast address"),
    "mac of the builder": one('mac = "02:6e:27:10:a4:23"', "mac", "is kept for image builds"),
    "ip of the builder": one('ip = "192.168.83.254"', "ip", "kept for image builds"),
    # The network of an Incus server.
    "public subnet of a server": lines(
        """
        [engines.incus]
        subnet = "8.8.0.0/16"
        [workspaces.web]
        type = "container"
        engine = "incus"
        ip = "10.9.0.2"
        """,
        (3, "engines.incus.subnet", "is not a private network"),
    ),
    "subnet of a server in the network": (
        '[network]\nsubnet = "10.8.0.0/16"\n[engines.incus]\nsubnet = "10.8.3.0/24"\n',
        ((4, "engines.incus.subnet", "10.8.3.0/24 overlaps 10.8.0.0/16, which [network] has for its subnet"),),
    ),
    "subnet of a server around the uplink": (
        '[network]\nuplink = "10.8.0.0/30"\n[engines.incus]\nsubnet = "10.8.0.0/16"\n',
        ((4, "engines.incus.subnet", "overlaps 10.8.0.0/30, which [network] has for its uplink"),),
    ),
    "subnet of a server that leaves no uplink": (
        '[engines.incus]\nsubnet = "192.168.84.128/25"\n',
        ((2, "engines.incus.subnet", "overlaps 192.168.84.0/24"),),
    ),
    "network around a server's default": (
        '[network]\nsubnet = "10.83.8.0/24"\n[engines.incus]\nremote = "cluster"\n',
        ((3, "engines.incus.subnet", "10.83.0.0/16 overlaps 10.83.8.0/24"),),
    ),
    "network around the default of a server without a table": (
        '[network]\nsubnet = "10.83.8.0/24"\n[workspaces.web]\ntype = "container"\nengine = "incus"\n',
        ((2, "network.subnet", "10.83.8.0/24 overlaps 10.83.0.0/16, the default subnet of [engines.incus]"),),
    ),
    "ip outside of a server's subnet": (
        '[workspaces.web]\ntype = "container"\nengine = "incus"\nip = "192.168.83.9"\n',
        ((4, "workspaces.web.ip", "is outside the subnet 10.83.0.0/16 (10.83.0.2 to 10.83.255.253)"),),
    ),
    "ips of a server's own": lines(
        """
        [engines.incus]
        subnet = "10.9.0.0/24"
        [defaults]
        engine = "incus"
        type = "container"
        [workspaces.web]
        ip = "10.9.0.1"
        [workspaces.lab]
        ip = "10.9.0.254"
        """,
        (8, "workspaces.web.ip", "is the gateway (10.9.0.2 to 10.9.0.253)"),
        (10, "workspaces.lab.ip", "is kept for the server's DHCP"),
    ),
    "ip of a server on this host": one('ip = "10.83.0.9"', "ip", "is outside the subnet 192.168.83.0/24"),
    "ip twice on a server": two(
        'engine = "incus"\nip = "10.83.0.9"',
        'engine = "incus"\nip = "10.83.0.9"',
        (8, "workspaces.two.ip", "is also the ip of workspace one"),
    ),
    "mac twice on a server": two(
        'engine = "incus"\nmac = "02:00:00:00:00:0A"',
        'engine = "incus"\nmac = "02:00:00:00:00:0a"',
        (8, "workspaces.two.mac", "also the mac of workspace one"),
    ),
    "port twice in one of a server": (
        '[workspaces.web]\ntype = "container"\nengine = "incus"\npublish = ["80:80", "80:81"]\n',
        ((4, "workspaces.web.publish[1]", "is published twice"),),
    ),
    # Between workspaces.
    "ip twice": two(
        'ip = "192.168.83.9"', 'ip = "192.168.83.9"', (6, "workspaces.two.ip", "is also the ip of workspace one")
    ),
    "mac twice": two(
        'mac = "02:00:00:00:00:0A"',
        'mac = "02:00:00:00:00:0a"',
        (6, "workspaces.two.mac", "also the mac of workspace one"),
    ),
    "mac of a derived one": (
        '[workspaces.lab]\ntype = "vm"\nmac = "02:4b:5e:57:f6:eb"\n[workspaces.web]\ntype = "vm"\n',
        ((3, "workspaces.lab.mac", "workspace web, which derives it from its name"),),
    ),
    "cid of a derived one": (
        '[workspaces.web]\ntype = "container"\n[workspaces.lab]\ntype = "vm"\ncid = 4939451\n',
        ((5, "workspaces.lab.cid", "also the cid of workspace web"),),
    ),
    "home twice": two('home = "/srv/h"', 'home = "/srv/x/../h"', (6, "workspaces.two.home", "home of workspace one")),
    "home in a home": two('home = "/srv/h"', 'home = "/srv/h/x"', (6, "workspaces.two.home", "overlaps the home")),
    "port twice": two(
        'publish = ["80:80"]',
        'publish = ["81:80", "127.0.0.1:80:80"]',
        (6, "workspaces.two.publish[1]", "workspace one"),
    ),
    "port twice in one": one('publish = ["80:80", "80:81"]', "publish[1]", "is published twice"),
    # [defaults]: said once, reported once.
    "default": (
        '[defaults]\nmemory = "big"\nuzer = "x"\n[workspaces.a]\ntype = "vm"\n[workspaces.b]\ntype = "vm"\n',
        ((2, "defaults.memory", "is not a size"), (3, "defaults.uzer", 'did you mean "user"?')),
    ),
    "default without workspaces": ("[defaults]\nvcpus = 0\n", ((2, "defaults.vcpus", "out of range"),)),
    "default ip twice": (
        '[defaults]\nip = "192.168.83.9"\ntype = "vm"\n[workspaces.a]\n[workspaces.b]\n[workspaces.c]\n',
        ((2, "defaults.ip", "is also the ip of workspace a"),),
    ),
    "default mount": lines(
        """
        [defaults]
        type = "vm"
        mounts = [
          1,
          { source = "/var/lib", target = "/s" }]
        [workspaces.a]
        [workspaces.b]
        """,
        (5, "defaults.mounts[0]", "must be a table"),
        (6, "defaults.mounts[1].source", "holds hutch's own state"),
    ),
    "default type": ('[defaults]\ntype = "pod"\n[workspaces.a]\n', ((2, "defaults.type", '"container" or "vm"'),)),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_problem_has_its_line_key_and_reason(name: str, problems: Callable[..., tuple[Problem, ...]]) -> None:
    text, expected = WRONG[name]
    found = problems(text)
    shown = "\n".join(map(str, found))
    assert [problem.line for problem in found] == [line for line, _, _ in expected], shown
    for problem, (_, key, words) in zip(found, expected, strict=True):
        assert problem.file.endswith("/project/hutch.toml")
        assert problem.key == key, shown
        assert words in str(problem), shown
        assert "\n" not in str(problem)
