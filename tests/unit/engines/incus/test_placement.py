"""Which member a new workspace goes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hutch.engines.incus.placement import Candidate, eligible, place_all

M1, M2, M3 = (Candidate(f"m{number}", is_online=True, architecture="x86_64") for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("target", "candidates", "names"),
    [
        ("auto", (M1, M2), ["m1", "m2"]),
        ("auto", (M1, replace(M2, is_online=False)), ["m1"]),
        ("auto", (M1, replace(M2, architecture="aarch64")), ["m1"]),
        ("auto", (M1, replace(M2, scheduler="manual"), replace(M3, scheduler="group", groups=("gpu",))), ["m1"]),
        ("@gpu", (M1, replace(M2, groups=("gpu",)), replace(M3, scheduler="group", groups=("a", "gpu"))), ["m2", "m3"]),
        ("@gpu", (replace(M1, scheduler="manual", groups=("gpu",)),), []),
        ("m2", (M1, replace(M2, scheduler="manual")), ["m2"]),
        ("m2", (M1, replace(M2, is_online=False)), []),
    ],
)
def test_who_may_get_them(target: str, candidates: tuple[Candidate, ...], names: list[str]) -> None:
    assert [each.name for each in eligible(candidates, target, "x86_64")] == names


def test_they_spread() -> None:
    loads = (replace(M1, instances=2), replace(M2, instances=1), replace(M3, instances=1, free=1 << 30))
    assert place_all(["a", "b", "c", "d"], loads) == {"a": "m3", "b": "m2", "c": "m3", "d": "m1"}


def test_nobody_has_the_same_place_by_chance() -> None:
    assert place_all(["a", "b"], (M2, M1)) == place_all(["a", "b"], (M1, M2)) == {"a": "m1", "b": "m2"}
