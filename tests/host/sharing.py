"""A workspace that several accounts of one host try to enter."""

from __future__ import annotations

from tests.host.instance import Instance

PATIENT = "echo 'PerSourcePenalties no' >/etc/ssh/sshd_config.d/10-patient.conf && systemctl reload ssh && sleep 0.5"


def let_all_try(instance: Instance, name: str) -> None:
    """Have its sshd answer everybody, whoever was refused before: all of a host come from one address."""
    instance.inside(name, "sh", "-c", PATIENT, root=True)
