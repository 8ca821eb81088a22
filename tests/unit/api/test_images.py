"""The images that somebody is told of who may look at none."""

from __future__ import annotations

from dataclasses import replace

from hutch.api.images import images_of
from hutch.spec.record import Age, ImageFacts, Record, UserView
from tests.unit.facts import workspace

FACTS = ImageFacts("debian:trixie", ("git",), "2026-11-27T12:00:00+00:00", 4096, "5eed", (("trixie", "2026-11-27"),))
WEB = Record("web", "/hutch.toml", workspace(), "an-image", 1 << 30, "0" * 32)


def test_each_image_once_with_those_that_use_it() -> None:
    moving = replace(WEB.with_booted(), name="api", image="another")  # from what it was booted from
    views = {
        "web": UserView(WEB, images={"an-image": FACTS}, ages={"an-image": Age(FACTS.created, "2026-12-01", ("tar",))}),
        "api": UserView(moving, images={"an-image": FACTS}),  # an older hutch has noted nothing of the other one
    }
    one, other = images_of(views)
    assert one.to_json() == {
        "id": "an-image",
        "image": "debian:trixie",
        "packages": ("git",),
        "created": FACTS.created,
        "size": 4096,
        "digest": "5eed",
        "sources": {"trixie": "2026-11-27"},
        "updates": ["tar"],
        "updates_asked": "2026-12-01",
        "workspaces": ("api", "web"),
    }
    assert (other.id, other.facts.image, other.workspaces) == ("another", "unknown", ("api",))
