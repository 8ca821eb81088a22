#!/bin/sh
# Makes any systemd tree a hutch guest: no identity of its own, and nothing at boot that a workspace does not need.
# Runs as the root of a user namespace inside the tree, never on the host: what is in the tree is not trusted.
# The same tree boots as a container and as a virtual machine, so udev and the virtual terminals' units stay usable.
# Beside it lie `tree`, the files that every guest gets, and `masked`, what no guest has a use for (see hutch/guest).
set -eu
export SYSTEMD_OFFLINE=1

here=/run/hutch
units=/etc/systemd/system
put() { mkdir -p "${1%/*}" && cat >"$1"; } # FILE

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

(cd "$here/tree" && find . -type f) | while read -r file; do
  put "/$file" <"$here/tree/$file"
done
[ -e /etc/default/locale ] || echo LANG=C.UTF-8 | put /etc/default/locale

# The keys of the login user lie where it cannot write.
mkdir -p /etc/ssh/authorized_keys.d
chmod 0755 /etc/ssh/authorized_keys.d
chmod 0644 /etc/ssh/sshd_config.d/10-hutch.conf
if ! grep -qi '^[[:space:]]*Include[[:space:]]\+/etc/ssh/sshd_config\.d/' /etc/ssh/sshd_config; then
  sed -i '1i Include /etc/ssh/sshd_config.d/*.conf' /etc/ssh/sshd_config
fi

# Debian calls it ssh.service, Fedora and Arch sshd.service.
ssh=ssh.service
[ -e /usr/lib/systemd/system/ssh.service ] || [ -e /lib/systemd/system/ssh.service ] || ssh=sshd.service
systemctl --quiet disable ssh.socket getty@tty1.service 2>/dev/null || true
systemctl --quiet unmask systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service "$ssh"
systemctl --quiet enable systemd-networkd.service systemd-resolved.service "$ssh"
[ "$version" -ge 256 ] || systemctl --quiet enable hutch-network.service
systemctl --quiet set-default multi-user.target
mkdir -p "$units/multi-user.target.wants"
for unit in systemd-networkd-wait-online.service hutch-port.service hutch-grow.service; do
  ln -sfn "../$unit" "$units/multi-user.target.wants/$unit"
done

# It only checks the configuration, which the start does again.
printf '[Service]\nExecStartPre=\n' | put "$units/$ssh.d/50-hutch.conf"

# OpenSSL reads the file of all certificate authorities when resolved starts, which has to do with none. For DNS over TLS
# it finds each of them by the directory, where there is one with links to find them by.
if [ -n "$(find -L /etc/ssl/certs -name '*.0' -print -quit 2>/dev/null)" ]; then
  printf '[Service]\nEnvironment=SSL_CERT_FILE=/dev/null\n' | put "$units/systemd-resolved.service.d/50-hutch.conf"
fi

mask() { mkdir -p "/etc/${1%/*}" && ln -sfn /dev/null "/etc/$1"; } # PATH below /etc
grep -v '^\(#\|$\)' "$here/masked" | while read -r path; do mask "$path"; done
# Without pam_systemd nothing registers sessions.
[ -n "$(find /usr/lib /lib -name pam_systemd.so 2>/dev/null | head -n 1)" ] || mask systemd/system/systemd-logind.service
