"""One hutch of its own on the host under test: state, runtime directory, network, and a hutch.toml to write.

Everything goes through the command line, as a real process with a deadline; no test calls into hutch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.host.hung import look_at_machines
from tests.support import world_files
from tests.support.world import World

Completed = subprocess.CompletedProcess[str]

LONG = 120.0  # seconds, after which a machine that starts is asked what it does
PROBE = Path(__file__).with_name("guest_probe.py")
HUTCH = (sys.executable, "-m", "hutch")
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10")

# One image for the whole tier. Its setup needs the world's internet, so building it is a test too.
DEFAULTS = """
packages = ["curl", "dnsutils", "git", "iproute2", "iputils-ping", "python3", "rsync"]
setup = '''
set -eu
curl --fail --silent --show-error --max-time 20 http://public.example/ > /etc/built-by-setup
'''
"""


@dataclass(frozen=True)
class Target:
    """Something to try to reach. `port` 0 is a ping."""

    name: str
    host: str
    port: int = 0
    protocol: str = "tcp"
    source: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "protocol": self.protocol,
            "source": self.source,
        }


@dataclass
class Instance:
    """A hutch with directories of its own, run as `program`. `close` removes whatever it made."""

    program: ClassVar[tuple[str, ...]] = HUTCH

    world: World
    number: int
    images: Path | None = None
    defaults: str = DEFAULTS
    vcpus: str = "vcpus = 1\n"
    """What machines have that do not say it. Where the host is busy, two emulated processors that wait for each other
    compute a third more until they are ready than one does."""

    def __post_init__(self) -> None:
        for directory in (self.state, self.directory):
            directory.mkdir()
            directory.chmod(0o755)
        if self.images is not None:
            (self.state / "images").mkdir()
            subprocess.run(["mount", "--bind", self.images, self.state / "images"], check=True, timeout=10)

    @property
    def state(self) -> Path:
        return self.world.directory / f"state-{self.number}"

    @property
    def run(self) -> Path:
        return Path(f"/run/hutch-test-{self.number}")

    @property
    def directory(self) -> Path:
        return self.world.directory / f"project-{self.number}"

    @property
    def file(self) -> Path:
        return self.directory / "hutch.toml"

    @property
    def subnet(self) -> str:
        return f"192.168.{100 + self.number}.0/24"

    @property
    def gateway(self) -> str:
        return f"192.168.{100 + self.number}.1"

    # The file.

    def write(self, body: str) -> None:
        """A hutch.toml with this instance's network and the tier's image, and `body` after them."""
        self.file.write_text(f'[network]\nsubnet = "{self.subnet}"\n[defaults]\n{self.defaults}\n{body}')

    def declare(self, workspace_type: str, **workspaces: str) -> None:
        """A hutch.toml of these workspaces; each value is its table's further lines."""
        tables = []
        for name, keys in workspaces.items():
            vcpus = self.vcpus if workspace_type == "vm" and "vcpus" not in keys else ""
            tables.append(f'[workspaces.{name}]\ntype = "{workspace_type}"\n{vcpus}{keys}\n')
        self.write("".join(tables))

    # The command line.

    def environment(self, extra: Mapping[str, str] | None = None, as_user: str = "root") -> dict[str, str]:
        own = {"HUTCH_STATE_DIR": str(self.state), "HUTCH_RUN_DIR": str(self.run)}
        python = {name: os.environ[name] for name in ("PYTHONPATH", "COVERAGE_PROCESS_START") if name in os.environ}
        return {**self.world.accounts[as_user].environment(), **python, **own, **(extra or {})}

    def hutch(
        self,
        *arguments: str,
        check: bool = True,
        stdin: str = "",
        timeout: float = 240.0,  # longer than anything of hutch takes to give up, so that it can say why
        as_user: str = "root",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Completed:
        """Run the command line to its end, in the directory of the project or another one."""
        argv, looked = self.world.accounts[as_user].command(*self.program, *arguments), ""
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=cwd or self.directory,
            env=self.environment(env, as_user),
        )
        with process:
            try:
                said = process.communicate(stdin, timeout=min(timeout, LONG))
            except subprocess.TimeoutExpired:
                looked = look_at_machines(self.run)
                try:
                    said = process.communicate(timeout=max(0.0, timeout - LONG))
                except subprocess.TimeoutExpired as late:
                    process.kill()
                    raise AssertionError(f"{late}\n{looked}\n{self.last_words()}") from None
            except BaseException:
                process.kill()
                raise
        result = subprocess.CompletedProcess(argv, process.returncode, *said)
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        # Of a tier that runs beside this one: nobody of this host's can be seen to hold the lock of all hutches.
        result.stderr = result.stderr.replace("hutch: waiting for another hutch\n", "")
        if check:
            assert result.returncode == 0, f"{explain(('hutch', *arguments), result)}\n{looked}"
        return result

    def last_words(self) -> str:
        """What the workspaces are doing and the ends of their logs, for a test that waited in vain."""
        logs = sorted(self.run.glob("workspaces/*/machine.log"))
        ends = [f"{log}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
        processes = subprocess.run(
            ["ps", "-eo", "pid,ppid,stat,pcpu,etime,wchan:24,args"], capture_output=True, text=True, timeout=10
        ).stdout
        return "\n".join([*ends, processes])

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        """Start the command line and return at once."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = self.environment()
        return subprocess.Popen(
            [*self.program, *arguments], cwd=self.directory, env=environment, **{**streams, **options}
        )

    def up(self, *names: str) -> Completed:
        return self.hutch("up", *names)

    def status(self, name: str) -> dict[str, Any]:
        found = [item for item in json.loads(self.hutch("status", name, "--json").stdout) if item["name"] == name]
        assert len(found) == 1, found
        assert isinstance(found[0], dict)
        return found[0]

    def plan(self, *names: str) -> dict[str, dict[str, Any]]:
        """The planned actions by workspace."""
        actions = json.loads(self.hutch("plan", "--json", *names).stdout)["actions"]
        return {action["workspace"]: action for action in actions}

    def names(self) -> list[str]:
        """The workspaces that exist, not those that are only declared."""
        return [item["name"] for item in json.loads(self.hutch("ls", "--json").stdout) if item["state"] != "absent"]

    # Inside a workspace.

    def inside(
        self, name: str, *argv: str, root: bool = False, check: bool = True, stdin: str = "", timeout: float = 60.0
    ) -> Completed:
        """Run a command in a workspace by `hutch exec`."""
        options = ["--root"] if root else []
        return self.hutch("exec", *options, name, "--", *argv, check=check, stdin=stdin, timeout=timeout)

    def ssh(self, name: str, command: str = "true", *, as_user: str = "root", check: bool = True) -> Completed:
        """Plain ssh, as any account would use it; the environment holds nothing of hutch's."""
        # Which of two hutches ssh finds first is chance; a test that depends on it must not pass by luck.
        drop_ins = Path("/etc/ssh/ssh_config.d").glob("*hutch*")
        homonyms = [path for path in drop_ins if f"Host workspace-{name}\n" in path.read_text()]
        assert len(homonyms) < 2, f"two hutches of this host have a workspace {name}"
        account = self.world.accounts[as_user]
        result = subprocess.run(
            account.command("ssh", *SSH_OPTIONS, f"workspace-{name}", command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            cwd="/",
            env=account.environment(),
        )
        if check:
            assert result.returncode == 0, explain(("ssh", f"workspace-{name}", command), result)
        return result

    def probe(
        self, name: str, targets: Iterable[Target], *, patience: float = 1.5, around: tuple[str, str] = (":", ":")
    ) -> dict[str, str]:
        """Try every target from inside, as root, at once; what each answered, "" for one that was not reached. `around`
        are shell commands to run there before and after."""
        wanted = json.dumps([target.as_json() for target in targets])
        before, after = around
        script = f'{before}; python3 -c "$@" >/run/answers; {after}; cat /run/answers'
        result = self.inside(name, "sh", "-c", script, "sh", PROBE.read_text(), wanted, str(patience), root=True)
        answers = json.loads(result.stdout)
        assert isinstance(answers, dict)
        return answers

    # The end.

    def remove_all(self) -> None:
        for name in self.names():
            self.hutch("rm", "--purge", "--force", name)

    def close(self) -> None:
        """Remove every workspace by hutch itself, then this instance's directories, whatever is left in them."""
        try:
            self.remove_all()
        finally:
            for directory in (self.state, self.directory):
                world_files.remove_directory(directory)


def explain(argv: Sequence[str], result: Completed) -> str:
    """A failed command as a person wants to read it."""
    return f"{' '.join(argv)}: code {result.returncode}\n{result.stdout}\n{result.stderr}"
