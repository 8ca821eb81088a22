"""The context file: tells whoever works in a workspace, an agent say, where that is, what lasts, and what it may reach.
Pure.

It is a courtesy of the host's. Root inside may write anything into it, so nothing is ever decided by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hutch.guest.credentials import CONTEXT
from hutch.spec.decisions import REFUSING, unlisted, words
from hutch.spec.model import WorkspaceSpec
from hutch.spec.policy import policy_of
from hutch.spec.record import Decision

HOW = {
    "readonly": "it cannot be written from here",
    "writable": "what is written there is the host's at once",
    "private": "what is written there stays in this workspace",
}
ALWAYS = "Closed in every case: the host, other workspaces, link-local addresses, multicast and IPv6."


def render_context(
    name: str, workspace: WorkspaceSpec, decisions: Iterable[Decision] = (), *, is_machine: bool = False
) -> str:
    """The text, in Markdown. `decisions` are those of people about names."""
    kind = "a virtual machine" if is_machine else "a container"
    parts = (
        [f"# The workspace {name}", "", f"This is {kind} made by hutch, and not the host. You are `{workspace.user}`."],
        [f"The host writes this file ($HUTCH_CONTEXT, {CONTEXT}) and keeps it current; it never reads it."],
        ["", "## What lasts", "", *_lasting(workspace)],
        ["", "## What can be reached", "", *_reach(name, workspace, decisions)],
    )
    return "".join(f"{line}\n" for part in parts for line in part)


def _lasting(workspace: WorkspaceSpec) -> Iterator[str]:
    where = f", which is {workspace.home} on the host" if workspace.home else ""
    yield f"- /home/{workspace.user} lasts{where}."
    for mount in workspace.mounts:
        yield f"- {mount.target} is {mount.source} of the host, shared: {HOW[mount.normalized().mode or 'writable']}."
    if workspace.persist == "all":
        yield "- All else lasts too, until the workspace is made anew from another image."
    else:
        yield "- All else is gone when the workspace stops: installed packages, /tmp, /etc."


def _reach(name: str, workspace: WorkspaceSpec, decisions: Iterable[Decision]) -> Iterator[str]:
    policy = policy_of(workspace)
    if policy.kind == "internet":
        yield "- Every public address; no private network."
    elif policy.kind == "all":
        yield "- Every public address, and private networks."
    elif isinstance(workspace.egress, tuple):
        yield f"- Only these names and networks: {', '.join(workspace.egress) or 'none'}."
    else:
        yield "- Nothing: no name, and no address."
    decided = unlisted(decisions, policy) if policy.kind in REFUSING else ()
    if allowed := [each for each in decided if each.is_allowed]:
        yield f"- Beside that, a person has opened: {', '.join(map(words, allowed))}."
    if denied := [each.host for each in decided if not each.is_allowed]:
        yield f"- A person has said no to: {', '.join(denied)}."
    if policy.learn:
        yield "- For now, what the list would refuse of the Internet passes, and is recorded (learn = true)."
    yield f"- {ALWAYS}"
    if policy.kind in REFUSING:
        yield from (
            "",
            "## How to ask for more",
            "",
            "A name that is not open is refused at once. `hutch-why HOST` says what holds for it, and why.",
            f"To ask for a name is enough: a person sees it on the host (`hutch approvals {name}`), and may open it",
            f"with `hutch allow {name} HOST`, within a second. Nothing waits for that, and often nobody is there: go",
            "on without it, or end and say which names are needed.",
        )
