"""`import hutch`: what a program can do with a workspace, awaited or not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import hutch
from hutch.api.job import Call, Job
from hutch.host.services.lock import lock
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

BEGINS = {"container": 5.0, "vm": 20.0}  # seconds within which a command begins, also on a busy machine
EIGHT = tuple(f"w{number}" for number in range(8))


def use(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process use an instance, as its environment says."""
    for name, value in instance.environment().items():
        if name.startswith("HUTCH_"):
            monkeypatch.setenv(name, value)


def layout(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


@pytest.fixture(scope="module")
def one(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web='env = { GREETING = "hello" }', off="")
        instance.up("web")
        instance.hutch("up", "--no-start", "off")
        yield instance


@pytest.fixture
def web(one: Instance) -> hutch.Workspace:
    return hutch.Workspace("web", hutch.Hutch(layout(one)))


@pytest.fixture
def later(web: hutch.Workspace) -> hutch.aio.Workspace:
    return hutch.aio.Workspace("web", web.hutch)


# run


@pytest.mark.vm(slow=True)
def test_output_is_captured_apart(web: hutch.Workspace) -> None:
    result = web.run(["sh", "-c", "echo out; echo err >&2; exit 7"], capture=True, text=True)
    assert result == hutch.Result(("sh", "-c", "echo out; echo err >&2; exit 7"), 7, "out\n", "err\n")
    assert web.run(["printf", r"\377"], capture=True).stdout == b"\xff"
    assert web.run(["printf", r"\377"], capture=True, text=True).stdout == "\N{REPLACEMENT CHARACTER}"


def test_input_and_none(web: hutch.Workspace) -> None:
    data = os.urandom(3 << 20)
    assert web.run(["cat"], input=data, capture=True).stdout == data
    assert web.run(["cat"], input="ü", capture=True, text=True).stdout == "ü"
    assert web.run(["cat"], capture=True, timeout=60).stdout == b""
    assert web.run(["true"], input=data, capture=True).returncode == 0  # which does not want it
    web.run(["sh", "-c", "cat >kept"], input="kept", check=True, timeout=60)  # which says nothing
    assert web.run(["cat", "kept"], capture=True).stdout == b"kept"


@pytest.mark.vm(slow=True)
def test_environment_directory_and_root(web: hutch.Workspace) -> None:
    show = ["sh", "-c", "echo $GREETING $MORE; pwd; id -un"]
    assert web.run(show, env={"MORE": "a b"}, capture=True, text=True).stdout == "hello a b\n/home/dev\ndev\n"
    assert web.run(show, root=True, cwd="/srv", capture=True, text=True).stdout == "hello\n/srv\nroot\n"
    web.run(["mkdir", "-p", "a dir"], check=True)
    assert web.run(["pwd"], cwd="a dir", capture=True, text=True).stdout == "/home/dev/a dir\n"
    missing = web.run(["pwd"], cwd="/no/such", capture=True, text=True)
    assert missing.returncode == 126
    assert "/no/such" in missing.stderr


def test_a_command_that_is_not_there(web: hutch.Workspace) -> None:
    result = web.run(["no-such-command"], capture=True, text=True)
    assert result.returncode == 127
    assert "no-such-command" in result.stderr


def test_check_raises(web: hutch.Workspace) -> None:
    with pytest.raises(hutch.RunFailed) as failed:
        web.run(["sh", "-c", "echo why >&2; exit 3"], capture=True, check=True)
    assert (failed.value.result.returncode, failed.value.result.stderr) == (3, b"why\n")
    assert (failed.value.brief, failed.value.details) == ("web: sh failed with code 3", "why")
    assert isinstance(failed.value, hutch.HutchError)


def is_running(web: hutch.Workspace, pattern: str) -> bool:
    return web.run(["pgrep", "-f", pattern], root=True, capture=True).returncode == 0


def wait_until(condition: Callable[[], bool], patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


STUBBORN = "trap '' INT TERM HUP QUIT; echo begun; while :; do sleep 0.{number}1; done"


@pytest.mark.vm(slow=True)
def test_a_timeout_kills_what_runs_inside(web: hutch.Workspace, workspace_type: str) -> None:
    """Also what ignores every signal that can be ignored."""
    begun = time.monotonic()
    with pytest.raises(hutch.RunTimeout) as failed:
        web.run(["sh", "-c", STUBBORN.format(number=1)], capture=True, text=True, timeout=BEGINS[workspace_type])
    assert time.monotonic() - begun < 60
    assert failed.value.result.stdout == "begun\n"
    assert not is_running(web, "[s]leep 0.11")


def test_a_timeout_without_capture(web: hutch.Workspace, workspace_type: str) -> None:
    with pytest.raises(hutch.RunTimeout):
        web.run(["sh", "-c", STUBBORN.format(number=2)], timeout=BEGINS[workspace_type])
    assert not is_running(web, "[s]leep 0.21")


def test_what_is_left_behind_is_not_waited_for(web: hutch.Workspace) -> None:
    result = web.run(["sh", "-c", "setsid sleep 4319 & echo done"], capture=True, text=True, timeout=60)
    assert result.stdout == "done\n"
    web.run(["pkill", "-f", "[s]leep 4319"], check=True)


def test_endless_output_is_cut(web: hutch.Workspace) -> None:
    with pytest.raises(hutch.RunFailed, match="wrote more than 1000000 bytes"):
        web.run(["yes"], capture=True, max_output=1_000_000)
    assert not is_running(web, "^yes$")


def test_streams_are_the_callers_otherwise(one: Instance) -> None:
    program = "import hutch; r = hutch.Workspace('web').run(['sh', '-c', 'cat; echo err >&2; exit 5']); print(r)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        input="words\n",
        capture_output=True,
        text=True,
        timeout=60,
        env=one.environment(),
    )
    assert result.stdout.splitlines() == [
        "words",
        "Result(argv=('sh', '-c', 'cat; echo err >&2; exit 5'), returncode=5, stdout=None, stderr=None)",
    ]
    assert result.stderr == "err\n"


@pytest.mark.parametrize("argv", [[], "ls -l", ["a\0b"]])
def test_what_is_no_command(argv: list[str], web: hutch.Workspace) -> None:
    with pytest.raises(hutch.UsageError):
        web.run(argv)
    with pytest.raises(hutch.UsageError):
        web.run(["true"], env={"A=B": ""})


def test_a_workspace_that_does_not_run(one: Instance) -> None:
    with pytest.raises(hutch.HutchError, match="off is stopped"):
        hutch.Workspace("off", hutch.Hutch(layout(one))).run(["true"])
    with pytest.raises(hutch.UsageError, match="there is no workspace absent"):
        hutch.Workspace("absent", hutch.Hutch(layout(one))).run(["true"])


def test_somebody_else_than_root(one: Instance) -> None:
    program = "import hutch\ntry: hutch.Workspace('web').run(['true'])\nexcept hutch.HutchError as e: print(e)"
    account = one.world.accounts["alice"]
    result = subprocess.run(
        account.command(sys.executable, "-c", program),
        capture_output=True,
        text=True,
        timeout=60,
        env=one.environment(as_user="alice"),
        cwd="/",
    )
    assert result.stdout == "this needs root: run it with sudo or doas\n", result.stderr


@pytest.mark.vm(slow=True)
def test_a_caller_that_is_killed_leaves_nothing(one: Instance, web: hutch.Workspace) -> None:
    program = f"import hutch; hutch.Workspace('web').run(['sh', '-c', {STUBBORN.format(number=3)!r}], capture=True)"
    process = subprocess.Popen([sys.executable, "-c", program], env=one.environment())
    wait_until(lambda: is_running(web, "[s]leep 0.31"))
    process.send_signal(signal.SIGKILL)
    process.wait(15)
    wait_until(lambda: not is_running(web, "[s]leep 0.31"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_whose_caller_ends_is_undone(one: Instance, number: signal.Signals) -> None:
    engine = hutch.Hutch(layout(one))
    process = subprocess.Popen(
        [sys.executable, "-c", "import hutch; hutch.Workspace('off').start()"],
        env=one.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_until(lambda: engine.status("off")["state"] == "starting")
        process.send_signal(number)
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert ("KeyboardInterrupt" in process.stderr.read()) is (number == signal.SIGINT)
    wait_until(lambda: engine.status("off")["state"] == "stopped", 60)


def test_threads_run_side_by_side(web: hutch.Workspace) -> None:
    """Each waits for all others to have begun."""
    web.run(["sh", "-c", "rm -rf meet; mkdir meet"], check=True)
    script = 'touch meet/$0; while [ "$(ls meet | wc -l)" -lt 6 ]; do sleep 0.05; done; echo $0'
    with ThreadPoolExecutor(6) as pool:
        found = list(
            pool.map(lambda n: web.run(["sh", "-c", script, str(n)], capture=True, text=True, timeout=60), range(6))
        )
    assert [result.stdout for result in found] == [f"{n}\n" for n in range(6)]


def test_no_descriptor_and_no_process_stays(web: hutch.Workspace) -> None:
    def look() -> tuple[int, int, int]:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), len(children), threading.active_count()

    web.run(["true"])
    before = look()
    web.run(["echo"], capture=True)
    with pytest.raises(hutch.RunTimeout):
        web.run(["sleep", "60"], capture=True, timeout=1)
    asyncio.run(hutch.aio.Workspace("web", web.hutch).run(["true"], capture=True))
    wait_until(lambda: look() == before)


# Awaited


def test_awaited_run(later: hutch.aio.Workspace) -> None:
    async def main() -> None:
        result = await later.run(["cat"], input="words", capture=True, text=True, check=True)
        assert result.stdout == "words"
        assert (await later.status())["state"] == "running"
        with pytest.raises(hutch.RunFailed):
            await later.run(["false"], check=True)
        with pytest.raises(hutch.RunTimeout):
            await later.run(["sleep", "60"], timeout=1)

    asyncio.run(main())


@pytest.mark.vm(slow=True)
def test_a_cancelled_run_kills_its_command(web: hutch.Workspace, later: hutch.aio.Workspace) -> None:
    async def main() -> None:
        running = asyncio.create_task(later.run(["sh", "-c", STUBBORN.format(number=4)], capture=True))
        while not (await later.run(["pgrep", "-f", "[s]leep 0.41"], capture=True)).stdout:
            await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not (await later.run(["pgrep", "-f", "[s]leep 0.41"], capture=True)).stdout
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # before it has begun
                await later.run(["sleep", "4318"], capture=True)
        assert not (await later.run(["pgrep", "-f", "[s]leep 4318"], capture=True)).stdout

    asyncio.run(main())


def test_the_event_loop_goes_on(later: hutch.aio.Workspace) -> None:
    async def main() -> float:
        longest, stop = 0.0, False

        async def watch() -> None:
            nonlocal longest
            while not stop:
                begun = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - begun)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(later.run(["sleep", "1"], capture=True) for _ in range(4)))
        stop = True
        await watching
        return longest

    assert asyncio.run(main()) < 0.5


@pytest.mark.vm(slow=True)
def test_up_and_stop_are_awaited(one: Instance) -> None:
    told: list[tuple[str, str]] = []
    off = hutch.aio.Workspace(
        "off", hutch.Hutch(layout(one), listen=lambda name, event, text: told.append((name, event)))
    )

    async def main() -> None:
        await off.start()
        assert (await off.status())["state"] == "running"
        await off.stop()
        assert (await off.status())["state"] == "stopped"
        with pytest.raises(hutch.UsageError):
            await hutch.aio.Workspace("absent", off.hutch).start()

    asyncio.run(main())
    assert [event for event in told if event[1] != "warning"] == [("off", "ready"), ("off", "stopped")]


def test_a_cancelled_start_stops_what_is_not_ready(one: Instance) -> None:
    off = hutch.aio.Workspace("off", hutch.Hutch(layout(one)))

    async def cancelled() -> str:
        """The state after a start that was called off while it was under way, as far as one could see."""
        starting = asyncio.create_task(off.start())
        while (await off.status())["state"] != "starting":
            assert not starting.done()
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return str((await off.status())["state"])

    async def main() -> None:
        for _ in range(5):
            if (state := await cancelled()) == "stopped":
                break
            assert state == "running"  # it was ready before the word came
            await off.stop()
        else:
            pytest.fail("it was always ready first")
        await off.start()  # and nothing is in the way of the next one
        await off.stop()

    asyncio.run(main())


@pytest.mark.slow
def test_eight_workspaces_at_once(
    make_instance: Callable[..., Instance], workspace_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the module's own functions; the commands in the eight wait for each other in a directory that all share."""
    instance = make_instance()
    meeting = instance.directory / "meeting"
    meeting.mkdir()
    os.chown(meeting, 1000, 1000)
    mount = f'mounts = [{{ source = "{meeting}", target = "/srv/meeting" }}]'
    instance.declare(workspace_type, **dict.fromkeys(EIGHT, mount))
    use(instance, monkeypatch)
    script = "touch /srv/meeting/$(hostname); while [ $(ls /srv/meeting | wc -l) -lt 8 ]; do sleep 0.05; done; hostname"

    async def main() -> list[str]:
        config = await hutch.aio.load(instance.file)
        assert [a.action for a in (await hutch.aio.plan(config)).actions] == ["create"] * 8
        told: list[str] = []
        plan = await hutch.aio.up(config, listen=lambda name, event, text: told.append(f"{name} {event}"))
        assert [a.workspace for a in plan.actions] == list(EIGHT)
        ours = [line for line in told if line != " waiting"]  # for a tier that runs beside this one
        assert sorted(ours) == [f"{name} ready" for name in EIGHT]
        workspaces = [hutch.aio.Workspace(name) for name in EIGHT]
        runs = (w.run(["sh", "-c", script], capture=True, text=True, timeout=120, check=True) for w in workspaces)
        return [result.stdout.strip() for result in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == list(EIGHT)
    assert not hutch.plan(hutch.load(instance.file)).changes


def test_threads_change_one_host_in_turn(instance: Instance, workspace_type: str) -> None:
    """Two threads of a program hold the locks of a hutch as two programs would."""
    instance.declare(workspace_type, a="", b="")
    instance.hutch("up", "--no-start")
    engine = hutch.Hutch(layout(instance))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: hutch.Workspace(name, engine).start(), ("a", "b")))
        assert [engine.status(name)["state"] for name in ("a", "b")] == ["running", "running"]
        list(pool.map(lambda name: hutch.Workspace(name, engine).stop(), ("a", "b")))


def test_the_callers_umask_is_no_matter(
    instance: Instance, workspace_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.declare(workspace_type, a="")
    use(instance, monkeypatch)
    before = os.umask(0o077)
    try:
        hutch.up(hutch.load(instance.file))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    instance.ssh("a", as_user="alice")
    assert (instance.state / "workspaces").stat().st_mode & 0o005 == 0o005


def test_who_is_behind_sudo_is_known_to_all_calls(
    instance: Instance, workspace_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `plan` says, which happens in this process, is what `up` does in its own."""
    instance.declare(workspace_type, a="")
    use(instance, monkeypatch)
    monkeypatch.setenv("SUDO_UID", "1001")
    config = hutch.load(instance.file)
    assert hutch.plan(config, start=False).to_json() == hutch.up(config, start=False).to_json()
    assert not hutch.plan(config, start=False).changes
    assert os.stat(hutch.Workspace("a").status()["home"]).st_uid == 1001


def test_who_waits_for_another_hutch_is_told(instance: Instance, workspace_type: str) -> None:
    instance.declare(workspace_type, a="")
    instance.hutch("up", "--no-start")
    told: list[tuple[str, str, str]] = []
    done = threading.Event()

    def listen(name: str, event: str, text: str) -> None:
        told.append((name, event, text))
        done.set()

    engine = hutch.Hutch(layout(instance), listen=listen)
    with ThreadPoolExecutor() as pool:
        with lock(engine.layout):
            stopping = pool.submit(hutch.Workspace("a", engine).stop)
            assert done.wait(60)
        stopping.result(60)
    assert [(name, event) for name, event, _ in told] == [("", "waiting"), ("a", "stopped")]
    assert f"(pid {os.getpid()}, since " in told[0][2]


def test_a_call_whose_process_is_killed_says_so(instance: Instance) -> None:
    """Also when it has not read what it was sent."""
    with closing(Job(Call(layout(instance), "stop", {"names": ["a" * (1 << 17)]}))) as job:
        job.process.kill()
        with pytest.raises(hutch.HutchError, match="a process of hutch's own was killed by SIGKILL"):
            job.result()
