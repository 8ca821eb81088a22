#!/bin/busybox sh
# The first program of the stand: loads what its disks need, and hands over to the systemd on the first one.
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
read -r arguments </proc/cmdline
case " $arguments " in *" hutch.probe "*) # asked to learn whether this host's KVM runs guests
  echo "hutch-probe: ok" >/dev/console
  $b poweroff -f ;;
esac
case " $arguments " in *" tsc=reliable "*) # the timer that it measured may be wrong: see hutch's own init.sh
  $b grep -q -x ' mult: *[23][0-9]\{8\}' /proc/timer_list || echo b >/proc/sysrq-trigger ;;
esac
$b mount -t sysfs sysfs /sys
while read -r module _; do
  $b insmod "/lib/$module.ko"
done </lib/modules
for processor in /sys/devices/system/cpu/cpu[0-9]*/online; do # those that had to wait for it: see hutch.guest.boot
  echo 1 >"$processor"
done
$b mount -t ext4 /dev/vda /new || exec $b poweroff -f
for directory in dev proc sys; do
  $b mount --move /$directory /new/$directory
done
exec $b switch_root /new /sbin/init
