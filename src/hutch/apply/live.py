"""Changes that need no restart, put in force in a workspace that runs.

Each is done again by the next `up` until it has worked: a record takes a key for booted only then. The Launch is made
anew first, so that a guest which reboots comes back with what is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch import guest
from hutch.apply.launching import make_launch
from hutch.apply.starting import unlimited_home
from hutch.backends import is_machine
from hutch.errors import HutchError
from hutch.plan.actions import Wanted
from hutch.plan.planner import differences, with_live_changes
from hutch.runtime import control
from hutch.runtime.observe import observe, observe_facts
from hutch.spec.record import Booted, Observation, Record
from hutch.state import write_record

if TYPE_CHECKING:
    from hutch.backends.launch import Launch
    from hutch.runtime.control import Listener
    from hutch.spec.model import Network
    from hutch.spec.names import Layout

Action = Callable[[], dict[str, str]]
"""A step that returns key -> why it could not be done; HutchError when nothing could."""

LIMITS = {"vcpus", "memory"}
GUEST_SECONDS = 15.0  # for a guest to carry out a command; without KVM, a login alone takes one of them
IDENTITY = Path(guest.__file__).with_name("identity.sh")


def apply_live(
    layout: Layout, network: Network, records: dict[str, Record], names: Iterable[str], listen: Listener
) -> dict[str, str]:
    """Put changes that need no restart in force, in workspaces that run. The caller holds the lock and has reconciled
    the host. Returns name -> why not all of them."""
    failures = {}
    for name in names:
        record, now = records[name], observe(layout, name)
        if record.booted is None or now.state != "running":
            continue
        try:
            change = _Live(layout, network, record, now)
        except HutchError as error:
            failures[name] = error.brief
            continue
        done, why = change.apply()
        if done != record.booted:
            records[name] = replace(record, booted=done)
            write_record(layout, records[name])
        if change.keys & LIMITS and (warning := control.unlimited_launch(layout, change.launch)):
            listen(name, "warning", warning)
        if "disk" in change.keys and (text := unlimited_home(layout, record)):
            listen(name, "warning", text)
        if why:
            failures[name] = why
        else:
            listen(name, "changed", "without a restart")
    return failures


class _Live:
    """One workspace's change, from what is booted to what is wanted."""

    def __init__(self, layout: Layout, network: Network, record: Record, now: Observation) -> None:
        assert record.booted is not None
        self.layout, self.network, self.record, self.now = layout, network, record, now
        self.booted = record.booted
        old, new = Wanted(self.booted.workspace, self.booted.image), Wanted(record.wanted, record.image)
        self.target = with_live_changes(old, new, self.booted.memory).workspace
        self.keys = {change.key for change in differences(old, Wanted(self.target, self.booted.image))}
        self.launch = self._make_launch()

    def _make_launch(self) -> Launch:
        accelerator, wanted = None, self.target
        if is_machine(self.target):
            # Spares the start-up of `hutch up` for containers.
            from hutch.apply.hardware import accelerator_of

            accelerator = accelerator_of(self.layout, self.booted.image)
            # Another hypervisor may have been installed since, which "auto" would choose at the next start.
            facts: dict[str, Any] = {**observe_facts(self.layout, self.record.name)}
            wanted = replace(wanted, hypervisor=facts.get("hypervisor", wanted.hypervisor))
        as_booted = replace(self.record, wanted=wanted, image=self.booted.image)
        return make_launch(self.layout, as_booted, self.network, accelerator, ceiling=self.booted.memory)

    def apply(self) -> tuple[Booted, str]:
        """Apply the change; returns the settings in force by now, and why others are not."""
        failures: dict[str, str] = {}
        for keys, action in self._actions():
            if concerned := self.keys & keys:
                try:
                    failures |= {key: why for key, why in action().items() if key in concerned}
                except HutchError as error:
                    failures |= dict.fromkeys(concerned, error.brief)
        unchanged = {key: getattr(self.booted.workspace, key) for key in failures}
        why = "; ".join(f"{key}: {text}" for key, text in sorted(failures.items()))
        return replace(self.booted, workspace=replace(self.target, **unchanged)), why

    def _actions(self) -> list[tuple[set[str], Action]]:
        """The actions in their order, each with the keys that it puts in force. Keys of the host's own side have been
        reconciled; those that have no effect on this type need nothing."""
        renewed = {"vcpus", "memory", "disk", "mounts", "env", "authorized_keys"}
        return [
            (renewed, lambda: control.renew(self.layout, self.launch)),
            ({"env", "authorized_keys"}, self._refresh_guest),
            ({"egress", "learn"}, self._forget_names),
        ]

    def _forget_names(self) -> dict[str, str]:
        """Have the guest ask again: answers that it got under another policy open nothing under this one. Whether the
        guest does as it is told is its own business."""
        # Spares the start-up of `hutch up` where the guest need not be told.
        from hutch.access.inside import told_inside

        told_inside(self.layout, self.record, ["resolvectl", "flush-caches"], seconds=GUEST_SECONDS)
        return {}

    def _refresh_guest(self) -> dict[str, str]:
        # Spares the start-up of `hutch up` where the guest need not be told.
        from hutch.access.inside import told_inside

        text = next(file.content for file in self.launch.files if file.path.endswith("/tmpfiles.extra"))
        command = ["sh", "-c", IDENTITY.read_text(encoding="utf-8"), "sh", *text.splitlines()]
        code = told_inside(self.layout, self.record, command, seconds=GUEST_SECONDS)
        if code != 0:
            how = f"within {GUEST_SECONDS:g} s" if code is None else f"(exit code {code})"
            raise HutchError(f"the guest does not take it {how}: its systemd-tmpfiles, or sshd's reload")
        return {}
