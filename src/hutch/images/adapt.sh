#!/bin/sh
# Makes any systemd tree a hutch guest: no identity of its own, and nothing at boot that a workspace does not need.
# Runs as the root of a user namespace inside the tree, never on the host: what is in the tree is not trusted.
# The same tree boots as a container and as a virtual machine, so udev and the virtual terminals' units stay usable.
set -eu
export SYSTEMD_OFFLINE=1

first() { # the first of the paths that exists
  for candidate in "$@"; do
    [ ! -e "$candidate" ] || { echo "$candidate" && return; }
  done
}

missing=""
systemd=$(first /usr/lib/systemd/systemd /lib/systemd/systemd)
[ -n "$systemd" ] || missing="$missing systemd"
[ -n "$(first /usr/lib/systemd/systemd-networkd /lib/systemd/systemd-networkd)" ] || missing="$missing systemd-networkd"
[ -n "$(first /usr/lib/systemd/systemd-resolved /lib/systemd/systemd-resolved)" ] || missing="$missing systemd-resolved"
for command in sshd doas; do command -v "$command" >/dev/null || missing="$missing $command"; done
[ -z "$missing" ] || { echo "hutch: missing:$missing"; exit 3; }
version=$("$systemd" --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')

# Identity: each workspace brings its own, as credentials. An empty machine-id (not an absent one) keeps systemd from
# taking the start for the first boot of an installation and asking questions.
rm -f /etc/hostname /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /etc/machine-id && : >/etc/machine-id && chmod 0444 /etc/machine-id
rm -rf /var/log/journal && find /var/log -type f -exec truncate --size=0 {} +
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/cache/apt/*.bin
rm -f /etc/resolv.conf /etc/.resolv.conf.systemd-resolved.bak
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf

# sshd: one host key, which the host hands in as a credential; keys only; the keys of the login user lie where it
# cannot write.
mkdir -p /etc/ssh/sshd_config.d /etc/ssh/authorized_keys.d
chmod 0755 /etc/ssh/authorized_keys.d
cat >/etc/ssh/sshd_config.d/10-hutch.conf <<'EOF'
HostKey /run/credentials/@system/hutch.ssh-host-key
AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u .ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM yes
PrintMotd no
UseDNS no
AcceptEnv LANG LC_*
EOF
chmod 0644 /etc/ssh/sshd_config.d/10-hutch.conf
if ! grep -qi '^[[:space:]]*Include[[:space:]]\+/etc/ssh/sshd_config\.d/' /etc/ssh/sshd_config; then
  sed -i '1i Include /etc/ssh/sshd_config.d/*.conf' /etc/ssh/sshd_config
fi

units=/etc/systemd/system
drop_in() { mkdir -p "$units/$1.d" && cat >"$units/$1.d/50-hutch.conf"; }
mask() { for unit in "$@"; do ln -sfn /dev/null "$units/$unit"; done; }

# Debian calls it ssh.service, Fedora and Arch sshd.service.
ssh=ssh.service
[ -n "$(first /usr/lib/systemd/system/ssh.service /lib/systemd/system/ssh.service)" ] || ssh=sshd.service
systemctl --quiet disable ssh.socket getty@tty1.service 2>/dev/null || true
systemctl --quiet unmask systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service "$ssh"
systemctl --quiet enable systemd-networkd.service systemd-resolved.service "$ssh"
systemctl --quiet set-default multi-user.target
printf '[Service]\nExecStartPre=\n' | drop_in "$ssh" # it only checks the configuration, which the start does again

# systemd-network-generator does this from version 256 on.
if [ "$version" -lt 256 ]; then
  cat >"$units/hutch-network.service" <<'EOF'
[Unit]
Description=Network Configuration from Credentials
DefaultDependencies=no
Before=systemd-networkd.service
ConditionDirectoryNotEmpty=/run/credentials/@system

[Service]
Type=oneshot
ExecStart=/bin/sh -euc 'mkdir -p /run/systemd/network; cd /run/credentials/@system; for name in network.network.*; do [ -e "$name" ] && cat "$name" >"/run/systemd/network/$${name#network.network.}.network"; done'

[Install]
WantedBy=systemd-networkd.service
EOF
  systemctl --quiet enable hutch-network.service
fi

# Ready means that sshd answers, so it has to wait for the address, which networkd sets after it is ready itself.
drop_in systemd-networkd-wait-online.service <<EOF
[Service]
ExecStart=
ExecStart=-$(first /usr/lib/systemd/systemd-networkd-wait-online /lib/systemd/systemd-networkd-wait-online) --any --ipv4 --timeout=20
EOF
mkdir -p "$units/multi-user.target.wants"
ln -sfn ../systemd-networkd-wait-online.service "$units/multi-user.target.wants/systemd-networkd-wait-online.service"

# A console on demand: nothing starts it at boot; `hutch console` does. The second is a machine's.
for getty in console-getty.service serial-getty@.service; do
  drop_in "$getty" <<'EOF'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud - 115200,38400,9600 vt220
EOF
done

# A virtual machine tells its host when sshd answers: over vsock, if the host has named a socket and this systemd knows
# how (from version 254 on), otherwise by a port that containers do not have; the first number in its name counts the
# devices before it. By the port it is told to power off.
cat >"$units/hutch-port.service" <<'EOF'
[Unit]
Description=Link to the Host
ConditionPathExistsGlob=|/dev/vport*p1
ConditionPathExists=|/run/credentials/@system/hutch.notify-socket
DefaultDependencies=no
After=ssh.service sshd.service systemd-networkd-wait-online.service systemd-resolved.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Environment=TOLD=/run/credentials/@system/hutch.notify-socket
ExecStart=/bin/sh -c 'set -- /dev/vport*p1; [ ! -e "$$1" ] || exec 3<>"$$1"; \
  [ -e "$$TOLD" ] && read -r NOTIFY_SOCKET <"$$TOLD" && export NOTIFY_SOCKET && systemd-notify --no-block --ready || echo READY=1 >&3; \
  [ -e "$$1" ] || exit 0; while read -r line <&3; do [ "$$line" != poweroff ] || systemctl --no-block poweroff; done'
EOF
ln -sfn ../hutch-port.service "$units/multi-user.target.wants/hutch-port.service"

# Its root may lie on a disk, which is enlarged while it is off.
cat >"$units/hutch-grow.service" <<EOF
[Unit]
Description=Let the Root Grow with Its Disk
ConditionPathIsMountPoint=/run/hutch/disk
DefaultDependencies=no
After=hutch-port.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=-udevadm wait --timeout=30 /dev/vdb
ExecStart=$(first /usr/lib/systemd/systemd-growfs /lib/systemd/systemd-growfs) /run/hutch/disk
EOF
ln -sfn ../hutch-grow.service "$units/multi-user.target.wants/hutch-grow.service"

# The journal lives and dies with the root.
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' >/etc/systemd/journald.conf.d/50-hutch.conf

mkdir -p /etc/systemd/resolved.conf.d
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' >/etc/systemd/resolved.conf.d/50-hutch.conf

# Lets everybody ping. The distributions' own range ends above what a user namespace maps, so it is refused there.
mkdir -p /etc/sysctl.d
echo 'net.ipv4.ping_group_range = 0 65534' >/etc/sysctl.d/50-hutch.conf

[ -e /etc/default/locale ] || { mkdir -p /etc/default && echo LANG=C.UTF-8 >/etc/default/locale; }

# A container gets its /dev from outside.
for unit in systemd-tmpfiles-setup-dev-early.service systemd-tmpfiles-setup-dev.service; do
  printf '[Unit]\nConditionVirtualization=!container\n' | drop_in "$unit"
done

# Logins are possible as soon as sshd is: nothing writes /run/nologin, so nothing needs to remove it.
mkdir -p /etc/tmpfiles.d
ln -sfn /dev/null /etc/tmpfiles.d/systemd-nologin.conf
mask systemd-user-sessions.service

# What a workspace has no use for. Masking a unit that a distribution does not have does no harm.
mask ssh.socket sshd-keygen.service
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  motd-news.timer
mask ldconfig.service systemd-journal-catalog-update.service systemd-hwdb-update.service systemd-update-done.service \
  systemd-random-seed.service systemd-firstboot.service systemd-machine-id-commit.service systemd-pstore.service \
  systemd-hibernate-clear.service systemd-journal-flush.service systemd-binfmt.service \
  systemd-udev-load-credentials.service systemd-networkd-persistent-storage.service \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-boot-random-seed.service \
  systemd-remount-fs.service systemd-rfkill.service systemd-rfkill.socket
mask systemd-pcrmachine.service systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-tpm2-setup.service \
  systemd-tpm2-setup-early.service systemd-pcrextend.socket systemd-pcrlock.socket systemd-creds.socket systemd-sysext.socket \
  systemd-confext.service systemd-sysext.service systemd-hostnamed.socket systemd-initctl.socket systemd-bootctl.socket
mask proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
  sys-fs-fuse-connections.mount dev-hugepages.mount run-lock.mount
mask systemd-ask-password-wall.path systemd-ask-password-console.path getty.target
# Without pam_systemd nothing registers sessions.
[ -n "$(find /usr/lib /lib -name pam_systemd.so 2>/dev/null | head -n 1)" ] || mask systemd-logind.service

mkdir -p /etc/systemd/system-generators
for generator in systemd-cryptsetup systemd-debug systemd-getty systemd-gpt-auto systemd-hibernate-resume systemd-integritysetup \
  systemd-rc-local systemd-run systemd-ssh systemd-system-update systemd-tpm2 systemd-veritysetup sshd-socket; do
  ln -sfn /dev/null "/etc/systemd/system-generators/$generator-generator"
done
