"""The part of a Hutch that tells what workspaces did and reached: it reads what others have written down."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hutch.api.summary import Report
    from hutch.egress.record import EgressEvent
    from hutch.spec.names import Layout
    from hutch.spec.record import Observation, Record


class Recorded:
    """Methods of a Hutch."""

    layout: Layout

    if TYPE_CHECKING:

        def record(self, name: str) -> Record: ...

        def observe(self, name: str) -> Observation: ...

        def records(self) -> dict[str, Record]: ...

    def egress(self, name: str) -> list[EgressEvent]:
        """The recorded questions and connections of a workspace, oldest first."""
        # Spares the start-up of `hutch ls`.
        from hutch.egress.journal import read

        self.record(name)
        return read(self.layout.egress, name)

    def follow_egress(self, name: str) -> Generator[list[EgressEvent], None, None]:
        """The recorded questions and connections, in one list, and then new ones as they come. Never ends by itself."""
        # Spares the start-up of `hutch ls`.
        from hutch.egress.journal import follow

        self.record(name)
        return follow(self.layout.egress, name)

    def metrics(self, entries: Iterable[dict[str, Any]]) -> str:
        """A page of metrics, in OpenMetrics text, about entries of `hutch status --json`: see `describe`, `look`."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.metrics import metrics_of

        return metrics_of(self, entries)

    def report(self, name: str, since: float | None = None, *, verify: bool = False, files: bool = True) -> Report:
        """What a workspace did from `since` (Unix time; None: from the beginning of its record) until now. With
        `verify`, all lines of the record are checked, without it those of its newest file. `files` looks for changed
        ones too, which root alone can. Of a removed workspace, it is there as long as its record is."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.reporting import report_on

        return report_on(self, name, since, verify=verify, files=files)

    def events(
        self,
        names: Collection[str] = (),
        since: float | None = None,
        *,
        follow: bool = False,
        until: Collection[int] = (),
    ) -> Generator[dict[str, Any]]:
        """The events in the records of workspaces, by default of all that the caller may see, as their lines have them
        and with the `workspace`: those at `since` (Unix time) or later. With `follow`, new ones as they come, and
        earlier ones only if `since` is there; never ends by itself then, but when one of the descriptors `until` has an
        error."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.reporting import events_of

        return events_of(self, names, since, follow=follow, until=until)

    def suggest_egress(self, name: str) -> str:
        """A list for hutch.toml, made of the workspace's own and of what it asked for and reached beyond that."""
        # Spares the start-up of `hutch ls`.
        from hutch.egress.suggest import suggest

        record = self.record(name)
        return suggest(self.egress(name), record.wanted, record.decisions)
