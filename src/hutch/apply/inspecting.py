"""Differences between the host and the records: seen and named here, left alone, and put right by the next `up`.

It compares as reconcile does, by the same functions, with what was in force before the plan: what a changed hutch.toml
is about to change is no damage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field, replace

from hutch.apply.membership import own_of
from hutch.apply.serving import endpoints_of, in_force, known, missing_services, own_keys, peers_of
from hutch.apply.starting import unlimited_home
from hutch.apply.units import wanted_host_units
from hutch.backends import is_machine
from hutch.engines import elsewhere
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.identity import hosts_file, ssh
from hutch.host.network import router
from hutch.host.network.firewall import Endpoint
from hutch.host.network.foreign_firewalls import check_foreign_firewalls
from hutch.host.network.listening import find_deaf
from hutch.host.services.units import awaits_a_start, different_units
from hutch.host.storage import shares
from hutch.host.storage.mountinfo import observe_mountinfo, parse_mountinfo
from hutch.images.record import whole_image
from hutch.plan.actions import Change, Plan, Repair, Wanted
from hutch.run import Gathering
from hutch.runtime.control import is_forgotten, unlimited_launch
from hutch.runtime.observe import observe, read_launch
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Record, has_processes, present
from hutch.spec.sharing import holder_words

DELETED = "//deleted"
"""The suffix that the kernel puts behind the directory of a mount that has been deleted."""


@dataclass(frozen=True)
class Findings:
    """Findings: `repairs` cost nobody anything; `broken` are, by workspace, parts that only a restart gives back;
    `lost` is, in words, what `up` cannot bring back; `obstacles` are stops by others' firewalls, theirs to let pass;
    `deaf` are, by workspace, programs of the host whose ports it has."""

    repairs: tuple[Repair, ...] = ()
    broken: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    obstacles: tuple[str, ...] = ()
    deaf: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def inspect(
    layout: Layout, applied: Network | None, records: Mapping[str, Record], looking: Gathering | None = None
) -> Findings:
    """Compare the host with the records, by a look that has been begun or by a new one. Nothing can be damaged before a
    first `up` has set the network up. Raises HutchError when the host cannot be looked at."""
    named = known(layout, records if applied is not None else elsewhere(records))
    lost = lost_keys(layout, named)
    trust = tuple(wrong_trust(layout, named, lost)) if named else ()
    serving = in_force(layout, records) if applied is not None else {}
    if applied is None or not serving:
        return Findings(trust, lost=lost)
    host, facts = router.observe_all(layout, applied, looking)
    there: tuple[Repair, ...] = ()
    if not is_bare(layout, serving):
        there = (*wrong_network(layout, applied, serving, host, facts), *wrong_homes(layout, serving))
    repairs = (*there, *trust)
    lost |= forgotten_workspaces(layout, serving)
    host_end, _ = names.uplink_addresses(applied.uplink)
    obstacles = tuple(map(str, check_foreign_firewalls(facts.host_listing, layout.uplink_host, host_end)))
    return Findings(repairs, broken_workspaces(layout, serving, facts.links), lost, obstacles, find_deaf(serving))


def is_bare(layout: Layout, serving: Iterable[str]) -> bool:
    """Whether the parts of the host that only running workspaces need have not been made: systemd has them made when it
    starts the first of them, so their absence after a boot without any is no damage."""
    idle = not any(has_processes(observe(layout, name).state) for name in serving)
    return awaits_a_start(layout.reconciled) and idle


def wrong_network(
    layout: Layout,
    applied: Network,
    serving: Mapping[str, Record],
    host: router.HostNetwork,
    facts: router.RouterFacts,
) -> Iterator[Repair]:
    """Repairs of the router, the ports on it, the resolvers and the settings of the kernel. After an `up` that was cut
    short, rules are as it found them or as it made them. Neither is damage: the next one makes its changes again."""
    endpoints = endpoints_of(serving, applied)
    pending = {name: record for name, record in serving.items() if record.effective != record.wanted}
    running = {name: r for name, r in pending.items() if has_processes(observe(layout, name).state)}
    as_booted = {name: replace(record, wanted=record.effective) for name, record in running.items()}
    booted = endpoints_of({**serving, **as_booted}, applied)

    def differences(endpoints: tuple[Endpoint, ...]) -> Mapping[router.Part, str]:
        rules = router.wanted_rules(layout, applied, endpoints, host)
        return router.differences(layout, applied, rules, host, facts)

    wrong, missing = differences(endpoints), missing_services(layout, applied, endpoints)
    if booted != endpoints:
        before = differences(booted), missing_services(layout, applied, booted)
        wrong = {part: found for part, found in wrong.items() if part in before[0]}
        missing = [found for found in missing if found in before[1]]
    if "router" in wrong:  # all other parts went with it
        yield Repair("router", wrong["router"])
        return
    for part, found in wrong.items():
        yield Repair(part, found)
    if "bridge" not in wrong:
        for name, found in router.loose_ports(applied, endpoints, facts).items():
            if name in serving and observe(layout, name).state == "running":
                yield Repair("port", found, name)
    for found in missing:
        yield Repair("service", found)
    for unit in different_units(wanted_host_units(layout, applied, serving)):
        yield Repair("unit", f"{unit} is gone, or differs from hutch's version")
    both = (router.wanted_sysctls(layout, each).items() for each in (endpoints, booted))
    settings = dict(sorted(set.intersection(*map(set, both))))
    for name, value in router.observe_sysctls(settings).items():
        yield Repair(name.replace("/", "."), f"is {value}, not {settings[name]}")


def wrong_homes(layout: Layout, serving: Mapping[str, Record]) -> Iterator[Repair]:
    """Repairs of homes, and of the mounts that keep the host safe from what guests write there."""
    mounts = shares.observe_tree()
    for name, record in serving.items():
        workspace = record.wanted
        assert workspace.home is not None
        gid, _ = ssh.owner_of(workspace.uid)
        if not os.path.lexists(workspace.home) and not shares.waits_for_mount(workspace.home):
            yield Repair("home", f"{workspace.home} is gone; it is made anew, and empty", name)
        if not shares.is_closed(layout.workspace(name), gid):
            yield Repair("home", f"{layout.workspace(name)} is open to others, or closed to the owner", name)
        for path in shares.unguarded(record.written, mounts, record.members_own):
            yield Repair("guard", f"{path} is not mounted nosuid,nodev", name)


def lost_keys(layout: Layout, serving: Collection[str]) -> dict[str, str]:
    """Host keys that are damaged or gone, and that somebody knows already: `up` does not make others in their place."""
    published = ssh.published_names(layout)
    return {
        name: f"host key: {layout.host_key(name)} is damaged or gone; only a backup brings back the key clients know"
        for name in serving
        if names.hostname(name) in published and not ssh.public_of(ssh.read_private(layout.host_key(name)))
    }


def wrong_trust(layout: Layout, serving: Mapping[str, Record], lost: Collection[str]) -> Iterator[Repair]:
    """Repairs of keys, names, and ssh's files about them."""
    peers, keys = peers_of(layout, serving), own_keys(serving)
    unnamed = [peer.name for peer in peers if not peer.host_key]
    for name in unnamed:
        if name not in lost:
            yield Repair("host key", f"{layout.host_key(name)} is damaged or gone", name)
    for holder in keys:
        if not ssh.read_key(key := layout.key(holder)):
            what = f"{key}.pub" if ssh.public_of(ssh.read_private(key)) else str(key)
            new = "" if what != str(key) else "; a new one opens workspaces started later"
            yield Repair("key", f"{what} of {holder_words(holder)} is damaged or gone{new}")
    if hosts_file.missing_hosts(layout, {peer.name: peer.ip for peer in peers if peer.ip}) is not None:
        yield Repair("names", f"hutch's block in {hosts_file.HOSTS} is not as it was written")
    for path in ssh.missing_trust(layout, peers, keys):
        if path != layout.known_hosts or not unnamed:
            yield Repair("ssh", f"{path} {'is not as it was written' if path.exists() else 'is gone'}")


def broken_workspaces(
    layout: Layout, serving: Mapping[str, Record], links: Collection[str] | None
) -> dict[str, tuple[Change, ...]]:
    """The faults of running workspaces that last until they are started anew. Those that were started or stopped
    meanwhile are left out, and so are ports in a namespace that has lost its name."""
    found = {}
    for name, record in serving.items():
        now = observe(layout, name)
        if now.state != "running" or now.pid is None:
            continue
        port, broken = names.port(name, record.wanted.type), []
        if links is not None and port not in links:
            broken.append(Change("port", f"{port} is gone", port, "restart"))
        if has_lost_tree(layout, name, now.pid):
            broken.append(Change("image", "its tree was deleted", record.image, "restart"))
        if has_stray_vsock(layout, record):
            broken.append(Change("vsock", "a device of an older hutch's, not asked for", False, "restart"))
        if broken and observe(layout, name) == now:
            found[name] = tuple(broken)
    return found


def forgotten_workspaces(layout: Layout, serving: Mapping[str, Record]) -> dict[str, str]:
    """Workspaces that run, and are taken for stopped."""
    return {
        name: f"state: {layout.runtime(name)} was deleted while it ran; a start ends its old processes first"
        for name, record in serving.items()
        if record.booted is not None and is_forgotten(layout, name)
    }


def repair_of(change: Change) -> str:
    """The effect of a restart on a fault, in words."""
    return "takes it away" if change.key == "vsock" else "brings it back"


def has_stray_vsock(layout: Layout, record: Record) -> bool:
    """Whether a machine that runs has a vsock device that its file does not ask for: until vsock was a key, each had
    one."""
    if not is_machine(record.effective) or record.effective.vsock or record.wanted.vsock:
        return False
    started = read_launch(layout.launch(record.name))
    return started is not None and any(word.startswith("vhost-vsock-pci,") for word in started.argv)


def has_lost_tree(layout: Layout, name: str, pid: int) -> bool:
    """Whether the image's tree was deleted that it runs on: its own mounts tell, also when the image has been
    built again since. A machine has none there."""
    try:
        text = observe_mountinfo(pid)
    except OSError:  # it has just ended
        return False
    if DELETED not in text:  # which spares `hutch status` most of its time
        return False
    lower = str(layout.runtime(name) / "lower")
    return any(point == lower and directory.endswith(DELETED) for _, directory, point, _, _ in parse_mountinfo(text))


def missing_of(layout: Layout, id: str, boots_machine: bool) -> str:
    """The part of an image that a start lacks in the cache, in words; "" for nothing."""
    if not whole_image(layout, id):
        return id
    if not boots_machine:
        return ""
    # Spares the start-up of `hutch up` for containers.
    from hutch.images.machine import observe_machine

    return "" if observe_machine(layout, id) else f"boot data of {id}"


def unbuilt_images(layout: Layout, wanted: Mapping[str, Wanted]) -> dict[str, str]:
    """The workspaces that lack something in the cache to start from, each with the missing part, in words."""
    needed = {name: (target.image, is_machine(target.workspace)) for name, target in wanted.items()}
    missing = {need: missing_of(layout, *need) for need in set(needed.values())}
    return {name: f"{missing[need]} is not in the cache" for name, need in needed.items() if missing[need]}


def with_findings(plan: Plan, seen: Findings, unbuilt: Mapping[str, str], records: Mapping[str, Record]) -> Plan:
    """The plan, with the repairs on the way. An image that is built for a start is a note on that; one that was there,
    and went, while no start is planned, is a repair. A member is told nothing of what is another's."""
    theirs = set(records).difference(own_of(records, records))
    actions, repairs = [], [repair for repair in seen.repairs if repair.workspace not in theirs]
    for action in plan.actions:
        missing, before = unbuilt.get(action.workspace, ""), records.get(action.workspace)
        was_there = before is not None and action.wanted is not None and before.image == action.wanted.image
        if missing and was_there and not action.starts:
            repairs.append(Repair("image", missing, action.workspace))
        elif missing:
            action = replace(action, notes=(*action.notes, f"{missing}: it is built first"))
        actions.append(action)
    lost = tuple(f"{name}: {text}" for name, text in seen.lost.items() if name not in theirs)
    deaf = (f"{name}: {text}" for name, texts in seen.deaf.items() if name not in theirs for text in texts)
    notes = (*plan.notes, *lost, *seen.obstacles, *deaf)
    return replace(plan, actions=tuple(actions), repairs=tuple(repairs), notes=notes)


def warnings_of(
    layout: Layout, applied: Network | None, records: Mapping[str, Record], looking: Gathering | None = None
) -> dict[str, list[str]]:
    """Warnings, in words, by workspace; those about all of them are given with each. The look at the host's network is
    one that has been begun, or a new one."""
    there = present(records)
    targets = {name: Wanted(record.wanted, record.image) for name, record in there.items()}
    try:
        seen, unbuilt = inspect(layout, applied, records, looking), unbuilt_images(layout, targets)
    except (HutchError, OSError) as error:  # status is there for when things are broken
        why = f"the host cannot be looked at: {error.brief if isinstance(error, HutchError) else error}"
        return {name: [why] for name in there}
    told, guards = {}, shares.kept_guards(layout)
    for name in there:
        runs = has_processes(observe(layout, name).state)
        limits = unlimited_launch(layout, read_launch(layout.launch(name))) if runs else ""
        repairs = [str(repair) for repair in seen.repairs if repair.workspace in (None, name)]
        repairs += [f"image: {unbuilt[name]}"] if name in unbuilt else []
        told[name] = [
            *(f"{text} (`hutch up` repairs it)" for text in repairs),
            *(f"{change.key}: {change.old} (a restart {repair_of(change)})" for change in seen.broken.get(name, ())),
            *([seen.lost[name]] if name in seen.lost else []),
            *filter(None, [unlimited_home(layout, there[name]), limits]),
            *seen.deaf.get(name, ()),
            *seen.obstacles,
            *guards,
        ]
    return told
