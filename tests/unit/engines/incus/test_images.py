"""Images of the cache on a server: their metadata, what is uploaded, and what is removed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hutch.engines.incus import images
from hutch.engines.incus.images import bytes_sent, ensure_image, prune_images, render_metadata
from hutch.errors import HutchError
from hutch.images.build import Workshop
from hutch.images.progress import Stage
from hutch.images.recipe import make_recipe
from hutch.images.record import Image, observe_image, render_image
from hutch.run import CommandFailed
from hutch.spec.names import Layout
from tests.unit.engines.incus.fake import Fake, refused
from tests.unit.facts import check_golden

RECIPE = make_recipe("debian:trixie")
ID = RECIPE.id
LIST = "/1.0/images?recursion=1&project=hutch"
INSTANCES = "/1.0/instances?recursion=1&project=hutch"
PRINT, OTHER, FOREIGN = "a" * 64, "b" * 64, "c" * 64
CREATED = "2026-11-28T15:00:00+00:00"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.image_root(ID).mkdir(parents=True)
    (layout.images / ID / "image.json").write_bytes(render_image(RECIPE, CREATED, 4096, "5eed"))
    return layout


def there(fingerprint: str, id: str = ID, digest: str = "5eed", **properties: str) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "properties": {"hutch.id": id, "hutch.digest": digest, "hutch.owner": "me", **properties},
    }


class Host:
    """What this host does for an upload: packs, and runs the client."""

    def __init__(self, client: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = client
        self.commands: list[list[str]] = []
        self.lines: tuple[str, ...] = ()
        self.error: CommandFailed | None = None
        self.comes = [there(PRINT)]
        monkeypatch.setattr(images, "check_tools", lambda *_: None)
        monkeypatch.setattr(images, "pack_tree", self.pack)
        monkeypatch.setattr(images, "run_contained", self.run)
        monkeypatch.setattr(images, "ensure", self.ensure)
        monkeypatch.setattr(client, "argv", lambda *words: ["incus", *words])

    @staticmethod
    def ensure(layout: Layout, id: str, meter: Any, observe: Callable[[], Any], make: Callable[[Path], None]) -> Any:
        scratch = layout.images / f".build-{id}"
        scratch.mkdir()
        make(scratch)
        return observe()

    def pack(self, shop: Workshop, script: str, root: Path) -> None:
        assert script == "squash.sh"
        shop.tree.mkdir()
        (shop.tree / "root.squashfs").write_bytes(b"hsqs" + bytes(9996))

    def run(self, argv: Sequence[str], *, on_line: Callable[[str], None], **_: Any) -> None:
        self.commands.append(list(argv))
        for line in self.lines:
            on_line(line)
        self.client.objects[LIST] = self.comes
        if self.error:
            raise self.error


def test_metadata(layout: Layout) -> None:
    image = observe_image(layout, ID)
    assert image is not None
    archive = render_metadata(image, "x86_64", "me")
    assert archive == render_metadata(image, "x86_64", "me")
    assert archive[257:262] == b"ustar"  # by which Incus knows a tar archive
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (name,) = tar.getnames()
        file = tar.extractfile(name)
        assert file is not None
        text = file.read().decode()
    assert name == "metadata.yaml"
    assert json.loads(text)["properties"]["hutch.digest"] == "5eed"
    check_golden("incus/metadata.yaml", text.replace(ID, "debian-trixie-0123456789ab"))


def test_an_image_of_an_older_hutch_is_known_by_its_id() -> None:
    image = Image(ID, "debian:trixie", (), "", CREATED, 1, Path("/root"))
    assert f'"hutch.digest": "{ID}"' in render_metadata(image, "x86_64", "me").decode()


def test_an_image_that_is_there_is_not_uploaded(layout: Layout) -> None:
    client = Fake({LIST: [there(OTHER, digest="0ther"), {"fingerprint": FOREIGN}, there(PRINT)]})
    assert ensure_image(client, layout, ID) == PRINT
    assert client.asked == [LIST]


def test_an_image_is_packed_and_uploaded(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Fake({LIST: []})
    host = Host(client, monkeypatch)
    host.lines = ("Transferring image: 5.00kB (1.00MB/s)", "Image imported with fingerprint: x")
    seen: list[Stage] = []
    assert ensure_image(client, layout, ID, seen.append) == PRINT
    assert [stage.name for stage in seen] == ["packing the image", *["uploading the image"] * 3]
    fractions = [stage.fraction for stage in seen]
    assert fractions == sorted(fractions)
    assert 0.4 < fractions[2] < 0.95
    assert fractions[-1] == 1.0
    (command,) = host.commands
    scratch = layout.images / f".build-{ID}"
    assert command[:3] == ["sh", "-euc", 'cd "$1"; shift; exec "$@"']
    assert command[4:] == [str(scratch), "incus", "image", "import", "metadata.tar", "root/root.squashfs", "lab:"]
    assert (scratch / "metadata.tar").stat().st_mode & 0o777 == 0o644


def test_an_upload_that_fails_says_what_the_server_says(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Fake({LIST: []})
    host = Host(client, monkeypatch)
    host.comes = []
    said = "Transferring image: 5.00kB (1.00MB/s)\n\nError: no space\x1b[2J left\n"
    host.error = CommandFailed(["sh"], "failed with code 1", said, 1)
    with pytest.raises(HutchError, match=f"image {ID} could not be brought to the Incus remote lab") as caught:
        ensure_image(client, layout, ID)
    assert caught.value.details == "Error: no space\N{REPLACEMENT CHARACTER}[2J left"


def test_two_hosts_that_upload_the_same(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Fake({LIST: []})
    host = Host(client, monkeypatch)
    host.error = CommandFailed(["sh"], "failed with code 1", "Image with same fingerprint already exists", 1)
    assert ensure_image(client, layout, ID) == PRINT


def test_a_server_that_has_not_what_it_took(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Fake({LIST: []})
    Host(client, monkeypatch).comes = [{**there(PRINT), "fingerprint": "../../x"}]
    with pytest.raises(HutchError, match="does not have it"):
        ensure_image(client, layout, ID)


def test_an_image_that_is_not_in_the_cache(layout: Layout) -> None:
    with pytest.raises(HutchError, match="has been removed meanwhile"):
        ensure_image(Fake(), layout, "debian-trixie-ba9876543210")


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("Transferring image: 12.50MB (3.00MB/s)", 12_500_000),
        ("Transferring image: 7B (1B/s)", 7),
        ("Transferring image: 1.2.3MB (3.00MB/s)", None),
        ("Image imported", None),
    ],
)
def test_progress(line: str, sent: float | None) -> None:
    assert bytes_sent(line) == sent


def test_images_that_nothing_needs_are_removed() -> None:
    others = ("debian-trixie-111111111111", "debian-trixie-222222222222", "debian-trixie-333333333333")
    prints = [str(number) * 64 for number in range(1, 4)]
    foreign = {"fingerprint": FOREIGN, "properties": {"os": "debian"}}
    listed = [there(PRINT), foreign, *(there(each, id) for each, id in zip(prints, others, strict=True))]
    bases = [{"config": {"volatile.base_image": prints[0]}}, {"config": {}}]
    client = Fake({LIST: listed, INSTANCES: bases})
    paths = [f"/1.0/images/{each}?project=hutch" for each in prints]
    client.objects[paths[1]] = {}
    client.failing["DELETE", paths[2]] = refused(404)
    assert prune_images(client, ["me"], {ID}) == others[1:]
    assert client.told() == [("DELETE", paths[1]), ("DELETE", paths[2])]


@pytest.mark.parametrize("owner", ["another", ""])
def test_images_that_another_hutch_has_uploaded_stay(owner: str) -> None:
    client = Fake({LIST: [there(PRINT, **{"hutch.owner": owner})], INSTANCES: []})
    assert prune_images(client, ["me"], ()) == () and client.told() == []


def test_no_project_has_no_images() -> None:
    assert prune_images(Fake(), ["me"], ()) == ()
    client = Fake({LIST: [there(PRINT)]})
    assert prune_images(client, ["me"], {ID}) == ()
    assert client.asked == [LIST]
