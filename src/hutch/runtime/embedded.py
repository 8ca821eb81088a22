"""The embedded supervisor: one small process that runs one Launch, for hosts without systemd.

It is started in the mount and network namespaces that the Launch needs, by runtime/control, and ends
with its workspace. It keeps nothing in memory that matters: what others must know stands in the status
file; if it is killed, the kernel asks the main process to stop (SIGTERM, as the parent-death signal), and the
mounts go with the last process in their namespace. As long as it lives, it holds a lock: see runtime/control.

Imports stay few, since every workspace pays for them in start-up time and memory; hence no subprocess.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from functools import partial

from hutch.host.services.process import start_time
from hutch.host.storage.mountinfo import observe_mountinfo, parse_mountinfo
from hutch.runtime.console import Log
from hutch.runtime.entry import Boot
from hutch.runtime.grafts import Grafts
from hutch.runtime.limits import control_files
from hutch.runtime.renewal import resize
from hutch.runtime.sources import open_sources
from hutch.runtime.status import first_words, write_status
from hutch.runtime.steps import CalledOff, SideBySide, StartFailed

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from hutch.host.services.cgroup import Cgroup
    from hutch.runtime.console import Console
    from hutch.runtime.main_process import Helper, Main
    from hutch.runtime.sources import Said, Source


LOG_BYTES = 1 << 20
PIPE_BYTES = 1 << 16  # as many as a pipe holds
CLEANUP_SECONDS = 10.0
REBOOT_SECONDS = 5.0  # from one boot to the next, at least
HELPER_GRACE = 5.0  # seconds between the end of a helper and that of the machine which it belonged to
RESET, PANIC = "guest-reset", "guest-panic"  # QMP's words
RETRY_SECONDS = 2.0  # until a status that could not be written is tried again


class Supervisor:
    """Runs one Launch to its end."""

    def __init__(self, runtime: str, cgroup: Cgroup, report: int) -> None:
        self.launch: dict[str, Any] = {}
        self.runtime = runtime
        self.report = report
        self.log = Log(f"{runtime}/machine.log", LOG_BYTES)
        self.cgroup = cgroup
        self.stop_requests = 0
        self.overran = False
        self.is_unsaid = self.is_renewed = False
        self.status = first_words(os.getpid())

    # What others see.

    def enter(self, state: str, reason: str = "") -> None:
        self.status |= {"state": state, "reason": reason, "since": time.time()}
        self._say()

    def _say(self) -> None:
        """Write the status. That it cannot be written does not decide over a guest that runs; it is tried again."""
        try:
            write_status(f"{self.runtime}/status.json", self.status)
            self.is_unsaid = False
        except OSError as error:
            self.is_unsaid = True
            self.log.note(f"the status cannot be written: {error}")

    def tell(self, event: str, text: str = "") -> None:
        """One line to the command that started us, if it still listens."""
        if self.report < 0:
            return
        try:
            os.write(self.report, (json.dumps({"event": event, "text": text}) + "\n").encode())
        except OSError:
            pass
        if event in ("ready", "failed"):
            os.close(self.report)
            self.report = -1

    # The whole life.

    def run(self, boot: Boot) -> int:
        """From a first boot that has begun to the end of the last."""
        wake, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_renewal)
        self.wake = wake
        reason, state, remark = "", "stopped", ""
        try:
            while self._run_once(boot):
                self._unmount()
                if self.is_renewed:
                    self._renew(())
                boot = Boot(self.runtime, self.cgroup, self.launch, wake=self.wake, is_off=lambda: self.stop_requests)
            remark = "" if self.stop_requests else "it powered off by itself"
        except CalledOff as error:
            reason = str(error)
        except (StartFailed, OSError) as error:
            reason, state = str(error), "failed"
        self.cgroup.leave()
        self.cgroup.remove()
        if any(self.cgroup.is_populated(group) for group in ("machine", "exec")):
            reason, state = f"some of its processes cannot be ended; {reason}".rstrip("; "), "failed"
        self.enter(state, reason if state == "failed" else remark)
        self.log.close()
        if reason:
            self.tell("failed", reason)
        return 1 if state == "failed" else 0

    def _unmount(self) -> None:
        """Before the next boot: what was mounted for the last one, or each reboot would keep a root's worth of memory.
        After the last boot the mounts end with this process."""
        private = f"{self.runtime}/"
        ours = [point for _, _, point, _, _ in parse_mountinfo(observe_mountinfo()) if point.startswith(private)]
        chains = (*self.launch["prepare"], *self.launch["connect"])
        mounted = [step["argv"][-1] for chain in chains for step in chain if step["argv"][0] == "mount"]
        system = [point for point in mounted if not point.startswith(private)]  # over the host's: one of ours on each
        steps = [
            {"argv": ["umount", "--lazy", point], "why": f"unmount {point}", "may_fail": False}
            for point in (*reversed(ours), *reversed(system))
        ]
        SideBySide([steps]).finish(time.monotonic(), CLEANUP_SECONDS)

    def _on_stop(self, number: int, frame: object) -> None:
        self.stop_requests += 1

    # A Launch that differs in what needs no restart.

    def _on_renewal(self, number: int, frame: object) -> None:
        self.is_renewed = True

    def _wake_up(self, sources: Iterable[Source]) -> None:
        """A signal has come."""
        os.read(self.wake, 64)
        if self.is_renewed:
            self._renew(sources)

    def _renew(self, sources: Iterable[Source]) -> None:
        """Take up the Launch that lies there now: its limits at once, all else when the guest boots again."""
        from pathlib import Path

        from hutch.runtime.launched import read_launch

        self.is_renewed = False
        launch = read_launch(Path(self.runtime, "launch.json"))
        if launch is None:  # whoever wrote it waits in vain for the revision, and says so
            self.log.note("the new launch cannot be read")
            return
        self.launch = launch
        limits = self.launch["limits"]
        complaints = {
            "memory": self._leave_memory(sources),
            "mounts": self._renew_grafts(),
            "disk": self._resize_root(),
        }
        used = self.cgroup.memory_in_use()
        if limits["memory"] and used is not None and used > limits["memory"]:
            # The kernel would end processes of the guest's to make room.
            complaints["memory"] = f"{used >> 20} MiB are in use; that much has to be given up first"
            limits = {**limits, "memory": used}
        self._warn(self.cgroup.limit(control_files(limits, is_renewal=True)))
        self.status |= {"revision": self.launch["revision"], "complaints": complaints}
        self._say()

    def _leave_memory(self, sources: Iterable[Source]) -> str:
        """Give a machine the memory that its Launch leaves it. Returns why not."""
        size, whole = self.launch["balloon"], self.launch["memory"]
        if size is None:
            return ""
        answers = [source.leave_memory(size, whole) for source in sources]
        return next((answer for answer in answers if answer is not None), "nothing here can change it")

    def _resize_root(self) -> str:
        return resize(self.launch["resize"])

    def _renew_grafts(self) -> str:
        """Show a container what its Launch shows it, and nothing else. Returns why not."""
        pid, started = self.status["leader"] or (0, None)
        try:
            if started is not None and start_time(pid) == started:
                self.grafts.renew(self.launch["grafts"], pid)
        except (StartFailed, OSError) as error:
            return str(error)
        return ""

    def _run_once(self, boot: Boot) -> bool:
        """See a boot to its end, and clean up. True when the guest asked for a reboot."""
        main, self.launch = boot.main, boot.launch
        self.outcome = self.broken = ""
        self.was_killed = has_left = False
        self.grafts = Grafts()
        sources: list[Source] = []
        try:
            if boot.failure is not None or main is None:
                raise boot.failure or CalledOff
            console = main.open_console(self.log)
            self._warn(boot.missing)
            self.cgroup.join("supervisor")
            has_left = True
            spare_from_memory(True)
            sources = open_sources(main, self.launch["library"])
            if complaint := self._leave_memory(sources):
                self.log.note(complaint)
            self._serve(main, boot, console, sources)
            was_ready = self.status["state"] != "starting"
            if not self.stop_requests:
                self.enter("stopping")  # nobody is to take it for running while its end is seen to
            returncode = main.wait()
            for source in sources:
                self._hear(source.last_words(), boot.begun)
        finally:
            spare_from_memory(False)
            if not has_left:
                self.cgroup.make("supervisor")
                self.cgroup.join("supervisor")
            self.cgroup.kill("machine")
            self.status["leader"] = None
            for source in sources:
                source.close()
            if main is not None:
                main.close()
            for helper in boot.helpers:
                helper.close()
            if boot.said >= 0:
                self._hear_helpers(boot.said)
                os.close(boot.said)
            self.cgroup.kill("exec")
            self.cgroup.remove("machine")
            try:
                SideBySide([self.launch.get("cleanup", ())]).finish(time.monotonic(), CLEANUP_SECONDS)
            except StartFailed as error:
                self.log.note(str(error))
        return self._judge(returncode, was_ready) and self._pause(boot.begun)

    def _warn(self, missing: list[str]) -> None:
        """Say which limits are not in force."""
        if self.launch["links"]:  # a machine's hardware holds without
            return
        keys = {"cpu.max": "cpus", "memory.max": "memory"}
        limits = self.launch["limits"]
        unenforced = [keys[name] for name in missing if name in keys and limits[keys[name]]]
        self.status["warnings"] = []
        if unenforced:
            what = " and ".join("vcpus" if key == "cpus" else key for key in unenforced)
            text = f"this host's cgroups cannot limit {what}: the workspace may use all of it"
            self.status["warnings"] = [text]
            self.tell("warning", text)

    def _pause(self, begun: float) -> bool:
        """Before the next boot: a guest that reboots without end is not to keep the host busy. False when it is
        stopped meanwhile."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        while not self.stop_requests and (left := begun + REBOOT_SECONDS - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                os.read(descriptor, 64)
        return not self.stop_requests

    def _judge(self, returncode: int, was_ready: bool) -> bool:
        """What the end of the main process means. True for a reboot; StartFailed for what nobody asked for."""
        if self.overran:
            raise StartFailed(f"not ready after {self.launch['start_seconds']:g} s{self._last_words()}")
        if self.outcome == PANIC:
            raise StartFailed(f"the guest's kernel panicked{self._last_words()}")
        is_reboot = returncode in self.launch["restart_codes"] or self.outcome == RESET
        if is_reboot and not self.stop_requests:
            if not was_ready:
                raise StartFailed(f"the guest rebooted before it was ready{self._last_words()}")
            self.log.note("the guest asked for a reboot")
            self.enter("starting", "rebooting")
            return True
        if self.broken and self.was_killed:
            raise StartFailed(f"{self.broken}{self._last_words()}")
        if returncode and not self.stop_requests:
            how = f"ended with code {returncode}" if returncode > 0 else f"was killed by {_signal_name(-returncode)}"
            raise StartFailed(f"{self.launch['backend']} {how}{self._last_words()}")
        if not was_ready and not self.stop_requests:
            raise StartFailed(f"the guest ended before it was ready{self._last_words()}")
        return False

    def _last_words(self) -> str:
        tail = self.log.tail(12)
        return f"; the end of its log:\n{tail}" if tail else ""

    def _serve(self, main: Main, boot: Boot, console: Console, sources: list[Source]) -> None:
        """Wait for whatever comes first, until the main process has ended."""
        poll = select.poll()
        self.deadline: float | None = boot.begun + self.launch["start_seconds"]

        def hear(source: Source) -> None:
            self._hear(source.hear(), boot.begun)
            if source.is_spent:
                poll.unregister(source.fileno())

        handlers: dict[int, Callable[[], object]] = {
            self.wake: partial(self._wake_up, sources),
            **{source.fileno(): partial(hear, source) for source in sources},
            **{helper.pidfd: partial(self._lose, helper, poll) for helper in boot.helpers},
            **({boot.said: partial(self._hear_helpers, boot.said, poll)} if boot.helpers else {}),
        }
        for descriptor in (main.pidfd, *handlers):
            poll.register(descriptor, select.POLLIN)
        console.register(poll)
        asked = 0
        while True:
            for descriptor, _ in poll.poll(self._patience()):
                if descriptor == main.pidfd:
                    console.drain()
                    return
                if descriptor in handlers:
                    handlers[descriptor]()
                else:
                    console.handle(descriptor, poll)
            if self.is_unsaid:
                self._say()
            if self.stop_requests > asked:
                asked = self.stop_requests
                self.enter("stopping")
                sources[0].power_off()
                self.deadline = time.monotonic() + self.launch["stop_seconds"]
            else:
                self._mind_deadline()

    def _mind_deadline(self) -> None:
        """By force, when its time is over."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.overran = not self.stop_requests and not self.broken
            self.was_killed = True
            self.cgroup.kill("machine")
            self.deadline = None

    def _patience(self) -> float | None:
        """Milliseconds to wait for something to happen."""
        left = [] if self.deadline is None else [max(0.0, self.deadline - time.monotonic())]
        if self.is_unsaid:
            left.append(RETRY_SECONDS)
        return min(left) * 1000 if left else None

    def _lose(self, helper: Helper, poll: select.poll) -> None:
        """A helper has ended."""
        poll.unregister(helper.pidfd)
        if not self.broken and not self.outcome and not self.stop_requests:
            # Unless it ends since the machine does, which then ends in a moment.
            self.broken = f"the process beside it {helper.close()}: {helper.why}"
            self.deadline = time.monotonic() + HELPER_GRACE

    def _hear_helpers(self, said: int, poll: select.poll | None = None) -> None:
        """Take all that the helpers have said by now."""
        try:
            data = os.read(said, PIPE_BYTES)
        except BlockingIOError:
            return
        self.log.write(data)
        if not data and poll is not None:
            poll.unregister(said)  # none of them can say more

    def _hear(self, said: Iterable[Said], begun: float) -> None:
        """Take what a guest says."""
        for what, text in said:
            if what == "leader":
                self.status["leader"] = [int(text), start_time(int(text))]
                self.grafts.show(self.launch["inward"], self.launch["grafts"], int(text))
            elif what == "outcome":
                self.outcome = text
            elif what == "note":
                self.log.note(text)
            elif what == "ready" and self.status["state"] == "starting":
                if text:
                    self.log.note(f"ready, says the guest over {text}")
                self.status["ready_seconds"] = round(time.monotonic() - begun, 3)
                self.enter("running")
                self.tell("ready")
                self.deadline = None


def spare_from_memory(is_spared: bool) -> None:
    """Whether the kernel is to end something else of the workspace when that has no memory left: the supervisor may
    well be larger than each of a guest's thousand processes. Those are never spared, so it counts only while none is
    started."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-900" if is_spared else "0")
    except OSError:
        pass  # it takes a capability that root in a container of somebody's may lack


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal: all but the first and the last have no name
        return f"signal {number}"
