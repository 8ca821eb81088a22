"""The boot arguments of a virtual machine's kernel, and of systemd in it.

Each argument is here because the machine would not work without it, or because it starts measurably sooner: without
KVM, every instruction counts that is not run. What they switch off, a workspace has no use for.
"""

from __future__ import annotations


def kernel_arguments(name: str, machine_id: str, *, tsc_khz: int | None, has_disk: bool) -> tuple[str, ...]:
    """The command line of the machine of that name and id. `tsc_khz` is the rate of the host's time stamp counter where
    there is no KVM, None with KVM; `has_disk` says that the root is kept on /dev/vdb and not in memory."""
    return (
        *ALWAYS,
        f"systemd.machine_id={machine_id}",
        f"systemd.hostname={name}",  # systemd knows the credential for it since version 256 only
        *(emulated_arguments(tsc_khz) if tsc_khz is not None else ()),
        *(("hutch.disk",) if has_disk else ()),  # for our init
    )


def parts_arguments() -> tuple[str, ...]:
    """The command line of every machine that firmware boots from one disk with all its parts."""
    return (*ALWAYS, "hutch.parts")  # for our init


def emulated_arguments(tsc_khz: int) -> tuple[str, ...]:
    """The further arguments of a kernel without KVM; `tsc_khz` is the rate of the host's time stamp counter."""
    return (f"tsc_early_khz={tsc_khz}", f"lpj={tsc_khz * 1000 // TICKS}", *EMULATED)


MICROVM = "microvm,pcie=on,rtc=on,pic=off,pit=off"
"""QEMU's machine. Its kernel, told by ACPI that there are none, lets the ancient interrupt controller and timer be; but
they are not without effect: the timer ticks, and its interrupt, whose number nobody set, is a division by zero."""
ALWAYS = (
    "console=ttyS0",
    "quiet",  # every character on a serial line is a trip to the host; errors still come, and `dmesg` has all
    "panic=-1",  # ends at once; what comes next is for the host to decide
    "random.trust_cpu=on",  # nothing else in a machine so young is random, and sshd would wait
    "net.ifnames=0",  # one interface, one name: eth0
    # Not the distribution's list: systemd loads a program into "bpf" at every start, a third of a second without KVM,
    # and nothing in an image has rules for the others.
    "lsm=landlock,yama",
    "systemd.show_status=auto",  # silent until something fails or takes long
)
TICKS = 250
"""The ticks per second, at least, of the kernels that are booted. A kernel with more waits too long where it waits by
counting; that is harmless."""
ONE_PROCESSOR_FIRST = (
    "maxcpus=1",
    "noreplace-smp",  # nor made for one processor first: making it fit for several takes 0.2 s
)
"""One processor until every device is set up, then the others, which init starts. Where one has a device shown in
memory, QEMU renumbers what lies above it at once, and the others' translations only when they next look up (its
iotlb_to_section, in 10.0): what they write to their interrupt controllers in between is lost. Once in some hundred
boots, on a busy host, that was the end of an interrupt, and the processor heard of no other ever again."""
WITHOUT_LIBBPF = "/run/systemd/hutch"
"""A directory of the guest's whose libbpf.so.1 is not a library."""
EMULATED = (
    # Without KVM the guest reads the host's counter. It finds out the rate by itself unless the host is busy; then it
    # gives the counter up, and waits for ever for another clock's tick. So it is told the rate, and not to doubt it;
    # "lpj", which follows from the rate, spares every further processor a tenth of a second of the same search.
    "tsc=reliable",
    *ONE_PROCESSOR_FIRST,
    # Self-tests and tables that the kernel spends most of its own start on, and that the hosts of these kernels have no
    # use for: the ciphers', the jitter generator's (random.trust_cpu), the keys that modules are signed with, and
    # keyctl's "encrypted" keys.
    "cryptomgr.notests",
    "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted",
    # Before systemd starts anything, it has the kernel check programs that would enforce SocketBindAllow= and
    # RestrictNetworkInterfaces=: 7 % of all that a machine runs until it is ready. As in a container, it does
    # without them where it cannot load libbpf. What it starts does not inherit the variable.
    f"LD_LIBRARY_PATH={WITHOUT_LIBBPF}",
)
