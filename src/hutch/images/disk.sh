#!/bin/sh
# Makes /target/disk.qcow2, which UEFI boots from, of what is in /source: disk.sh MEGABYTES ARGUMENTS UUID...
# The kernel is told ARGUMENTS. The UUIDs are the disk's, its three partitions', and the last one's file system's; all
# sizes are MiB. Firmware starts systemd-boot by its name for removable media.
set -eu
all=$1 arguments=$2 disk=$3 boot=$4 image=$5 layer=$6 files=$7
echo "hutch: stage disk"
size() { echo $((($(stat -c %s "$1") + 1048575) / 1048576)); }
kernel=$(($(size /source/vmlinuz) + $(size /source/initrd)))
esp=$((kernel + 40)) # no FAT32 is smaller
root=$(size /source/root.erofs)
first=1
second=$((first + esp))
third=$((second + root))
rest=$((all - third - 1))
[ "$rest" -ge 1024 ] || { echo "hutch: the image leaves no place to write on a disk of $all MiB"; exit 4; }
raw=/target/raw
truncate -s "${all}M" $raw
sfdisk --quiet $raw <<TABLE
label: gpt
label-id: $disk
start=${first}MiB, size=${esp}MiB, type=uefi, uuid=$boot, name=hutch-boot
start=${second}MiB, size=${root}MiB, type=linux, uuid=$image, name=hutch-image
start=${third}MiB, size=${rest}MiB, type=linux, uuid=$layer, name=hutch-layer
TABLE
mkfs.vfat -F 32 -s 1 --invariant --offset $((first * 2048)) $raw $((esp * 1024)) >/dev/null
mkdir -p /tmp/esp/EFI/BOOT /tmp/esp/loader/entries
cp /usr/lib/systemd/boot/efi/systemd-bootx64.efi /tmp/esp/EFI/BOOT/BOOTX64.EFI
cp /source/vmlinuz /source/initrd /tmp/esp/
printf 'timeout 0\neditor no\n' >/tmp/esp/loader/loader.conf
printf 'title hutch\nlinux /vmlinuz\ninitrd /initrd\noptions %s\n' "$arguments" >/tmp/esp/loader/entries/hutch.conf
find /tmp/esp -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
MTOOLS_SKIP_CHECK=1 TZ=UTC mcopy -i "$raw@@${first}M" -s -m -Q /tmp/esp/EFI /tmp/esp/loader /tmp/esp/vmlinuz /tmp/esp/initrd ::
dd if=/source/root.erofs of=$raw bs=1M seek=$second conv=notrunc,sparse status=none
mkfs.ext4 -q -F -U "$files" -E "offset=$((third * 1048576)),hash_seed=$files,root_owner=0:0" -m 0 $raw "${rest}M"
qemu-img convert -f raw -O qcow2 $raw /target/disk.qcow2
rm $raw
chmod 0644 /target/disk.qcow2
