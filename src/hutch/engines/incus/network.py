"""The bridge that a project's workspaces are on, and the ACL that says what they reach.

Incus has bridges in its default project only, so the name is made of the project's. A cluster has the bridge on each
member: the same subnet, and nothing that crosses. DHCP is on with a single address, which is nobody's, because Incus
starts no DNS server on a bridge without DHCP; workspaces have their addresses by themselves.

What is hutch's carries the key user.hutch.id. A bridge that is being made cannot carry it yet: it has our description.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hutch.backends.incus import ID
from hutch.engines import Misplaced
from hutch.engines.incus.answers import found, is_name, listing, mapping, shown, text, texts, words
from hutch.engines.incus.client import path_to
from hutch.engines.incus.failures import Refused
from hutch.errors import HutchError
from hutch.spec.names import builder_address, gateway
from hutch.spec.ranges import EVERYWHERE, NEVER, PRIVATE

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client
    from hutch.engines.incus.server import Server
    from hutch.spec.record import Place

CREATED = "Created"
PENDING = "Pending"
CONFLICT = 409
ASKED = 64  # interfaces of a member whose addresses are asked for
MOST_ADDRESSES = 64  # of a server, in its ACL
OWN = "the server itself"
"""The description of the rule that closes the server's own addresses, by which they are found again."""


def network_name(place: Place) -> str:
    """The name of the bridge: an interface's, so 15 bytes."""
    return f"hutch{_digest(place)[:10]}"


def acl_name(place: Place) -> str:
    return f"hutch-internet-{_digest(place)[:10]}"


def _path(place: Place) -> str:
    return path_to("networks", network_name(place))


def _acl_path(place: Place) -> str:
    return path_to("network-acls", acl_name(place))


def _digest(place: Place) -> str:
    return hashlib.sha256(place.project.encode()).hexdigest()


def _description(place: Place) -> str:
    return f"network of hutch's workspaces in the project {place.project}"


def render_network(place: Place, owner: str) -> dict[str, Any]:
    """The body that makes the bridge. IPv6 is off, which the ACL's default closes too."""
    subnet = ipaddress.IPv4Network(place.subnet)
    spare = builder_address(place.subnet)
    config = {
        "dns.mode": "none",
        "ipv4.address": f"{gateway(place.subnet)}/{subnet.prefixlen}",
        "ipv4.dhcp": "true",
        "ipv4.dhcp.ranges": f"{spare}-{spare}",
        "ipv4.firewall": "true",
        "ipv4.nat": "true",
        "ipv6.address": "none",
        "security.acls": acl_name(place),
        "security.acls.default.egress.action": "reject",
        "security.acls.default.ingress.action": "reject",
        ID: owner,
    }
    return {"name": network_name(place), "type": "bridge", "description": _description(place), "config": config}


def render_acl(place: Place, addresses: Collection[str], owner: str) -> dict[str, Any]:
    """The body that makes the ACL. Incus looks at what is rejected first, whatever the order. `addresses` are those of
    the server that it tells; its public ones are in no list of ranges."""
    closed = (*NEVER, *PRIVATE)
    networks = [ipaddress.IPv4Network(range) for range in closed]
    own = [each for each in sorted(addresses) if not any(ipaddress.IPv4Address(each) in net for net in networks)]
    rules = [_rule("reject", "private and special addresses", *closed)]
    rules += [_rule("reject", OWN, *own)] if own else []
    rules += [_rule("allow", "the Internet", EVERYWHERE)]
    return {
        "name": acl_name(place),
        "description": f"what hutch's workspaces reach in the project {place.project}",
        "egress": rules,
        "ingress": [],
        "config": {ID: owner},
    }


def _rule(action: str, description: str, *destinations: str) -> dict[str, str]:
    return {"action": action, "description": description, "destination": ",".join(destinations), "state": "enabled"}


def network_questions(place: Place) -> dict[str, bool]:
    """The questions about the bridge and its ACL. See Client.ask_ahead."""
    return dict.fromkeys((_acl_path(place), _path(place)), False)


def ensure_network(client: Client, server: Server, place: Place, owner: str) -> str:
    """Make the bridge and its ACL, finish them, or put them right; returns the bridge's name. May be called again.

    Raises HutchError for a bridge of that name that is not hutch's, and for a subnet that is in use there.
    """
    _ensure_acl(client, server, place, owner)
    path = _path(place)
    network = found(client, path)
    if network is not None:
        check_network(place, network)
    if network is None or text(network, "status") != CREATED:
        if network is None:
            check_subnet(client, server, place)
        _make(client, server, place, owner, network)
    elif put_right(place, network) is not None:
        client.update(path, lambda answer: put_right(place, mapping(answer, path)), project=False)
    return network_name(place)


def put_right(place: Place, network: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body that makes a bridge what it is to be; None where it is so. Raises HutchError for one that is not
    hutch's."""
    check_network(place, network)
    config = texts(network.get("config"))
    wanted = render_network(place, config[ID])["config"]  # another hutch may have made it: both use it
    kept = {key: value for key, value in config.items() if key.startswith(("volatile.", "user."))}
    if {**kept, **wanted} == config:
        return None
    return {"config": {**kept, **wanted}, "description": _description(place)}


def check_ground(client: Client, server: Server, place: Place) -> None:
    """Raise HutchError where the bridge and its ACL could not be made. Changes nothing."""
    acl, network = (found(client, path) for path in (_acl_path(place), _path(place)))
    if acl is not None:
        check_acl(place, acl)
    if network is not None:
        check_network(place, network)
    else:
        check_subnet(client, server, place)


def check_acl(place: Place, acl: Mapping[str, Any]) -> None:
    """Raise HutchError for an ACL that is not hutch's."""
    if ID not in texts(acl.get("config")):
        raise HutchError(
            f"the server of the Incus remote {place.remote} has a network ACL {acl_name(place)} that is not hutch's",
            resolution="name another `project` in [engines.incus]",
        )


def check_network(place: Place, network: Mapping[str, Any]) -> None:
    """Raise HutchError for a bridge that is not hutch's, or has another subnet and is in use."""
    name, config = network_name(place), texts(network.get("config"))
    is_ours = ID in config or (
        text(network, "status") == PENDING and text(network, "description") == _description(place)
    )
    if network.get("managed") is not True or text(network, "type") != "bridge" or not is_ours:
        raise HutchError(
            f"the server of the Incus remote {place.remote} has a network {name} that is not hutch's",
            resolution="name another `project` in [engines.incus]; "
            f"`incus network show {place.remote}:{name} --project default` shows it",
        )
    has = config.get("ipv4.address", "")
    if has and has != render_network(place, "")["config"]["ipv4.address"] and words(network.get("used_by")):
        raise Misplaced(
            f"workspaces in the Incus project {place.project} of {place.remote} use the network {name} with another "
            f"subnet, whose gateway is {shown(has)}",
            key="subnet",
            resolution="say that `subnet` in [engines.incus], or name another `project`",
        )


def check_subnet(client: Client, server: Server, place: Place) -> None:
    """Raise HutchError where the subnet overlaps with a network that the server knows, or holds a member's address."""
    subnet = ipaddress.IPv4Network(place.subnet)
    taken = [*_networks(client, place), *((f"the server's address {each}", each) for each in server.addresses)]
    for what, network in taken:
        if ipaddress.IPv4Network(network).overlaps(subnet):
            raise Misplaced(
                f"overlaps with {what} on {place.remote}",
                key="subnet",
                resolution="take another private network that nothing there uses",
            )


def _networks(client: Client, place: Place) -> Iterator[tuple[str, str]]:
    """The networks that the server has or is in: (words for it, network)."""
    question = path_to("networks", recursion=1)
    others = []
    for network in listing(client.get(question, project=False), question):
        name, config = text(network, "name"), texts(network.get("config"))
        if name == network_name(place) or not is_name(name):
            continue
        if network.get("managed") is not True and text(network, "type") != "loopback":
            others.append(name)
        ranges = [config.get("ipv4.address", ""), *config.get("ipv4.routes", "").split(",")]
        yield from ((f"the network {name}", each) for each in map(_network, ranges) if each)
    paths = [path_to("networks", name, "state") for name in others[:ASKED]]
    for name, state in zip(others, client.get_all(paths, project=False), strict=False):
        addresses = state.get("addresses") if isinstance(state, dict) else None  # an interface may be gone again
        for address in addresses if isinstance(addresses, list) else ():
            known = texts(address)
            if known.get("family") == "inet" and (each := _network(f"{known.get('address')}/{known.get('netmask')}")):
                yield f"the network of its interface {name}", each


def _network(text: str) -> str | None:
    """The network of "10.0.0.1/24"; None for "none", "auto" and the like."""
    try:
        return str(ipaddress.IPv4Interface(text.strip()).network) if "/" in text else None
    except ValueError:
        return None


def _make(client: Client, server: Server, place: Place, owner: str, network: Mapping[str, Any] | None) -> None:
    """Make the bridge, or finish a half-made one. A cluster is told of each member first, and then makes it on all."""
    body = render_network(place, owner)
    away = [member.name for member in server.members if not member.answers]
    if away:
        raise HutchError(
            f"the network of the workspaces on {place.remote} cannot be made while members do not answer: "
            f"{', '.join(away)}",
            resolution="`incus cluster ls` shows them; start them, or remove them from the cluster",
        )
    defined = words(network.get("locations")) if network else ()
    has_config = network is not None and text(network, "status") != PENDING
    for member in server.members:
        if member.name not in defined and not has_config:
            _define(client, member.name, {**body, "config": {}})
    try:
        # Incus has the configuration of one whose making failed, and takes none a second time.
        whole = {**body, "config": {}} if has_config else body
        client.change("POST", path_to("networks"), whole, project=False)
    except Refused:
        made = found(client, _path(place))
        if made is None or text(made, "status") != CREATED:  # or else somebody made it meanwhile
            raise
        check_network(place, made)


def _define(client: Client, member: str, body: Mapping[str, Any]) -> None:
    try:
        client.change("POST", path_to("networks", target=member), body, project=False)
    except Refused as error:
        if error.code != CONFLICT:  # it is defined there already
            raise


def _ensure_acl(client: Client, server: Server, place: Place, owner: str) -> None:
    path = _acl_path(place)
    acl = found(client, path)
    if acl is None:
        client.change("POST", path_to("network-acls"), render_acl(place, server.addresses, owner), project=False)
        return

    def make(answer: object) -> dict[str, Any] | None:
        return put_acl_right(place, server.addresses, mapping(answer, path))

    if make(acl) is not None:
        client.update(path, make, project=False)


def put_acl_right(place: Place, addresses: Collection[str], acl: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body that makes an ACL what it is to be; None where it is. Raises HutchError for one that is not hutch's."""
    check_acl(place, acl)
    # Each member tells its own addresses, and another one may have answered before.
    body = render_acl(place, {*addresses, *_told_before(acl)}, texts(acl["config"])[ID])
    if _rules(acl.get("egress")) == _rules(body["egress"]) and not _rules(acl.get("ingress")):
        return None
    del body["name"]
    return body


def _told_before(acl: Mapping[str, Any]) -> list[str]:
    """The server's addresses that an ACL has."""
    rules = acl.get("egress")
    told = [texts(rule) for rule in rules] if isinstance(rules, list) else []
    words = [word for rule in told if rule.get("description") == OWN for word in rule.get("destination", "").split(",")]
    return [word for word in words[:MOST_ADDRESSES] if _network(f"{word}/32")]


def _rules(rules: object) -> set[tuple[tuple[str, str], ...]]:
    """The rules of an ACL for a comparison, without their order."""
    return {tuple(sorted(texts(rule).items())) for rule in rules} if isinstance(rules, list) else set()


def remove_network(client: Client, place: Place, owner: str) -> bool:
    """Remove the bridge and its ACL if this hutch made them and nothing uses them. May be called again. Returns whether
    they are gone."""
    return all(_remove(client, path, owner) for path in (_path(place), _acl_path(place)))


def _remove(client: Client, path: str, owner: str) -> bool:
    thing = found(client, path)
    if thing is None:
        return True
    if texts(thing.get("config")).get(ID) != owner or words(thing.get("used_by")):
        return False
    try:
        client.change("DELETE", path, project=False)
    except Refused:  # somebody uses it meanwhile
        return False
    return True
