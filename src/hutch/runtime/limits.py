"""A Launch's limits as cgroup control files. Pure, and its imports stay few: the supervisor uses it."""

from __future__ import annotations

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Mapping

CPU_PERIOD = 100_000  # microseconds, for cpu.max


def control_files(limits: Mapping[str, int | None], *, is_renewal: bool = False) -> dict[str, str]:
    """What to write into which file of the workspace's cgroup, for the `limits` of a Launch. A renewal takes back what
    is no longer limited."""
    files = {"cpu.weight": "100"}  # however many processes it has, it is one among the workspaces
    if is_renewal:
        files |= {"cpu.max": "max", "memory.max": "max", "memory.swap.max": "max", "pids.max": "max"}
    if cpus := limits["cpus"]:
        files["cpu.max"] = f"{cpus * CPU_PERIOD} {CPU_PERIOD}"
    if memory := limits["memory"]:
        files["memory.max"] = str(memory)
        files["memory.swap.max"] = "0"  # or the guest would go on in the host's swap; not every kernel has the file
    if tasks := limits["tasks"]:
        files["pids.max"] = str(tasks)
    return files
