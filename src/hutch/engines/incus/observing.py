"""The instances of workspaces as a server has them: their states, and the differences to what hutch had made.

Asks, and changes nothing. A server that is partly unreachable does not answer the question for all instances until it
knows that a member is gone, so small questions follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hutch.backends.incus import COPIED, DIGEST, FILE, ID, MEMBER, PASSING, RESTORING, SNAPSHOT, WAS_READY
from hutch.engines.incus.answers import NOT_FOUND, is_name, listing, mapping, shown, text, texts, words
from hutch.engines.incus.client import instance_path, path_to
from hutch.engines.incus.failures import NoAnswer, NoWay, Refused
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.plan.actions import Change
from hutch.spec.record import Observation, Record, State

if TYPE_CHECKING:
    from hutch.backends.incus import Instance
    from hutch.engines.incus.client import Client

LIST_SECONDS, LIST_SECONDS_EACH = 2.5, 0.001
"""For the list of all instances: the former, and the latter for each of ours. With a member that is cut off it is not
answered for 20 s, and whoever looks is to know what is known within five."""
ONE_SECONDS = 2.0
ALL_SECONDS = 2.0
"""For the small questions together: a silent member keeps those about others waiting, too."""
STATES: Mapping[str, State] = {"Running": "running", "Stopped": "stopped", "Frozen": "suspended"}
HUTCHS_OWN = ("boot.autostart", "environment.", "limits.", "linux.", "nvidia.", "oci.", "raw.", "security.")
"""The beginnings of the keys that say what an instance may do: hutch sets all of them, or they are not set. Other keys,
such as those of snapshots, are the administrator's."""


@dataclass(frozen=True)
class Found:
    """An instance as the server has it. `member` is "" where the server is no cluster; `was_started` says whether it
    ever was, and `last_start` when, in the server's words."""

    name: str
    status: str
    member: str
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    profiles: tuple[str, ...]
    architecture: str
    was_started: bool
    last_start: str = ""
    description: str = ""
    is_ephemeral: bool = False

    @property
    def was_ready(self) -> bool:
        """Whether it is noted that it was ready once; hutch did not always note it."""
        return _was_ready(self.config)

    def is_of(self, record: Record) -> bool:
        """Whether hutch made it for this workspace; one that is new, and has no id yet, has none."""
        return record.machine_id != "" and self.config.get(ID) == record.machine_id

    @property
    def is_silent(self) -> bool:
        """Whether its member does not answer: the cluster then tells its name and its member, and nothing else, not
        even whose it is."""
        return self.status == "Error" and not self.config

    def is_foreign(self, record: Record) -> bool:
        """Whether it is known to be another's. One that is silent was asked about while its member answered."""
        return not self.is_silent and not self.is_of(record)

    @property
    def runs(self) -> bool:
        return self.status not in ("Stopped", "Error", "")

    @property
    def has_copied_root(self) -> bool:
        """Whether its root was copied from another one, and never started since: it is not made anew then."""
        return self.last_start != "" and self.config.get(COPIED) == self.last_start

    @property
    def pool(self) -> str:
        """The pool of its root; "" where it has none of its own."""
        return self.devices.get("root", {}).get("pool", "")


def read_instance(answer: object) -> Found:
    """An instance in the form of Incus's API."""
    said = mapping(answer, "/1.0/instances")
    devices = said.get("devices")
    member, config = text(said, "location"), texts(said.get("config"))
    return Found(
        name=text(said, "name"),
        status=text(said, "status"),
        member="" if member == "none" or not is_name(member) else member,
        config=config,
        devices={str(key): texts(value) for key, value in devices.items()} if isinstance(devices, dict) else {},
        profiles=words(said.get("profiles")),
        architecture=text(said, "architecture"),
        was_started=_was_ready(config) or _is_time(text(said, "last_used_at")),
        last_start=text(said, "last_used_at"),
        description=text(said, "description"),
        is_ephemeral=said.get("ephemeral") is True,
    )


def _was_ready(config: Mapping[str, str]) -> bool:
    """Whether it is noted that this very instance was ready once."""
    return ID in config and config.get(WAS_READY) == config[ID]


def _is_time(text: str) -> bool:
    """Whether it is the time of something that has been: Incus says 1970, or the year 1, for never."""
    try:
        return datetime.fromisoformat(text[:10]).year > 1970
    except ValueError:
        return False


def look_up_all(client: Client, names: Mapping[str, Record]) -> dict[str, Found]:
    """The instances of these names, whoever made them; none where there is no such project. Raises NoAnswer where the
    server does not answer for all, and Refused."""
    question = path_to("instances", recursion=1)
    try:
        answers = listing(client.get(question, seconds=LIST_SECONDS + LIST_SECONDS_EACH * len(names)), question)
    except Refused as error:
        if error.code == NOT_FOUND:
            return {}
        raise
    found = (read_instance(answer) for answer in answers)
    return {each.name: each for each in found if each.name in names}


def look_up(client: Client, name: str, *, seconds: float = 5.0) -> Found | None:
    """The instance of that name, whoever made it; None where there is none."""
    try:
        return read_instance(client.get(instance_path(name), seconds=seconds))
    except Refused as error:
        if error.code == NOT_FOUND:
            return None
        raise


def look_up_patiently(client: Client, records: Mapping[str, Record]) -> dict[str, Found | HutchError | None]:
    """The instance of each workspace, None where there is none, or why nobody knows."""
    try:
        found = look_up_all(client, records)
        return {name: found.get(name) for name in records}
    except (Refused, NoWay) as error:
        return dict.fromkeys(records, error)
    except NoAnswer:
        questions = [instance_path(name) for name in records]
        answers = client.get_all(questions, seconds=ONE_SECONDS, within=ALL_SECONDS)
        return {name: _one(answer) for name, answer in zip(records, answers, strict=True)}


def _one(answer: Any) -> Found | HutchError | None:
    if isinstance(answer, Refused) and answer.code == NOT_FOUND:
        return None
    return answer if isinstance(answer, HutchError) else read_instance(answer)


def observe_all(client: Client, records: Mapping[str, Record]) -> dict[str, Observation]:
    """The state of each workspace of one project."""
    return {name: state_of(records[name], found) for name, found in look_up_patiently(client, records).items()}


def state_of(record: Record, found: Found | HutchError | None) -> Observation:
    """The state of a workspace, by the instance of its name."""
    if isinstance(found, HutchError):
        return Observation("unreachable", reason=found.brief)
    if found is None or found.is_foreign(record):
        return Observation("absent")
    member = shown(found.member) or None
    if found.status == "Error":
        where = f"its member, {member}," if member else "its server"
        return Observation("unreachable", reason=f"{where} does not answer", member=member)
    state = STATES.get(found.status)
    if state is None:
        return Observation("unreachable", reason=f"the server says {shown(found.status) or 'nothing'}", member=member)
    return Observation(state, member=member, reason=_left_behind(found))


def _left_behind(found: Found) -> str:
    """What an earlier command left half done in an instance, in words; "" for nothing."""
    if found.status == "Frozen" and SNAPSHOT in found.config:
        return "a snapshot of it was cut short; the next command that changes something lets it go on"
    if found.status == "Stopped" and RESTORING in found.config:
        tag = shown(found.config[RESTORING])
        return f"a restore of the snapshot {tag} was cut short; its start finishes that"
    return ""


def is_hutchs(key: str) -> bool:
    """Whether nobody but hutch sets a key of an instance's configuration, as the record says. The member that is wanted
    stands there alone, and that it was ready."""
    return key not in (MEMBER, WAS_READY) and key.startswith((*HUTCHS_OWN, "user.hutch."))


def whole_config(found: Found, wanted: Mapping[str, str]) -> dict[str, str]:
    """The configuration that an instance is to have, with what the server and the administrator have added."""
    others = {key: value for key, value in found.config.items() if not is_hutchs(key)}
    return {**others, **wanted}


def differs(found: Found, wanted: Instance, config: Mapping[str, str]) -> bool:
    """Whether the server's instance has to be changed to be what it is to be, with this configuration."""
    return (
        dict(config) != dict(found.config)
        or {name: dict(device) for name, device in found.devices.items()} != _plain(wanted.devices)
        or found.profiles != ()
    )


def _plain(devices: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {name: dict(device) for name, device in devices.items()}


def drift(found: Found, booted: Instance) -> Iterator[Change]:
    """The parts of an instance that are not as it was booted with, which somebody else has changed."""
    keys = {key for key in found.config if is_hutchs(key)} | booted.config.keys()
    for key in sorted(keys - {DIGEST, FILE} - PASSING):
        now, before = found.config.get(key), booted.config.get(key)
        if now != before:
            yield Change(shown(key), None if now is None else shown(now), before)
    for name in sorted(found.devices.keys() | booted.devices.keys()):
        has, had = found.devices.get(name), booted.devices.get(name)
        if has is None or had is None:
            yield Change(f"device {shown(name)}", _words(has), _words(had))
        else:
            for key in sorted(has.keys() | had.keys()):
                if has.get(key) != had.get(key):
                    value = has.get(key)
                    yield Change(f"device {name} {shown(key)}", None if value is None else shown(value), had.get(key))
    if found.profiles:
        yield Change("profiles", ", ".join(map(shown, found.profiles)), None)


def _words(device: Mapping[str, str] | None) -> str | None:
    """A device in words."""
    return None if device is None else shown(" ".join(f"{key}={value}" for key, value in sorted(device.items())))
