"""The ways into a workspace on an Incus server: how ssh gets there, and what is asked inside before it is removed.

No packet of this host reaches it, so ssh speaks to an sshd that the server starts for each connection, through a proxy
(proxy.sh). The host key is verified all the same: neither server nor member can pretend to be the workspace, unless an
admin of the project reads its key. What is asked inside is answered by the guest, so an answer only adds to what stands
in the way of a removal.
"""

from __future__ import annotations

import re
from pathlib import Path

from hutch.access import git_work
from hutch.backends.identity import guest_uid
from hutch.engines.incus.addresses import Route
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import printable
from hutch.errors import HutchError
from hutch.host.identity import ssh
from hutch.run import Completed
from hutch.spec.names import Layout
from hutch.spec.record import Place, Record, State

PROXY = Path(__file__).with_name("proxy.sh")
SESSIONS_SECONDS = 10.0
GRACE = 5.0  # seconds beyond the guest's own deadline for an answer to come
MOST_BYTES = 1 << 20  # of an answer
TIMED_OUT = (124, 137)  # codes of timeout, where it ended the look or had to kill it
COUNT = r"""grep -alE "^sshd(-session)?: $1 \[priv\]" /proc/[0-9]*/cmdline 2>/dev/null | wc -l"""
"""Counts the connections whose user has logged in, each of which has one such process."""
FORCE = "--force removes it without a look"


def peer(layout: Layout, record: Record) -> ssh.Peer:
    """The workspace as the ssh client sees it: without an address, by the proxy alone."""
    place = place_of(record)
    words = ("/bin/sh", str(layout.ssh_proxy), record.name, place.remote, place.project, str(place.account), place.conf)
    return ssh.Peer(
        record.name,
        "",
        record.effective.user,
        _host_key(layout, record.name),
        ssh.render_proxy(words),
        PROXY.read_bytes(),
    )


def _host_key(layout: Layout, name: str) -> str:
    """The public line of its host key; "" where there is none, and for who may not read it: ssh knows it already."""
    try:
        return ssh.read_key(layout.host_key(name))
    except PermissionError:
        return ""


def place_of(record: Record) -> Place:
    assert record.place is not None, f"{record.name} is on this host"
    return record.place


def client_of(layout: Layout, place: Place) -> Client:
    """The client of a place, with the other addresses that are known of its cluster."""
    return Client(place, route=Route(layout.addresses_of(place.account, place.conf, place.remote)))


def exec_words(client: Client, name: str, *command: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The words by which the client runs a command inside, as root unless `options` name somebody else. There is no
    terminal, and nothing to read."""
    return ("exec", client.of(name), "--force-noninteractive", "--disable-stdin", *options, "--", *command)


def sessions(client: Client, record: Record) -> list[str]:
    """The open ssh connections, those of `hutch exec` and `hutch cp` too, as the guest of a running one counts them."""
    words = exec_words(client, record.name, "/bin/sh", "-c", COUNT, "sh", record.effective.user)
    try:
        answer = client.run(*words, seconds=SESSIONS_SECONDS, check=False, most=MOST_BYTES)
    except HutchError as error:
        return [f"it cannot be asked for its ssh connections: {error.brief}"]
    text = answer.stdout.decode("ascii", "replace").strip()
    if answer.returncode != 0 or not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        return [f"it cannot be asked for its ssh connections: {_reason(answer)}"]
    count = int(text)
    return [f"{count} open ssh connection{'s' if count > 1 else ''}"] if count else []


def unsaved_git_work(client: Client, record: Record) -> list[str]:
    """Repositories in the home with changes that are committed or pushed nowhere, as the guest of a running one finds
    them. The look runs as the login user, by whom all of it could be run inside anyway."""
    workspace = record.effective
    assert isinstance(workspace.owner, int)
    uid = str(guest_uid(workspace.owner))
    options = (f"--user={uid}", f"--group={uid}", f"--cwd=/home/{workspace.user}")
    return _found(client, record, git_work.find_command(workspace), "home", options)


def unsaved_in_root(client: Client, record: Record) -> list[str]:
    """The same of all that lies outside of the home, and goes with the root. The look runs as root of the guest."""
    return _found(client, record, git_work.find_in_root_command(record.effective), "root", ())


def _found(client: Client, record: Record, look: tuple[str, ...], where: str, options: tuple[str, ...]) -> list[str]:
    """The answer of a running one to a look at its home or root."""
    command = ("timeout", "-k", "1", f"{git_work.PATIENCE:.0f}", *look)
    words = exec_words(client, record.name, *command, options=options)
    try:
        answer = client.run(*words, seconds=git_work.PATIENCE + GRACE, check=False, most=MOST_BYTES)
    except HutchError as error:
        return [f"cannot tell whether its {where} holds unsaved git work: {error.brief}"]
    found = git_work.found_among(answer.stdout)
    if answer.returncode != 0:
        found.append(f"the look for unsaved git work in its {where} has not come to its end: {_reason(answer)}")
    return found


def _reason(answer: Completed) -> str:
    """Why there is no answer, by the last line that came in its place, which the guest may have written."""
    if answer.returncode in TIMED_OUT:
        return f"it took more than {git_work.PATIENCE:.0f} s"
    lines = [line for line in answer.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return printable(lines[-1], git_work.LONGEST) if lines else "the answer makes no sense"


def obstacles(client: Client, record: Record, state: State) -> list[str]:
    """The reasons why it should not be removed without a second thought; none where it may go. `state` is as observed:
    inside of one that does not run, nobody can look."""
    if state == "running":
        return [*sessions(client, record), *unsaved_git_work(client, record)]
    if state == "absent" and record.booted is None and not record.removed:
        return []  # it has never been started
    way = {
        "stopped": f"`hutch start {record.name}` first, or {FORCE}",
        "failed": f"`hutch start {record.name}` first, or {FORCE}",
        "absent": f"`hutch up {record.name}` first, or {FORCE}",
    }.get(state, FORCE)
    what = "there is no instance of it" if state == "absent" else f"it is {state}"
    return [f"its home cannot be looked at for unsaved git work while {what}: {way}"]
