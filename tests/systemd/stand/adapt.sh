#!/bin/sh
# Makes an ordinary Debian host of a fresh tree: adapt.sh TREE. Everything that the tests bring
# in one after the other is installed, and none of it runs before they say so.
set -eu
tree=$1
echo stand >"$tree/etc/hostname"
echo 127.0.1.1 stand.example stand >>"$tree/etc/hosts"
: >"$tree/etc/fstab"
run() { chroot "$tree" "$@" >/dev/null 2>&1; }
run systemctl enable systemd-networkd systemd-resolved hutch-stand.service
run systemctl disable nftables systemd-networkd-wait-online
# As far as they are there.
run systemctl disable docker.service docker.socket containerd ufw firewalld NetworkManager NetworkManager-dispatcher \
  NetworkManager-wait-online libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket \
  libvirt-guests.service virtlogd.service || :
# What only takes time where nobody logs in and no night ever comes.
run systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer man-db.timer motd-news.timer getty@.service serial-getty@.service systemd-timesyncd.service \
  systemd-networkd-wait-online.service NetworkManager-wait-online.service systemd-pstore.service systemd-binfmt.service \
  sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
  modprobe@configfs.service modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service
# Nor is there any hardware but what the tests look for.
mkdir "$tree/etc/systemd/system/systemd-udev-trigger.service.d"
cat >"$tree/etc/systemd/system/systemd-udev-trigger.service.d/stand.conf" <<'END'
[Service]
ExecStart=
ExecStart=-udevadm trigger --action=add --subsystem-match=net --subsystem-match=block --subsystem-match=virtio-ports
END
# Not its first boot, at which all units would be enabled that the distribution enables.
run systemd-machine-id-setup
touch "$tree/etc/.updated" "$tree/var/.updated"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
mkdir -p "$tree/srv/checkout" "$tree/srv/venv" "$tree/srv/python" "$tree/srv/images" "$tree/srv/packages"
rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/*
