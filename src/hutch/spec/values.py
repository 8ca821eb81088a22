"""The single words and numbers of hutch.toml: one field type for each kind.

They know nothing of other keys, of the host or of the file.
"""

from __future__ import annotations

import ipaddress
import posixpath
from typing import ClassVar

from hutch.frozen import dataclass
from hutch.spec.field_types import (
    FieldType,
    Invalid,
    JsonSchema,
    ipv4_address,
    ipv4_network,
    matches,
    path_text,
    text,
    whole_number,
    word,
)
from hutch.spec.names import NAME, UID_FIRST

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LARGEST_SIZE = 2**50
NOBODY = 65534
PRIVATE_NETWORKS = tuple(
    ipaddress.IPv4Network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
SYSTEM_USERS = frozenset(
    """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc gnats nobody sshd
    messagebus dbus polkitd tcpdump uuidd syslog ntp dnsmasq adm shutdown halt operator ftp tss landscape
    pollinate
    """.split()
)
NAME_HINT = "1 to 32 lower-case letters, digits and inner hyphens"


@dataclass(frozen=True)
class WholeNumber(FieldType):
    lowest: int
    highest: int

    def parse(self, value: object) -> int:
        hint = f"{self.lowest} to {self.highest}"
        number = whole_number(value, hint)
        if not self.lowest <= number <= self.highest:
            raise Invalid("is out of range", hint)
        return number

    def json_schema(self) -> JsonSchema:
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}


class ContextId(WholeNumber):
    """A vsock context id: 0 to 2 are the hypervisor's and the host's, 2^32-1 is any."""

    def __init__(self) -> None:
        super().__init__(3, 2**32 - 2)


def render_size(value: int) -> str:
    """Bytes, in the largest unit that divides them."""
    unit = next((unit for unit in reversed(UNITS) if value and value % UNITS[unit] == 0), "")
    return f"{value // UNITS[unit]}{unit}iB" if unit else str(value)


@dataclass(frozen=True)
class Size(FieldType):
    minimum: int = 0
    pattern: ClassVar[str] = r"([0-9]{1,12})([KMGT])(iB)?"
    form: ClassVar[str] = 'a size such as "512MiB", "4GiB" or "8G"'

    def parse(self, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            raise Invalid("has no unit", f"{self.form}; units are binary")
        match = matches(self.pattern, text(value, self.form))
        if not match:
            raise Invalid("is not a size", self.form)
        size = int(match[1]) * UNITS[match[2]]
        if size < self.minimum:
            raise Invalid("is too small", f"at least {self.minimum >> 20}MiB")
        if size > LARGEST_SIZE:
            raise Invalid("is too large", "at most 1024TiB")
        return size


class Address(FieldType):
    pattern = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
    form = 'four numbers such as "192.168.83.10"'

    def parse(self, value: object) -> str:
        return ipv4_address(text(value, self.form), self.form)


@dataclass(frozen=True)
class AddressNetwork(FieldType):
    widest: int
    narrowest: int
    pattern: ClassVar[str] = r"[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}"

    def parse(self, value: object) -> str:
        hint = f'a private IPv4 network such as "192.168.83.0/{max(self.widest, min(24, self.narrowest))}"'
        network = ipv4_network(text(value, hint), hint)
        if not self.widest <= network.prefixlen <= self.narrowest:
            only = f"/{self.widest}" if self.widest == self.narrowest else f"/{self.widest} to /{self.narrowest}"
            raise Invalid(f"has a prefix of /{network.prefixlen}", f"the prefix must be {only}")
        if not any(network.subnet_of(private) for private in PRIVATE_NETWORKS):
            raise Invalid("is not a private network", f"inside {', '.join(map(str, PRIVATE_NETWORKS))}")
        return str(network)


class HardwareAddress(FieldType):
    pattern = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"
    form = 'six bytes such as "02:4b:5e:57:f6:eb"'

    def parse(self, value: object) -> str:
        mac = word(value, self.pattern, "is not a MAC address", self.form).lower()
        if int(mac[:2], 16) & 1:
            raise Invalid("is a group address", "the first byte must be even; 02 is the usual choice")
        if mac == "00:00:00:00:00:00":
            raise Invalid("is the empty address", self.form)
        return mac


class InterfaceName(FieldType):
    """A bridge's name. It must differ from all other names in the router's namespace, sysctl's words included."""

    pattern = r"[a-z0-9][a-z0-9-]{0,11}"
    form = "1 to 12 lower-case letters, digits and hyphens"

    def parse(self, value: object) -> str:
        name = word(value, self.pattern, "cannot name a bridge", self.form)
        if name in ("lo", "up0", "all", "default") or name.startswith(("ve-", "vm-")):
            raise Invalid("is a name that hutch or the kernel uses otherwise", 'another name, such as "hutch0"')
        return name


class LoginName(FieldType):
    pattern = r"[a-z_][a-z0-9_-]{0,30}"
    form = 'a name such as "dev": up to 31 lower-case letters, digits, _ and -, no digit first'

    def parse(self, value: object) -> str:
        name = word(value, self.pattern, "cannot be a login name", self.form)
        if name in SYSTEM_USERS or name.startswith(("_", "systemd-")):
            raise Invalid("is the name of a system account", 'another name, such as "dev"')
        return name


class HostUser(FieldType):
    """A user of the host, by name or uid. Whether the name exists is seen when the file is loaded."""

    form = 'a user name such as "alice" or a uid such as 1000'

    def parse(self, value: object) -> int | str:
        if isinstance(value, str):
            name = text(value, self.form)
            if matches(r"[0-9]+", name):
                raise Invalid("is a number in quotes", "a uid is written without them")
            if not matches(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", name):
                raise Invalid("cannot be a user name", self.form)
            if name == "root":
                raise Invalid("is root", "a workspace's home belongs to an ordinary user")
            return name
        uid = whole_number(value, self.form)
        if uid == 0:
            raise Invalid("is root", "a workspace's home belongs to an ordinary user")
        if uid == NOBODY or not 0 < uid < UID_FIRST:
            raise Invalid("cannot be an owner's uid", f"1 to {UID_FIRST - 1}, but not {NOBODY} (nobody)")
        return uid

    def json_schema(self) -> JsonSchema:
        return {"type": ["string", "integer"]}


class Sharer(FieldType):
    """A user of the host, or a group behind an @. Whether there is one is seen when the file is loaded."""

    pattern = "@?[A-Za-z_][A-Za-z0-9_.-]{0,63}"
    form = 'a user name such as "alice", or "@" and a group of the host'
    wrong = "is neither a user name nor a group"


class KitName(FieldType):
    pattern = NAME
    form = NAME_HINT
    wrong = "cannot name a kit"


class PackageName(FieldType):
    """The name of a package. A final hyphen would ask apt to remove the package."""

    pattern = r"[a-z0-9][a-z0-9+.-]{0,126}[a-z0-9+]"
    form = 'a name such as "git" or "libstdc++6": lower-case letters, digits, + - and .'
    wrong = "is not a package name"


class SetupScript(FieldType):
    form = "a shell script of at most 64 KiB"

    def parse(self, value: object) -> str:
        if not isinstance(value, str):
            raise Invalid("must be a string", self.form)
        if "\0" in value:
            raise Invalid("holds a NUL character", self.form)
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise Invalid("is not valid Unicode", self.form) from None
        if size > 2**16:
            raise Invalid("is too long", self.form)
        return value


class ShellPath(FieldType):
    pattern = r"(/[A-Za-z0-9_.+-]+)+"
    form = 'an absolute path such as "/bin/bash"'

    def parse(self, value: object) -> str:
        path = word(value, self.pattern, "is not the path of a shell", self.form)
        if posixpath.normpath(path) != path or len(path) > 255:
            raise Invalid("is not a plain path", self.form)
        return path


class HostPath(FieldType):
    """A directory or a file of the host: "~", "~/x", absolute, or relative to the file. Loading makes it absolute."""

    form = 'a path such as "~/src", "/srv/data" or "./here"'

    def parse(self, value: object) -> str:
        path = path_text(value, self.form)
        if path.startswith("~") and path != "~" and not path.startswith("~/"):
            raise Invalid("names another user's home", 'write "~" for the owner\'s home, or an absolute path')
        if path.startswith("/") and not posixpath.normpath(path).strip("/"):
            raise Invalid("is the whole host", self.form)
        return path


class TargetPath(FieldType):
    """A directory inside, where a mount must not replace the kernel's or the guest's own directories."""

    kernels = ("/proc", "/sys", "/dev", "/run")
    systems = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot")
    pattern = r"(/[^/]+)+"
    form = 'an absolute path such as "/src"'

    def parse(self, value: object) -> str:
        path = path_text(value, self.form)
        if not path.startswith("/"):
            raise Invalid("is not absolute", self.form)
        plain_path = "/" + posixpath.normpath(path).lstrip("/")
        if plain_path == "/":
            raise Invalid("is the root directory", self.form)
        if plain_path != path:
            raise Invalid("is not a plain path", f'write "{plain_path}"')
        if path in self.systems or "/" + path.split("/")[1] in self.kernels:
            raise Invalid("is a directory of the guest's own system", 'another place, such as "/src"')
        return path


class InnerPath(FieldType):
    """A path in a shared directory, whichever that is."""

    form = 'a path such as "Makefile" or ".github/workflows"'

    def parse(self, value: object) -> str:
        path = path_text(value, self.form)
        if path.startswith(("/", "~")):
            raise Invalid("does not begin in the shared directory", self.form)
        plain_path = posixpath.normpath(path)
        if plain_path == "." or plain_path.split("/")[0] == "..":
            raise Invalid("is not in the shared directory", self.form)
        if plain_path != path:
            raise Invalid("is not a plain path", f'write "{plain_path}"')
        return path


class ImageReference(FieldType):
    distributions = ("debian:trixie", "debian:bookworm", "ubuntu:noble")
    pattern = r"(debian:trixie|debian:bookworm|ubuntu:noble|oci:.+|rootfs:.+|nix:.+)"
    form = ", ".join(f'"{name}"' for name in distributions) + ', "oci:REF", "rootfs:PATH" or "nix:PATH"'

    def parse(self, value: object) -> str:
        image = text(value, self.form)
        if image in self.distributions:
            return image
        scheme, _, rest = image.partition(":")
        if scheme in ("rootfs", "nix"):
            return f"{scheme}:{HostPath().parse(rest)}"
        if scheme != "oci":
            raise Invalid("is not an image that hutch knows", self.form)
        if not matches(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}", rest):
            raise Invalid("is not an OCI reference", 'such as "oci:docker.io/library/debian:trixie"')
        return image


class Duration(FieldType):
    pattern = r"[1-9][0-9]{0,5}(s|min|h|d)"
    form = 'a number and s, min, h or d, such as "30min"'
    wrong = "is not a duration"
    units: ClassVar[dict[str, int]] = {"s": 1, "min": 60, "h": 3600, "d": 86400}

    def seconds(self, value: object) -> int:
        """The seconds of a duration as it is written. Raises Invalid."""
        duration = str(self.parse(value))
        unit = duration.lstrip("0123456789")
        return int(duration.removesuffix(unit)) * self.units[unit]


class Remote(FieldType):
    """A name in the Incus client's configuration."""

    pattern = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"

    def parse(self, value: object) -> str:
        return word(value, self.pattern, "is not a name", "letters, digits, dots, - and _")


class IncusTarget(FieldType):
    """An Incus member, or a group behind an @."""

    pattern = r"@?[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
    form = '"auto", a member, or "@" and a group'
    wrong = "is neither a member nor a group"
