"""What serves all workspaces, as another version called it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.host.services import service, units
from hutch.host.services.unit_texts import render_service
from hutch.spec.names import Layout


class NoCgroup:
    def __init__(self, path: str) -> None:
        self.path = path

    def processes(self, *parts: str) -> list[int]:
        return []

    def kill(self, *parts: str) -> bool:
        return True

    def remove(self, *parts: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What systemd is told, with its units in a directory of the test's."""
    told: list[tuple[str, ...]] = []

    def systemctl(*words: str, check: bool = True, timeout: float = 0) -> str:
        told.append(words)
        return ""

    lasting = tmp_path / "units"
    lasting.mkdir()
    for name, value in (("LASTING", lasting), ("VOLATILE", tmp_path / "none"), ("SETTINGS", tmp_path / "none")):
        monkeypatch.setattr(units, name, value)
    monkeypatch.setattr(units, "has_systemd", lambda: True)
    monkeypatch.setattr(units, "systemctl", systemctl)
    monkeypatch.setattr(service, "has_systemd", lambda: False)
    monkeypatch.setattr(service, "Cgroup", NoCgroup)
    return told


def test_what_an_older_version_called_otherwise_goes(tmp_path: Path, calls: list[tuple[str, ...]]) -> None:
    layout, other = (Layout(tmp_path / state, tmp_path / "run" / state) for state in ("state", "other"))
    old, own, lost = (str(layout.services / f"{name}.pid") for name in ("guard", "watch", "gone"))
    strange = Layout(layout.state, other.run)  # its unit has a name as ours has, and is not ours
    lasting = units.LASTING
    for unit, pid_file, whose in (
        (layout.service_unit(old), old, layout),
        (layout.service_unit(own), own, layout),
        (strange.service_unit("x.pid"), str(other.services / "x.pid"), strange),
    ):
        text = render_service(service.Service("it", pid_file, "", ("it",), says_pid=True), whose)
        (lasting / unit).write_text(text)
    by_hand = lasting / f"{layout.instance}-mine.service"
    by_hand.write_text(f"[Service]\nPIDFile={layout.services}/mine.pid\n")
    for directory in (layout.services, layout.run / "guard", layout.run / "gone"):
        directory.mkdir(parents=True)
    for pid_file in (old, own, lost):
        Path(pid_file).touch()
    (layout.run / "guard" / "control").touch()

    service.remove_retired(layout)

    stay = {layout.service_unit(own), strange.service_unit("x.pid"), by_hand.name}
    assert {path.name for path in lasting.iterdir()} == stay
    assert ("stop", layout.service_unit(old)) in calls
    assert not any(unit in words for words in calls for unit in stay)
    assert [path.name for path in layout.services.iterdir()] == ["watch.pid"]
    assert [path.name for path in layout.run.iterdir()] == ["services"]


def test_nothing_is_asked_where_all_have_the_names_of_today(tmp_path: Path, calls: list[tuple[str, ...]]) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.services.mkdir(parents=True)
    for pid_file in ("host.pid", "router.pid", "watch.pid", "egress.pid"):
        (layout.services / pid_file).touch()
        unit = service.Service("it", str(layout.services / pid_file), "", ("it",), says_pid=True)
        (units.LASTING / layout.service_unit(pid_file)).write_text(render_service(unit, layout))
    service.remove_retired(layout)
    assert calls == []
    assert len(list(layout.services.iterdir())) == len(list(units.LASTING.iterdir())) == 4
