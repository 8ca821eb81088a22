"""What `hutch run` checks of its options before it writes a file."""

from __future__ import annotations

import pytest

from hutch.api.here import check_kits
from hutch.errors import UsageError


def test_a_kit_that_is_none_is_told_by_its_option() -> None:
    check_kits(["node", "python"], "")
    with pytest.raises(UsageError) as error:
        check_kits(["node", "pyhton"], "")
    assert error.value.brief.startswith("--with pyhton: there is no such kit")
    assert error.value.resolution == 'did you mean "python"?'


def test_kits_of_an_edited_file_count() -> None:
    check_kits(["mine"], '[kits.mine]\npackages = ["jq"]\n')
    check_kits(["mine"], "is no TOML")
