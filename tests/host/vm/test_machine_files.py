"""What machines boot from lies in the image cache, where it may get lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.host.instance import Instance


@pytest.mark.slow
def test_what_machines_boot_is_made_again(own_image: Callable[[str], Instance]) -> None:
    instance = own_image("vm")
    before = instance.status("own")["pid"]
    (root,) = (instance.state / "images").glob("*/machine-*/root.erofs")
    root.unlink()
    (warning,) = instance.status("own")["warnings"]
    assert warning.startswith("image: boot data of ")
    assert instance.hutch("plan", "--check", check=False).returncode == 3
    instance.hutch("up", timeout=300)
    assert (instance.status("own")["pid"], instance.status("own")["warnings"]) == (before, [])
    instance.hutch("restart", "own")
    instance.ssh("own")
