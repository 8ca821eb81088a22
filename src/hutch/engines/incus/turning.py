"""Starting and stopping one instance, and making it what it is to be.

Each step may be done again, so the next `up` goes on where this one was cut short: an instance tells whose it is from
the request that makes it on, and one that was never started has its root made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hutch import guest
from hutch.backends.incus import COPIED, CREDENTIALS, IMAGE, MOVING, PERSIST, SNAPSHOT, WAS_READY
from hutch.engines.incus.answers import NOT_FOUND, listing, shown, text, texts
from hutch.engines.incus.client import instance_path, path_to
from hutch.engines.incus.failures import Foreign, NoAnswer, Refused, printable
from hutch.engines.incus.homes import Volume, ensure_home, on
from hutch.engines.incus.observing import Found, differs, look_up, read_instance, whole_config
from hutch.engines.incus.ways import exec_words
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.record import Record, is_local
from hutch.trees.cursor import holds_something

if TYPE_CHECKING:
    from hutch.backends.incus import Home, Instance
    from hutch.engines.incus.client import Client

STOP_SECONDS = 15  # for a guest to end in order
KILL_SECONDS = 30  # for a server to end it by force
START_SECONDS = 60
READY_SECONDS = 60
MIGRATION_SECONDS = 3600.0  # for a root to come to another member
OVERDUE = 124
"""The exit code of timeout(1) for a command that it has ended."""
FORGET_SECONDS = 11.0  # after 10 without a question, an Incus server lets a root go whose files it has served
PUSHES = 3  # somebody else may ask meanwhile
NO_FILE = "file does not exist"
"""The client's words where files are pushed into a root that is no more."""
GRACE = 5.0  # seconds for an answer, beyond a deadline that somebody else keeps
MOST_SAID = 1 << 20  # bytes, of a guest
GUEST_SECONDS = 15.0  # for a guest to carry out a command
TMPFILES = "tmpfiles.extra"
IDENTITY = Path(guest.__file__).with_name("identity.sh")
READY = Path(__file__).with_name("ready.sh")

Parts = tuple[Mapping[str, str], Mapping[str, Mapping[str, str]]]
"""An instance's configuration and its devices."""


@dataclass(frozen=True)
class Start:
    """One start: the instance as it is to be, made on `member` from the image `fingerprint` if it is not there, with
    the `home` that is there. `ip` is the address at which its sshd answers."""

    record: Record
    wanted: Instance
    home: Volume | None
    member: str
    fingerprint: str
    ip: str


def foreign(client: Client, name: str) -> Foreign:
    """The error for an instance that another made."""
    place = client.place
    return Foreign(
        f"the instance {name} of {place.remote} is not this workspace: another hutch, or somebody else, made it",
        details=f"it is in the project {place.project}",
        resolution="choose another name for the workspace, or another `project` in [engines.incus]",
    )


def own(client: Client, record: Record) -> Found | None:
    """The workspace's instance; None where there is none. Raises HutchError for another's, and NoAnswer where its
    member does not tell whose it is."""
    found = look_up(client, record.name)
    if found is not None:
        check_own(client, record, found)
    return found


def check_own(client: Client, record: Record, found: Found) -> None:
    if found.is_foreign(record):
        raise foreign(client, record.name)
    if found.is_silent:
        raise NoAnswer(f"{record.name} is on {shown(found.member) or client.place.remote}, which does not answer")


def still_own(client: Client, record: Record) -> Found | None:
    """The workspace's instance; None where there is none, or another's alone, which is nothing to stop or remove."""
    try:
        return own(client, record)
    except Foreign:
        return None


def start(client: Client, one: Start) -> None:
    """Make the instance what it is to be, start it, and wait until its sshd answers. Raises HutchError."""
    name = one.wanted.name
    found = own(client, one.record)
    ensure_home(client, name, home_to_make(client, one), one.home, found.member if found is not None else one.member)
    if found is None:
        create(client, one)
    else:
        if found.runs:
            stop(client, one.record)
        if one.home is not None and one.home.member and one.home.member != found.member:
            migrate(client, one.record, one.home.member)  # a move between members was cut short
        if keeps_root(found, one.wanted):
            clear_credentials(client, one.wanted)
        else:
            rebuild(client, one)
        update(client, one.record, one.wanted)
    push_credentials(client, one.wanted)
    client.change(
        "PUT",
        instance_path(name, "state"),
        {"action": "start", "timeout": START_SECONDS},
        seconds=START_SECONDS + GRACE,
    )
    await_ready(client, one)
    note_ready(client, one.record)


def note_ready(client: Client, record: Record) -> None:
    """Note that the instance was ready, unless that is noted: once for each."""
    edit(client, record, lambda found: with_keys(found, {WAS_READY: record.machine_id}))


def home_to_make(client: Client, one: Start) -> Home:
    """The home as it is to be, made where there is none. At the new place of a move that one is marked, as all that may
    be undone is; where the old place still has a home, an empty one must not count instead."""
    moving = one.record.moving
    if one.home is not None or moving is None or moving.step != "starting":
        return one.wanted.home
    old = one.record.other_side
    if is_local(old.wanted) and holds_something(str(old.wanted.home)):
        raise HutchError(
            f"the home of {one.record.name} is not on {client.place.remote}, where it was copied to",
            details=f"its old home is whole, in {old.wanted.home}, and no empty one was made",
            resolution=f"`hutch rm --force {one.record.name}` keeps the old one; `hutch up` then brings it there anew",
        )
    return replace(one.wanted.home, config={**one.wanted.home.config, MOVING: one.record.machine_id})


def migrate(client: Client, record: Record, member: str) -> None:
    """Bring the instance, which does not run, to another member, unless it is there, or on none alone. Its root goes
    along, also where Incus then takes it for one that was never started."""
    before = own(client, record)
    if before is None or before.member in ("", member):
        return
    body = {"name": record.name, "migration": True}
    client.change("POST", instance_path(record.name, **on(member)), body, seconds=MIGRATION_SECONDS)

    def noted(after: Found) -> Parts | None:
        is_new = before.was_started and not after.was_started
        return with_keys(after, {COPIED: after.last_start}) if is_new else None

    edit(client, record, noted)


def keeps_root(found: Found, wanted: Instance) -> bool:
    """Whether an instance goes on with the root that it has: one that is kept, of the same image, and whole. An
    instance that was never started may be half made, unless a fork has noted that it is not."""
    same = (IMAGE, PERSIST)
    return (
        (found.was_started or found.has_copied_root)
        and wanted.config[PERSIST] == "all"
        and all(found.config.get(key) == wanted.config[key] for key in same)
    )


def rebuild(client: Client, one: Start) -> None:
    """Make the root anew from its image. Incus does so only where the instance has no snapshots: hutch's own go, since
    theirs is another root; somebody else's are in the way."""
    try:
        _rebuild(client, one)
    except Refused as error:
        if "snapshots" not in error.text:
            raise
        remove_snapshots(client, one.wanted.name)
        _rebuild(client, one)


def _rebuild(client: Client, one: Start) -> None:
    own(client, one.record)  # it may have become another's while it was brought here
    body = {"source": {"type": "image", "fingerprint": one.fingerprint}}
    client.change("POST", instance_path(one.wanted.name, "rebuild"), body, seconds=600.0)


def remove_snapshots(client: Client, name: str) -> None:
    """Remove the snapshots of an instance that hutch has taken. Raises HutchError where there are others."""
    question = instance_path(name, "snapshots", recursion=1)
    answers = listing(client.get(question), question)
    found = {text(each, "name").rpartition("/")[2]: texts(each.get("config")) for each in answers}
    if theirs := [shown(tag) for tag, config in found.items() if not config.get(SNAPSHOT, "").startswith(f"{tag} ")]:
        raise HutchError(
            f"the root of {name} cannot be made anew: somebody has taken snapshots of the instance",
            details=f"they are {', '.join(theirs)}",
            resolution=f"`incus snapshot delete {client.of(name)} SNAPSHOT` deletes one",
        )
    for tag in found:
        client.change("DELETE", instance_path(name, "snapshots", tag), seconds=600.0)


def create(client: Client, one: Start) -> None:
    """Make the instance from its image, on its member."""
    body = {
        "name": one.wanted.name,
        "type": "container",
        "source": {"type": "image", "fingerprint": one.fingerprint},
        **_body(one.wanted.config, one.wanted.devices),
        **_others(one.wanted.name),
    }
    client.change("POST", path_to("instances", **on(one.member)), body, seconds=600.0)


def _body(config: Mapping[str, str], devices: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """The configuration and the devices in a request."""
    return {"config": dict(config), "devices": {name: dict(device) for name, device in devices.items()}}


def _others(name: str) -> dict[str, object]:
    """The other parts of a request that say what an instance is. No profile has a say in it."""
    return {"description": f"hutch's workspace {name}", "profiles": [], "ephemeral": False}


def _others_as_found(found: Found) -> dict[str, object]:
    return {"description": found.description, "profiles": [*found.profiles], "ephemeral": found.is_ephemeral}


def update(client: Client, record: Record, wanted: Instance) -> None:
    """Make the instance what it is to be, apart from its files."""

    def whole(found: Found) -> Parts | None:
        kept = {COPIED: found.last_start} if found.has_copied_root else {}  # until it has been started
        config = {**whole_config(found, wanted.config), **kept}
        return (config, wanted.devices) if differs(found, wanted, config) else None

    edit_there(client, record, whole, is_whole=True)


def note(client: Client, record: Record, keys: Mapping[str, str | None]) -> None:
    """Set keys of the instance's configuration, or take them away with None."""
    edit_there(client, record, lambda found: with_keys(found, keys))


def with_keys(found: Found, keys: Mapping[str, str | None]) -> Parts | None:
    """An instance with these keys set, or taken away with None; None where that changes nothing."""
    others = {name: value for name, value in found.config.items() if name not in keys}
    config = {**others, **{name: value for name, value in keys.items() if value is not None}}
    return (config, found.devices) if config != dict(found.config) else None


def edit_there(
    client: Client, record: Record, change: Callable[[Found], Parts | None], *, is_whole: bool = False
) -> None:
    """Change the workspace's instance, see `edit`. Raises HutchError where there is none."""
    if edit(client, record, change, is_whole=is_whole) is None:
        raise HutchError(f"the instance {record.name} has been removed meanwhile", resolution="`hutch up` makes it")


def edit(
    client: Client, record: Record, change: Callable[[Found], Parts | None], *, is_whole: bool = False
) -> Found | None:
    """Give the workspace's instance exactly the configuration and the devices that `change` makes of it as it is then,
    where None is for no change. An administrator's description and profiles stay, unless `is_whole`: unless these parts
    are to be all. Returns what it was; None where there is none. Raises what `own` raises, and changes nothing then.
    """

    def make(answer: object) -> dict[str, object] | None:
        found = read_instance(answer)
        check_own(client, record, found)
        parts = change(found)
        if parts is None:
            return None
        others = _others(found.name) if is_whole else _others_as_found(found)
        return {"architecture": found.architecture, **_body(*parts), **others}

    try:
        return read_instance(client.update(instance_path(record.name), make))
    except Refused as error:
        if error.code == NOT_FOUND:
            return None
        raise


def clear_credentials(client: Client, wanted: Instance) -> None:
    """Remove what is in the place of those files and their directories: a kept root is what its guest made of it. A
    server writes through no link to a directory, and would wait for who reads from a fifo. Directories that have
    something in them stay."""
    for directory in (str(Path(CREDENTIALS).parent), CREDENTIALS):
        client.unlink(wanted.name, [directory])
    client.unlink(wanted.name, [f"{CREDENTIALS}/{name}" for name in wanted.credentials])


def push_credentials(client: Client, wanted: Instance) -> None:
    """Write the files that tell the guest who it is; systemd inside reads them at boot.

    A server may still serve the root that this one has replaced, which is no more: whoever was cut short between these
    files and the start has left it so. It does until nobody has asked for a while, hence the pause.
    """
    files = {f"{CREDENTIALS}/{name}": text.encode() for name, text in wanted.credentials.items()}
    for left in reversed(range(PUSHES)):
        try:
            client.push(wanted.name, files)
        except Refused as error:
            if error.text != NO_FILE or not left:
                raise
        else:
            return
        time.sleep(FORGET_SECONDS)


def await_ready(client: Client, one: Start) -> None:
    """Wait until sshd answers at the workspace's address; who asks is inside, and may be anything. Raises
    HutchError, and stops it then."""
    script = ("/bin/sh", "-c", READY.read_text(encoding="utf-8"), "sh", one.ip, str(READY_SECONDS))
    words = exec_words(client, one.wanted.name, "timeout", str(READY_SECONDS), *script)
    try:
        answer = client.run(*words, seconds=READY_SECONDS + GRACE, check=False, most=MOST_SAID)
    except NoAnswer:
        _stop_quietly(client, one.record)
        raise
    if answer.returncode == 0:
        return
    said = printable(answer.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
    if answer.returncode == OVERDUE:
        said = f"within {READY_SECONDS} s"
    _stop_quietly(client, one.record)
    raise HutchError(
        f"its sshd does not answer{f': {said}' if said else ''}",
        resolution=f"`hutch logs {one.wanted.name}` shows its output",
    )


def _stop_quietly(client: Client, record: Record) -> None:
    """Stop an instance that has failed, so that the next `up` starts it; the failure itself is what is told."""
    try:
        stop(client, record)
    except HutchError:
        return


def stop(client: Client, record: Record) -> bool:
    """Stop the instance: in order first, by force after STOP_SECONDS. May be called again. Returns whether it ran."""
    found = still_own(client, record)
    if found is None or not found.runs:
        return False
    if found.status != "Frozen":  # its processes would not hear of it
        try:
            _change_state(client, record.name, {"action": "stop", "timeout": STOP_SECONDS}, STOP_SECONDS)
        except (Refused, NoAnswer):
            found = still_own(client, record)
            if found is None or not found.runs:
                return True
        else:
            return True
    _change_state(client, record.name, {"action": "stop", "force": True, "timeout": KILL_SECONDS}, KILL_SECONDS)
    return True


def freeze(client: Client, name: str) -> None:
    """Freeze an instance that runs."""
    _change_state(client, name, {"action": "freeze", "timeout": KILL_SECONDS}, KILL_SECONDS)


def thaw(client: Client, name: str) -> None:
    """Let a frozen instance go on. One that goes on already is left alone."""
    try:
        _change_state(client, name, {"action": "unfreeze", "timeout": KILL_SECONDS}, KILL_SECONDS)
    except (Refused, NoAnswer):
        found = look_up(client, name)
        if found is not None and found.status == "Frozen":
            raise


def _change_state(client: Client, name: str, body: Mapping[str, object], seconds: int) -> None:
    client.change("PUT", instance_path(name, "state"), dict(body), seconds=seconds + GRACE)


def refresh_identity(client: Client, wanted: Instance) -> None:
    """Give a guest that runs its new files, by its own systemd-tmpfiles. What boots it anew is told, too: by the guest,
    since the server would wait for a fifo there."""
    told = wanted.credentials[TMPFILES]
    keep = f"(umask 077 && printf '%s\\n' \"$IDENTITY\" >{CREDENTIALS}/{TMPFILES})"
    script = f"IDENTITY=$(cat)\n{keep} || exit\n{IDENTITY.read_text(encoding='utf-8')}"
    words = ("exec", client.of(wanted.name), "--force-noninteractive", "--", "/bin/sh", "-c", script)
    answer = client.run(*words, stdin=told.encode(), seconds=GUEST_SECONDS, check=False, most=MOST_SAID)
    if answer.returncode != 0:
        why = f"(exit code {answer.returncode})"
        raise HutchError(f"the guest does not take it {why}: its systemd-tmpfiles, or sshd's reload")


def remove(client: Client, record: Record) -> None:
    """Remove the instance, which does not run, with its root. May be called again."""
    if still_own(client, record) is not None:
        try:
            client.change("DELETE", instance_path(record.name))
        except Refused:
            if still_own(client, record) is not None:
                raise
