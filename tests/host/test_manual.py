"""What a formatter makes of the manual pages, and that they can be built by themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.enclosure import ROOT


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_pages_are_formatted_without_a_warning(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "package.manual", tmp_path], cwd=ROOT, check=True, timeout=60)
    pages = sorted(tmp_path.iterdir())
    assert len(pages) > 20
    command = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", *map(str, pages)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    for page in pages:
        assert f"\n{page.stem.upper()}({page.suffix[1:]}) " in f"\n{result.stdout}", page
