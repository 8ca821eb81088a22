#!/bin/sh
# Makes any systemd tree a hutch guest: no identity of its own, and nothing at boot that a workspace does not need.
# Runs as the root of a user namespace inside the tree, never on the host: what is in the tree is not trusted.
# The same tree boots as a container and as a virtual machine, so udev and the virtual terminals' units stay usable.
set -eu
export SYSTEMD_OFFLINE=1

units=/etc/systemd/system
put() { mkdir -p "${1%/*}" && cat >"$1"; } # FILE
drop_in() { put "$units/$1.d/50-hutch.conf"; } # UNIT

missing="" programs=/usr/lib/systemd
[ -e "$programs/systemd" ] || programs=/lib/systemd
for program in systemd systemd-networkd systemd-resolved; do
  [ -e "$programs/$program" ] || missing="$missing $program"
done
for command in sshd doas; do command -v "$command" >/dev/null || missing="$missing $command"; done
[ -z "$missing" ] || { echo "hutch: missing:$missing"; exit 3; }
version=$("$programs/systemd" --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')

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
mkdir -p /etc/ssh/authorized_keys.d
chmod 0755 /etc/ssh/authorized_keys.d
put /etc/ssh/sshd_config.d/10-hutch.conf <<'EOF'
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

mask() { for unit in "$@"; do ln -sfn /dev/null "$units/$unit"; done; }

# Debian calls it ssh.service, Fedora and Arch sshd.service.
ssh=ssh.service
[ -e /usr/lib/systemd/system/ssh.service ] || [ -e /lib/systemd/system/ssh.service ] || ssh=sshd.service
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
ExecStart=-$programs/systemd-networkd-wait-online --any --ipv4 --timeout=20
EOF

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
ExecStart=$programs/systemd-growfs /run/hutch/disk
EOF
mkdir -p "$units/multi-user.target.wants"
for unit in systemd-networkd-wait-online.service hutch-port.service hutch-grow.service; do
  ln -sfn "../$unit" "$units/multi-user.target.wants/$unit"
done

# The journal lives and dies with the root.
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' | put /etc/systemd/journald.conf.d/50-hutch.conf

printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' | put /etc/systemd/resolved.conf.d/50-hutch.conf
# OpenSSL reads the file of all certificate authorities when resolved starts, which has to do with none. For DNS over TLS
# it finds each of them by the directory, where there is one with links to find them by.
if [ -n "$(find -L /etc/ssl/certs -name '*.0' -print -quit 2>/dev/null)" ]; then
  printf '[Service]\nEnvironment=SSL_CERT_FILE=/dev/null\n' | drop_in systemd-resolved.service
fi

# Lets everybody ping. The distributions' own range ends above what a user namespace maps, so it is refused there.
echo 'net.ipv4.ping_group_range = 0 65534' | put /etc/sysctl.d/50-hutch.conf

[ -e /etc/default/locale ] || echo LANG=C.UTF-8 | put /etc/default/locale

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
