"""Changes that need no restart, put in force in a workspace that runs.

Each is done again by the next `up` until it has worked: a record takes a key for booted only then. The Launch is made
anew first, so that a guest which reboots comes back with what is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch import guest
from hutch.apply.launching import make_launch
from hutch.apply.starting import unlimited_home
from hutch.backends import is_machine
from hutch.engines import engine_of, observe_all
from hutch.errors import HutchError
from hutch.guest.credentials import CONTEXT
from hutch.plan.actions import Wanted
from hutch.plan.planner import differences, with_live_changes
from hutch.runtime import control
from hutch.runtime.observe import observe, observe_facts
from hutch.spec.record import Booted, Observation, Record, is_local
from hutch.spec.sharing import RETIRED
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
INSIDE = {"env", "authorized_keys", "share_with"}
RENEWED = {"vcpus", "memory", "disk", "mounts", *INSIDE}
TOLD = {"egress", "learn", "mounts"}
"""The keys of which the guest's context file tells."""
FORGET = 'printf "%s\\n" "$CONTEXT" | systemd-tmpfiles --create -; resolvectl flush-caches'
"""Writes the context file, and has the guest ask for names again: answers that it got under another policy open nothing
under this one."""


def apply_live(
    layout: Layout, network: Network, records: dict[str, Record], names: Iterable[str], listen: Listener
) -> dict[str, str]:
    """Put changes that need no restart in force, in workspaces that run. The caller holds the lock and has reconciled
    the host. Returns name -> why not all of them."""
    failures = {}
    seen = observe_all(layout, {name: records[name] for name in names})
    for name, now in seen.items():
        if records[name].booted is None or now.state != "running":
            continue
        record = records[name] = records[name].before_live_change()
        write_record(layout, record)
        try:
            change = _Live(layout, network, record, now) if is_local(record.wanted) else _LiveElsewhere(layout, record)
            failed = change.apply()
        except HutchError as error:
            failures[name] = error.brief
            continue
        done = change.in_force(failed)
        if done != record.booted:
            records[name] = replace(record, booted=done)
            write_record(layout, records[name])
        for text in change.warnings():
            listen(name, "warning", text)
        if failed:
            failures[name] = "; ".join(f"{key}: {text}" for key, text in sorted(failed.items()))
        else:
            listen(name, "changed", "without a restart")
    drop_retired_key(layout, records)
    return failures


def drop_retired_key(layout: Layout, records: Mapping[str, Record]) -> None:
    """Forget root's retired key for what it does not open any more."""
    if layout.key(RETIRED).exists():
        # Spares the start-up of `hutch up` where there is none.
        from hutch.apply.reconcile import reconcile_trust

        reconcile_trust(layout, records)


class _Change:
    """One workspace's change, from what is booted to what is wanted."""

    def __init__(self, layout: Layout, record: Record) -> None:
        assert record.booted is not None
        self.layout, self.record, self.booted = layout, record, record.booted
        old, new = Wanted(self.booted.workspace, self.booted.image), Wanted(record.wanted, record.image)
        self.target = with_live_changes(old, new, self.booted.memory).workspace
        self.keys = {change.key for change in differences(old, Wanted(self.target, self.booted.image))}

    def in_force(self, failed: Iterable[str]) -> Booted:
        """The settings that are in force, but for the keys that failed."""
        unchanged = {key: getattr(self.booted.workspace, key) for key in failed}
        return replace(self.booted, workspace=replace(self.target, **unchanged))


class _LiveElsewhere(_Change):
    """The change of a workspace that this host does not run: its engine makes it."""

    def apply(self) -> dict[str, str]:
        return engine_of(self.layout, self.record).change(replace(self.record, wanted=self.target))

    def warnings(self) -> Iterable[str]:
        return ()


class _Live(_Change):
    """The change of a workspace of this host."""

    def __init__(self, layout: Layout, network: Network, record: Record, now: Observation) -> None:
        super().__init__(layout, record)
        self.network, self.now = network, now
        self.launch = self._make_launch()

    def warnings(self) -> Iterable[str]:
        """The limits that this host does not enforce, in words."""
        if self.keys & LIMITS and (text := control.unlimited_launch(self.layout, self.launch)):
            yield text
        if "disk" in self.keys and (text := unlimited_home(self.layout, self.record)):
            yield text

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

    def apply(self) -> dict[str, str]:
        """Apply the change; returns key -> why it is not in force."""
        failures: dict[str, str] = {}
        for keys, action in self._actions():
            if concerned := self.keys & keys:
                try:
                    failures |= {key: why for key, why in action().items() if key in concerned}
                except HutchError as error:
                    failures |= dict.fromkeys(concerned, error.brief)
        return failures

    def _actions(self) -> list[tuple[set[str], Action]]:
        """The actions in their order, each with the keys that it puts in force. Keys of the host's own side have been
        reconciled; those that have no effect on this type need nothing."""
        return [
            (RENEWED, lambda: control.renew(self.layout, self.launch)),
            (INSIDE, self._refresh_guest),
            (TOLD, self._tell),
        ]

    def _tell(self) -> dict[str, str]:
        """Tell the guest of what it may reach and shares. Whether it does as it is told is its own business; a guest
        that reboots has the text from the Launch."""
        if not self.keys & RENEWED:
            with suppress(HutchError):  # one that an older hutch started
                control.renew(self.layout, self.launch)
        self.refresh_context()
        return {}

    def refresh_context(self) -> None:
        # Spares the start-up of `hutch up` where the guest need not be told.
        from hutch.access.inside import told_inside

        text = next(line for line in self._tmpfiles().splitlines() if line.split(" ")[1] == CONTEXT)
        told_inside(self.layout, self.record, ["sh", "-c", FORGET], seconds=GUEST_SECONDS, env={"CONTEXT": text})

    def _tmpfiles(self) -> str:
        return next(file.content for file in self.launch.files if file.path.endswith("/tmpfiles.extra"))

    def _refresh_guest(self) -> dict[str, str]:
        # Spares the start-up of `hutch up` where the guest need not be told.
        from hutch.access.inside import told_inside

        command = ["sh", "-c", IDENTITY.read_text(encoding="utf-8")]
        told = {"IDENTITY": self._tmpfiles()}
        code = told_inside(self.layout, self.record, command, seconds=GUEST_SECONDS, env=told)
        if code != 0:
            how = f"within {GUEST_SECONDS:g} s" if code is None else f"(exit code {code})"
            raise HutchError(f"the guest does not take it {how}: its systemd-tmpfiles, or sshd's reload")
        return {}


def refresh_context(layout: Layout, network: Network, record: Record) -> None:
    """Have the context file in a guest that runs say what people have decided. The caller holds the lock."""
    if record.booted is not None:
        change = _Live(layout, network, record, observe(layout, record.name))
        control.renew(layout, change.launch)
        change.refresh_context()
