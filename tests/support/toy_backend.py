"""A backend that only tests have: a shell that says that it is ready, and sleeps. It shows what a new one has to bring:
this file, and a line of the registry."""

from __future__ import annotations

from collections.abc import Iterable

from hutch.backends.launch import File, Launch, Limits, Surroundings
from hutch.backends.port import port_of
from hutch.backends.traits import Traits
from hutch.errors import Problem
from hutch.spec.model import WorkspaceSpec

TRAITS = Traits(name="toy", rank=1, program="sh", console="console-getty.service")
DIALECT = "begin() { make_ready; connect; note shown yes; launch; }\n"
SCRIPT = "trap 'exit 0' TERM; systemd-notify --ready; echo a toy is ready; sleep infinity & wait"


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """What a toy cannot do."""
    if workspace.owner in (0, "root"):
        yield Problem("root cannot own a workspace's home", f"{prefix}.owner", hint="name an ordinary user")
    if workspace.nesting:
        yield Problem("a toy holds nothing", f"{prefix}.nesting", hint="leave it out")


def launch(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
    """Everything that makes the toy run. Nothing inside takes the inner end of its port, which goes with the outer."""
    layout, runtime = host.layout, str(host.layout.runtime(name))
    port = port_of(name, workspace, layout, host.network)
    return Launch(
        workspace=name,
        backend=TRAITS.name,
        network_namespace=str(layout.namespace_path),
        cgroup=layout.cgroup(name),
        runtime=runtime,
        dialect=DIALECT,
        directories=(),
        files=(File(f"{runtime}/port", port.render_batch()),),
        prepare=((port.make(),),),
        connect=port.connect(f"{runtime}/port"),
        argv=("sh", "-c", SCRIPT),
        cleanup=port.cleanup(),
        limits=Limits(memory=workspace.memory),
        unit=layout.unit(name),
    )
