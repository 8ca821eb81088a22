"""A Launch as units of systemd's, and as the script that they run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends import launch_of
from hutch.backends.launch import File, Helper, HotMount, Launch, Limits, Seccomp, Step, Surroundings
from hutch.host.services.units import quoted
from hutch.runtime.pre_exec import decode_steps
from hutch.runtime.units import (
    LIBRARY,
    files,
    render_limits,
    render_script,
    render_service,
    render_slice,
    side_by_side,
    with_seccomp,
)
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import PACKAGE
from tests.unit.backends.test_qemu import host as machine_host
from tests.unit.facts import HARDWARE, LAYOUT, check_golden_case, everything, launched, surroundings, workspace

CONTAINERS = surroundings(has_machined=True)
MACHINES = replace(machine_host(has_vsock=True), has_machined=True)
NAMES: dict[str, tuple[str, WorkspaceSpec, Surroundings]] = {
    "minimal": ("web", workspace(), CONTAINERS),
    "everything": (
        "my-project",
        everything(vcpus=2, env=(("EDITOR", "it's $(vim)"),), authorized_keys=None),
        CONTAINERS,
    ),
    "nesting": ("web", workspace(nesting=True), CONTAINERS),
    "machine": ("web", workspace(type="vm", vsock=True, mounts=(Mount("/srv/a b", "/src"),)), MACHINES),
    "cloud-hypervisor": ("web", workspace(type="vm"), surroundings(hardware=HARDWARE, has_machined=True)),
}


def rendered(found: Launch) -> str:
    """The script, but for what is not this workspace's own."""
    script = render_script(found, "/usr/bin/python3")
    ending = f"\n{found.dialect}\n{LIBRARY.read_text()}"
    assert script.endswith(ending)
    return script.removesuffix(ending)


@pytest.mark.parametrize(("case", "given"), NAMES.items(), ids=NAMES)
def test_units(case: str, given: tuple[str, WorkspaceSpec, Surroundings]) -> None:
    check_golden_case(f"units/{case}", texts_of(*given), texts_of(*NAMES["minimal"]))


def texts_of(name: str, declared: WorkspaceSpec, host: Surroundings) -> str:
    found = launch_of(name, declared, host)
    parts = {
        found.unit: render_service(found, LAYOUT),
        LAYOUT.slice(name): render_slice(found),
        "run": f"{rendered(found)}\n# … what all of its backend have, and what is the same for all\n",
    }
    shown = "".join(f"==> {title}\n{text}\n" for title, text in parts.items())
    return shown.replace(str(PACKAGE.parent), "/usr/lib/hutch")


def test_it_lies_in_its_slice() -> None:
    assert LAYOUT.slice_cgroup("web") == "hutch.slice/hutch-ws_web.slice"
    assert LAYOUT.cgroup("web") == "hutch.slice/hutch-ws_web.slice/hutch@web.service"
    assert LAYOUT.cgroup("a-b") == "hutch.slice/hutch-ws_a\\x2db.slice/hutch@a-b.service"


def test_no_limit_takes_back_what_was_one() -> None:
    properties = ("CPUQuota=", "MemoryMax=infinity", "MemorySwapMax=infinity", "TasksMax=infinity")
    assert render_limits(Limits()) == properties
    assert render_limits(Limits(2, 1 << 30, 100)) == (
        "CPUQuota=200%",
        "MemoryMax=1073741824",
        "MemorySwapMax=0",
        "TasksMax=100",
    )


def systemd_reads(word: str) -> str:
    """One word of an Exec line, as systemd.syntax(7), systemd.unit(5) and systemd.service(5) say that it is read."""
    assert (
        "\n" not in word
        and not re.search(r"(?<!%)(%%)*%(?!%)", word)
        and not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word)
    )
    word = word.replace("%%", "%").replace("$$", "$")
    if not word.startswith('"'):
        assert not set(word) & set(" '\"\\;")
        return word
    found = re.fullmatch(r'"((?:[^"\\]|\\["\\n])*)"', word)
    assert found, word
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), found[1])


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_word_stays_one_word(text: str) -> None:
    assert systemd_reads(quoted(text)) == text


def test_chains_are_waited_for() -> None:
    steps = [(Step(("one",), "do one"), Step(("two",), "do two", may_fail=True)), (Step(("three",), "do three"),)]
    assert side_by_side(steps) == [
        "{",
        "  chain=0",
        "  step 'do one' one",
        "  attempt 'do two' two",
        "} &",
        "chain0=$!",
        "{",
        "  chain=1",
        "  step 'do three' three",
        "} &",
        "chain1=$!",
        "all_ended $chain0 $chain1",
    ]
    assert side_by_side(steps[1:]) == ["step 'do three' three"]
    assert side_by_side([]) == []


# The script.


def parts(found: Launch) -> dict[str, list[str]]:
    """The functions of its own, each as its lines."""
    bodies = re.findall(r"^(\w+)\(\) \{\n(.*?)^\}$", rendered(found), re.DOTALL | re.MULTILINE)
    return {name: [line.removeprefix("  ") for line in body.splitlines()] for name, body in bodies}


def test_all_that_a_dialect_may_call_is_there() -> None:
    """A function that does nothing where there is nothing to do."""
    bare = launched(
        pre_exec=(), post_start=(), hot_mounts=(), helpers=(), cleanup=(), guards=(), prepare=(), connect=()
    )
    found = parts(bare)
    nothing = ("guard", "prepare", "join", "helpers", "post_start", "shrink", "cleanup")
    assert {name: found[name] for name in nothing} == {name: [":"] for name in nothing}
    assert {"files", "launch", "pre_exec"} <= found.keys()


def test_what_is_held_is_bound_by_a_program() -> None:
    steps = (Step(("enter", "PID", "it's"), "bind it"), Step(("true",), "see that it is"))
    (line,) = parts(launched(pre_exec=steps, start_seconds=90.0))["pre_exec"]
    words = shlex.split(line)
    assert words[-1] == "$@"
    at = words.index("90")
    assert "from hutch.runtime.pre_exec import main" in words[at - 2]
    assert decode_steps(words[at + 1 : -1]) == [(step.why, list(step.argv)) for step in steps]


def test_what_follows_once_there_is_a_pid_1() -> None:
    step = Step(("true",), "do it")
    post_start = (replace(step, argv=("reveal",)), replace(step, argv=("tell", "a b"), may_fail=True))
    mount = HotMount("/a", "/run/a", step, replace(step, argv=("attach", "/a")), step)
    found = launched(post_start=post_start, hot_mounts=(mount,))
    assert parts(found)["post_start"] == [
        "step 'do it' reveal \"$1\"",
        "attempt 'do it' tell 'a b' \"$1\"",
        "step 'do it' attach /a \"$1\"",
    ]
    shows = [line for line in rendered(found).splitlines() if line.startswith("shows=")]
    assert shows == ["shows=yes"]
    assert "shows=''" in rendered(launched(post_start=(), hot_mounts=())).splitlines()


def test_what_is_beside_it_and_what_it_calls() -> None:
    helper = Helper(("serve", "a b"), "share it's", "/run/a socket", 4096)
    balloon = Step(("leave", "5"), "leave it less", may_fail=True)
    found = parts(launched(helpers=(helper,), balloon=balloon, commands={"hear": ("listen", "a b")}))
    assert [shlex.split(line) for line in found["helpers"]] == [
        ["serve", "share it's", "/run/a socket", "4096", "serve", "a b"]
    ]
    assert found["shrink"] == ["attempt 'leave it less' leave 5"]
    (line,) = found["hear"]
    assert shlex.split(line)[-3:] == ["listen", "a b", "$@"]


def test_stages_follow_one_another() -> None:
    stages = ((Step(("a",), "do a"), Step(("b",), "do b")), (Step(("c",), "do c"),))
    lines = parts(launched(connect=stages))["join"]
    assert lines.index("all_ended $chain0 $chain1") < lines.index("step 'do c' c")


def test_files_are_their_owners_alone() -> None:
    made = (File("/run/a b", "it's\n$(x)\n"), File("/run/vm/c", "", 7), File("/run/vm/d", "d", 7))
    lines = files(("/run/x y",), made)
    assert lines[lines.index("umask 077") + 1 :] == [
        "printf %s 'it'\"'\"'s\n$(x)\n' >'/run/a b'",
        "printf %s '' >/run/vm/c",
        "printf %s d >/run/vm/d",
        "umask 022",
        "chown 7:7 -- /run/vm/c /run/vm/d",
    ]
    assert not any("umask" in line for line in files(("/run",), ()))


def test_the_main_process_has_its_seccomp_filter() -> None:
    seccomp = Seccomp(("io_uring_setup",), ("AF_UNIX",))
    assert with_seccomp(launched(seccomp=None, argv=("a", "b")), "python3") == ("a", "b")
    *program, calls, families, one, two = with_seccomp(launched(seccomp=seccomp, argv=("a", "b")), "python3")
    assert "from hutch.seccomp.install import main" in program[-2]
    assert (calls, families) == ("io_uring_setup", "AF_UNIX")
    assert (one, two) == ("a", "b")
    (line,) = parts(launched(seccomp=seccomp, argv=("a b",)))["launch"]
    assert shlex.split(line)[:2] == ["exec", "/usr/bin/python3"] and shlex.split(line)[-1] == "a b"


# The unit.


def test_a_guest_that_cannot_reboot_has_no_code_for_it() -> None:
    def codes(found: Launch) -> list[str]:
        return [line for line in render_service(found, LAYOUT).splitlines() if "ExitStatus=" in line]

    assert codes(launched()) == ["RestartForceExitStatus=133", "SuccessExitStatus=133"]
    assert codes(launched(restart_codes=())) == []


def test_it_starts_with_what_serves_it() -> None:
    lines = render_service(launched(), LAYOUT, {"a.service": "/run/a.pid", "b.service": "/run/b.pid"}).splitlines()
    for name in ("a", "b"):
        assert {f"Wants={name}.service", f"After={name}.service"} <= set(lines)
        (waits,) = (line for line in lines if line.startswith("ExecStartPre=") and f"{name}.service" in line)
        assert waits.endswith(f" sh {name}.service /run/{name}.pid")
    assert not any(line.startswith("ExecStartPre") for line in render_service(launched(), LAYOUT).splitlines())


def test_its_deadlines_and_its_sandbox() -> None:
    lines = render_service(launched(start_seconds=180.0, stop_seconds=7.5, sandbox=("A=b", "C=d")), LAYOUT).splitlines()
    assert {"TimeoutStartSec=180", "TimeoutStopSec=7.5", "A=b", "C=d"} <= set(lines)
