"""A build's output becomes stages whose fractions only rise."""

from __future__ import annotations

from hutch.images.progress import Meter, Stage

OUTPUT = """\
I: automatically chosen format: directory
I: running apt-get update...
Get:1 http://deb.debian.org/debian trixie InRelease [140 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian trixie/main amd64 libc6 amd64 2.41 [2,847 kB]
Get:2 http://deb.debian.org/debian trixie/main amd64 dash amd64 0.5 [98 kB]
I: extracting archives...
I: installing essential packages...
Unpacking dash (0.5) ...
Setting up dash (0.5) ...
Setting up dash (0.5) ...
Setting up dash (0.5) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://deb.debian.org/debian trixie/main amd64 git amd64 2.47 [8,862 kB]
Unpacking git (2.47) ...
Setting up git (2.47) ...
Setting up trouble beyond what was announced
I: cleaning package lists and apt cache...
I: success in 17.6 seconds
hutch: stage setup
hutch: stage adapt
"""


def stages(output: str) -> list[Stage]:
    seen: list[Stage] = []
    meter = Meter(seen.append)
    for line in output.splitlines():
        meter.feed(line)
    return seen


def test_fractions_rise_and_stay_below_one() -> None:
    fractions = [stage.fraction for stage in stages(OUTPUT)]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert 0.8 < fractions[-1] < 1.0


def test_every_stage_is_told_once_it_begins() -> None:
    assert list(dict.fromkeys(stage.name for stage in stages(OUTPUT))) == [
        "reading package lists",
        "downloading the base",
        "extracting the base",
        "installing the base",
        "installing packages",
        "cleaning up",
        "running setup",
        "adapting",
    ]


def test_a_foreign_tree() -> None:
    seen = stages("hutch: stage unpack\nhutch: stage network\nhutch: stage setup\nhutch: stage adapt\n")
    assert [stage.name for stage in seen] == ["unpacking the tree", "running setup", "adapting"]


def test_what_a_setup_script_prints_is_no_progress() -> None:
    seen = stages(OUTPUT + "0 upgraded, 500 newly installed\nUnpacking x\nSetting up x\n")
    assert seen == stages(OUTPUT)


def test_what_has_been_reported_is_not_reported_again() -> None:
    seen: list[Stage] = []
    meter = Meter(seen.append)
    meter.advance("publishing", 0.96)
    meter.advance("publishing", 0.96)
    meter.advance("publishing", 0.5)
    assert seen == [Stage("publishing", 0.96)]
