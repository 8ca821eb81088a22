"""A port on the bridge: a veth pair or a TAP device, made down in the router namespace, raised only when its filter is
seen there."""

from __future__ import annotations

from hutch.backends.launch import Step
from hutch.frozen import dataclass
from hutch.spec import names
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout


@dataclass(frozen=True)
class Port:
    """The port of one workspace. `outer` is the bridge's end, `inner` the one that a container gets; a virtual machine
    gets a descriptor of the outer one, and there is no other."""

    outer: str
    inner: str
    mac: str
    ip: str
    bridge: str
    table: str

    def make(self) -> Step:
        """Make the devices: down, and on no bridge yet, so they may be made before the network is reconciled."""
        if not self.inner:
            return Step(("ip", "tuntap", "add", "dev", self.outer, "mode", "tap"), "make the port")
        pair = (self.outer, "type", "veth", "peer", "name", self.inner, "address", self.mac)
        return Step(("ip", "link", "add", *pair), "make the port")

    def render_batch(self) -> str:
        """Input for `ip -batch`. Learning and flooding are off: who lives on this bridge is known."""
        lines = [
            f"link set {self.outer} master {self.bridge}",
            f"link set {self.outer} type bridge_slave isolated on learning off flood off mcast_flood off",
            f"neigh replace {self.ip} lladdr {self.mac} dev {self.bridge} nud permanent",
        ]
        return "\n".join(lines) + "\n"

    def connect(self, batch: str) -> tuple[tuple[Step, ...], ...]:
        """Stages of steps inside the router namespace, one after the other; `batch` is the path of the rendered batch.
        The port is raised only when its filter has been seen."""
        bound = f"{{ {self.outer} . {self.mac} . {self.ip} }}"
        return (
            (
                Step(("nft", "get", "element", "bridge", self.table, "bound", bound), "see the port's filter in place"),
                Step(("ip", "-batch", batch), "put the port on the bridge"),
            ),
            (
                Step(("ip", "link", "set", self.outer, "up"), "raise the port"),
                Step(("bridge", "fdb", "replace", self.mac, "dev", self.outer, "master", "static"), "pin its MAC"),
            ),
        )

    def cleanup(self) -> tuple[Step, ...]:
        return (
            Step(("ip", "link", "delete", self.outer), "remove the port", may_fail=True),
            Step(("ip", "neigh", "delete", self.ip, "dev", self.bridge), "forget its address", may_fail=True),
        )


def port_of(name: str, workspace: WorkspaceSpec, layout: Layout, network: Network) -> Port:
    """The port of a workspace."""
    assert workspace.mac is not None and workspace.ip is not None
    return Port(
        outer=names.port(name, workspace.type),
        inner="" if workspace.type == "vm" else names.interface("vi", name),
        mac=workspace.mac,
        ip=workspace.ip,
        bridge=network.bridge,
        table=layout.table,
    )
