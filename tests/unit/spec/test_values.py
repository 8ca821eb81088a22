"""Single values: what is taken, what becomes of it, and that nothing else ever happens than Invalid."""

from __future__ import annotations

import contextlib
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hutch.spec.entries import Egress, EnvironmentTable, PublicKey, Publish, Published, parse_key_line
from hutch.spec.field_types import FieldType, Invalid
from hutch.spec.values import (
    Address,
    AddressNetwork,
    ContextId,
    Duration,
    HardwareAddress,
    HostPath,
    HostUser,
    ImageReference,
    IncusTarget,
    InterfaceName,
    LoginName,
    PackageName,
    Remote,
    SetupScript,
    ShellPath,
    Size,
    TargetPath,
    WholeNumber,
)
from tests.unit.spec.conftest import key_line

TYPES: tuple[FieldType, ...] = (
    Address(),
    AddressNetwork(16, 29),
    ContextId(),
    Duration(),
    Egress(),
    EnvironmentTable(),
    HardwareAddress(),
    HostPath(),
    ImageReference(),
    InterfaceName(),
    LoginName(),
    HostUser(),
    PackageName(),
    PublicKey(),
    Published(),
    Remote(),
    SetupScript(),
    ShellPath(),
    Size(),
    IncusTarget(),
    TargetPath(),
    WholeNumber(1, 9),
)
RIGHT: list[tuple[FieldType, Any, Any]] = [
    (Size(), "512MiB", 2**29),
    (Size(), "4GiB", 2**32),
    (Size(), "8G", 2**33),
    (Size(), "4096M", 2**32),
    (Size(), "1T", 2**40),
    (ContextId(), 4294967294, 4294967294),
    (HardwareAddress(), "02:AB:5e:57:f6:EB", "02:ab:5e:57:f6:eb"),
    (AddressNetwork(16, 29), "100.127.0.0/16", "100.127.0.0/16"),
    (InterfaceName(), "hutch-test-0", "hutch-test-0"),
    (LoginName(), "my_user-1", "my_user-1"),
    (HostUser(), 1000, 1000),
    (HostUser(), "j.doe", "j.doe"),
    (ImageReference(), "oci:docker.io/library/debian:trixie", "oci:docker.io/library/debian:trixie"),
    (ImageReference(), "rootfs:~/tree", "rootfs:~/tree"),
    (HostPath(), "~", "~"),
    (HostPath(), "~/größe und mehr", "~/größe und mehr"),
    (TargetPath(), "/run2/x", "/run2/x"),
    (TargetPath(), "/usr/local/src", "/usr/local/src"),
    (Published(), "80:8080/tcp", Publish("", 80, 8080, "tcp")),
    (Published(), "127.0.0.1:53:53/udp", Publish("127.0.0.1", 53, 53, "udp")),
    (Egress(), "none", "none"),
    (Egress(), [], ()),
    (Egress(), ["*.Example.org:443", "xn--bcher-kva.example"], ("*.example.org:443", "xn--bcher-kva.example")),
    (EnvironmentTable(), {"b": "1", "A": "x y"}, (("A", "x y"), ("b", "1"))),
    (PublicKey(), "~/.ssh/*.pub", "~/.ssh/*.pub"),
    (PublicKey(), key_line(3, "a b"), key_line(3, "a b")),
    (PackageName(), "g++", "g++"),
    (Duration(), "30min", "30min"),
    (IncusTarget(), "@gpu", "@gpu"),
]
REFUSED: list[tuple[FieldType, list[Any]]] = [
    (Size(64 << 20), ["", "4", "4 GiB", "4gib", "-1G", "1.5G", "٤GiB", "9999999T", "1K", True, 4]),
    (Address(), ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "::1", "1.2.3.4\n", 16909060]),
    (AddressNetwork(16, 29), ["10.0.0.0", "10.0.0.0/255.0.0.0", "10.0.0.0/024", "fd00::/64"]),
    (HardwareAddress(), ["02-00-00-00-00-01", "02:00:00:00:00", "00:00:00:00:00:00"]),
    (InterfaceName(), ["", "Hutch", "-a", "a.b", "lo", "all", "up0", "vm-x", "a" * 13]),
    (LoginName(), ["", "Dev", "1a", "a" * 32, "_apt", "systemd-x", "a:b", "dev\n", "dév"]),
    (HostUser(), [True, -1, 0, 65534, 0x7000_0000, "", "a b", "root", 1.5]),
    (PackageName(), ["", "-y", "a", "git-", "Git", "git=1", "a,b", "a b", "a/trixie", "?all"]),
    (ShellPath(), ["", "/", "sh", "/bin/../sh", "/bin//sh", "/bin/sh ", "/bin/sh\n", "/b:n/sh"]),
    (HostPath(), ["", "/", "//", "/..", "~root", "a\0b", "a\nb", "a:b", "a,b", 'a"b', "a\\b", 3]),
    (TargetPath(), ["", "/", "//", "/a/", "/a/.", "/proc", "/dev/x", "/usr", "/lib64", "/a\u2028"]),
    (ImageReference(), ["", "debian", "debian:sid", "rootfs:", "rootfs:/", "oci:", "oci:-x", "nix:a\nb"]),
    (Published(), ["", "80", "80:", "0:1", "1:65536", ":1:2", "[::1]:1:2", "1:2/sctp", "1:2:3:4"]),
    (Egress(), ["", "lan", None, ["a"], ["*"], ["a..b"], ["a.b:0"], ["a.*"], ["::/0"], [{}], ["é fr.example"]]),
    (EnvironmentTable(), [[], {"": "x"}, {"A": 1}, {"A": "x\ty"}, {"A": "x\x85y"}, {"A": "y" * 4097}]),
    (PublicKey(), ["", "id_rsa", "ssh-ed25519", "ssh-dss AAAA x", "ssh-rsa " + key_line(1)[12:]]),
    (Duration(), ["", "0min", "30", "30m", "1h30min", 30]),
    (PublicKey(), ["-----BEGIN OPENSSH PRIVATE KEY-----"]),
    (SetupScript(), ["a\0", "x" * 65537, 3]),
    (WholeNumber(1, 9), [10, 0, 1.0, "1", True, None]),
]
WRONG = [(kind, value) for kind, values in REFUSED for value in values]


@pytest.mark.parametrize(("kind", "value", "parsed"), RIGHT, ids=repr)
def test_right(kind: FieldType, value: Any, parsed: Any) -> None:
    assert kind.parse(value) == parsed


@pytest.mark.parametrize(("kind", "value"), WRONG, ids=lambda value: repr(value)[:40])
def test_wrong(kind: FieldType, value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        kind.parse(value)
    assert caught.value.message
    assert caught.value.hint
    assert caught.value.message in str(caught.value)


def test_a_published_port_reads_as_it_is_written() -> None:
    assert [str(Published().parse(text)) for text in ("80:81", "10.0.0.1:5:6/udp")] == ["80:81", "10.0.0.1:5:6/udp"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
near_misses = st.one_of(
    *(st.from_regex(kind.pattern, fullmatch=True) for kind in TYPES if kind.pattern),
    st.sampled_from([value for _, value, _ in RIGHT if isinstance(value, str)]),
)
awkward = st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs", "Co"])


@settings(max_examples=25)  # for each kind
@given(anything | near_misses)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: type(kind).__name__)
def test_they_raise_nothing_but_invalid(kind: FieldType, value: Any) -> None:
    with contextlib.suppress(Invalid):
        parsed = kind.parse(value)
        assert isinstance(kind, SetupScript) or not holds_control(parsed)


@settings(max_examples=25)  # for each kind
@given(text=near_misses, character=awkward, at=st.integers(0, 40))
@example(text="dev", character="\n", at=3)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: type(kind).__name__)
def test_none_takes_a_control_character(kind: FieldType, text: str, character: str, at: int) -> None:
    poisoned = text[:at] + character + text[at:]
    values: list[Any] = [poisoned, [poisoned], {"A": poisoned}, {poisoned: "a"}]
    for value in values:
        try:
            parsed = kind.parse(value)
        except Invalid:
            continue
        assert isinstance(kind, SetupScript)
        assert "\0" not in parsed


@given(st.text() | st.from_regex(r"ssh-ed25519 [A-Za-z0-9+/]{0,80}={0,2}( .{0,9})?", fullmatch=True))
def test_key_lines_are_checked_to_the_bottom(line: str) -> None:
    with contextlib.suppress(Invalid):
        parsed = parse_key_line(line)
        assert parsed.startswith("ssh-ed25519 ")
        assert parse_key_line(parsed) == parsed


def holds_control(value: Any) -> bool:
    if isinstance(value, str):
        return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value)
    return isinstance(value, tuple) and any(holds_control(part) for part in value)
