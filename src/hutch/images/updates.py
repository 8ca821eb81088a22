"""Asks archives for the security updates of images, and keeps the answers for commands that only read (see state).

apt compares the versions. mmdebstrap sets it up for a distribution as for a build, with no source but the archive of
security updates. A tree is not trusted, so its list of packages is read here, and apt gets one that is made of that.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from hutch.files import kept_open, reopen_regular
from hutch.images.build import SCRIPTS, find_keyring, run_mmdebstrap
from hutch.images.cache import locked, new_scratch, prepare_directory
from hutch.images.kernel import read_list
from hutch.images.machine import machine_directory
from hutch.images.progress import Meter, no_progress
from hutch.images.recipe import DISTRIBUTIONS
from hutch.images.record import observe_images
from hutch.run import CommandFailed
from hutch.spec.names import Layout
from hutch.spec.record import Age, iso
from hutch.state import read_ages, write_ages
from hutch.trees.cursor import PINNED, open_strictly, opened

DAY = timedelta(days=1)
ASK_SECONDS = 120.0
LARGEST_STATUS = 16 << 20  # bytes; the list of a desktop has 5 MiB
LARGEST_ENTRY = 64 << 10
NAME = "ages"  # the name of the lock and of the scratch directory
HOOK = SCRIPTS / "updates.sh"
FIELD = re.compile(r"^(Package|Status|Architecture|Version): ([^ \n].*)$", re.MULTILINE)
ENTRY = re.compile(r"(?:.++\n?)++")  # possessive: of a hostile list, nothing is remembered
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]{0,200}", re.ASCII)
UPGRADABLE = re.compile(r"^([^/\s]+)/\S+ (\S+) \S+ \[upgradable from: (\S+)\]$", re.MULTILINE)


def learn_ages(layout: Layout, tell: Callable[[str, str], None]) -> bool:
    """Note the ages of all images, and ask for their updates where the last answer is a day old. `tell` hears of
    an archive that does not answer, which is no failure. Returns whether there is any news."""
    prepare_directory(layout)
    try:
        with locked(layout, NAME, wait=False):
            before, now = read_ages(layout), iso(time.time())
            ages, sources = {}, {}
            for image in observe_images(layout):
                _, packed = read_list(machine_directory(layout, image.id)) or ((), "")
                ages[image.id] = still_valid(before.get(image.id), image.created, packed)
                sources[image.id] = image.image
            for distribution in DISTRIBUTIONS:
                due = [id for id, age in ages.items() if sources[id] == distribution and is_due(age, now)]
                try:
                    found = ask(layout, distribution, due) if due else {}
                except CommandFailed as error:
                    told = [line for line in error.stderr.splitlines() if line.startswith("E: ")]
                    why = told[0] if told else error.brief
                    tell(distribution, f"nothing is known of its security updates: {why}")
                    continue
                ages |= {id: replace(ages[id], asked=now, security=s, kernel=k) for id, (s, k) in found.items()}
            return write_ages(layout, ages)
    except BlockingIOError:  # somebody else is asking
        return False


def still_valid(known: Age | None, created: str, packed: str) -> Age:
    """The part of an old answer that holds for an image, and for the kernel of its machines, of these times."""
    if known is None or known.created != created:
        return Age(created, packed=packed)
    return known if known.packed == packed else replace(known, packed=packed, kernel=())


def is_due(age: Age, now: str) -> bool:
    """Whether to ask again: the answer is a day old, from the future, or older than the kernel."""
    if age.asked < max(age.created, age.packed):
        return True
    return not timedelta(0) <= datetime.fromisoformat(now) - datetime.fromisoformat(age.asked) < DAY


def ask(layout: Layout, distribution: str, ids: Iterable[str]) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The packages with security updates, by image: its own, and those of its machines' kernel. The images are of one
    distribution; one whose list of packages cannot be read is left out."""
    with new_scratch(layout, NAME) as scratch:
        shutil.copy(HOOK, scratch)
        asked = scratch / "asked"
        asked.mkdir()
        for id in ids:
            if installed := plain_status(read_status(layout.image_root(id))):
                kernel, _ = read_list(machine_directory(layout, id)) or ((), "")
                (asked / f"{id}:tree").write_text(installed)
                (asked / f"{id}:kernel").write_text("".join(map(render_file, kernel)))
        if not any(asked.iterdir()):
            return {}
        command = ask_command(distribution, os.uname().machine)
        run_mmdebstrap(command, scratch, layout.build_cgroup(NAME), Meter(no_progress), ASK_SECONDS)
        answers = {path.name: parse_answer(path.read_text()) for path in asked.iterdir()}
    return {id: (answers[f"{id}:tree"], answers.get(f"{id}:kernel", ())) for id in ids if f"{id}:tree" in answers}


def ask_command(distribution: str, machine: str) -> list[str]:
    about = DISTRIBUTIONS[distribution]
    return [
        *("mmdebstrap", "--verbose", "--mode=root", "--variant=custom", "--format=null"),
        *(f"--keyring={path}" for path in find_keyring(about.keyring)),
        *('--aptopt=Acquire::Retries "0"', f"--customize-hook=sh /tmp/{HOOK.name} /tmp/asked"),
        *(about.suite, "/dev/null", about.security_source(machine)),
    ]


def read_status(root: Path) -> str:
    """dpkg's list of the packages in a tree; "" where it is absent, or cannot be read."""
    try:
        with (
            opened(root) as top,
            kept_open(open_strictly("var/lib/dpkg/status", below=top, flags=PINNED)) as pin,
            open(reopen_regular(pin), "rb") as file,
        ):
            return file.read(LARGEST_STATUS).decode("utf-8", "replace")
    except OSError:
        return ""


def plain_status(text: str) -> str:
    """The part of dpkg's list that apt needs to compare versions. Entries without a plain name, version and
    architecture are left out, and so are those that no package manager writes."""
    found = []
    for entry in ENTRY.finditer(text):
        fields = dict(FIELD.findall(entry[0])) if entry.end() - entry.start() <= LARGEST_ENTRY else {}
        about = [fields.get(key, "") for key in ("Package", "Version", "Architecture")]
        if fields.get("Status", "").endswith(" installed") and all(map(PLAIN.fullmatch, about)):
            found.append(render_installed(*about))
    return "".join(found)


def render_file(name: str) -> str:
    """The package in a file as apt names it, as if it were installed: name_version_architecture.deb."""
    return render_installed(*name.removesuffix(".deb").replace("%3a", ":").split("_"))


def render_installed(name: str, version: str, architecture: str) -> str:
    return f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\nVersion: {version}\n\n"


def parse_answer(text: str) -> tuple[str, ...]:
    """The packages in the output of `apt list --upgradable`. Those whose version is the same, and whose other fields
    differ, are left out."""
    return tuple(sorted({name for name, new, old in UPGRADABLE.findall(text) if new != old}))
