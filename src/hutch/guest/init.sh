#!/bin/busybox sh
# The first program of a virtual machine: puts its root together from the read-only image and a layer to write to, mounts
# the shares below it, and hands over to the image's own init. Runs from hutch's initrd, which holds nothing but this,
# busybox and the kernel modules that it takes. A machine that would come up without one of its parts does not come up.
b=/bin/busybox
new=/new
layer=/layer
listed=/sys/firmware/qemu_fw_cfg/by_name/opt/hutch/shares/raw

fail() {
  echo "hutch: $*" >/dev/console
  $b poweroff -f
  exit 1 # where the machine cannot be switched off, the kernel panics
}

$b mount -t devtmpfs -o mode=755,nosuid devtmpfs /dev || exit 1
$b mount -t proc -o nosuid,nodev,noexec proc /proc || fail "cannot mount /proc"
read -r arguments </proc/cmdline
is_given() { case " $arguments " in *" $1 "*) ;; *) return 1 ;; esac; }

# Asked by the host to learn whether its processor really runs guests.
if is_given hutch.probe; then
  echo "hutch-probe: ok" >/dev/console
  $b poweroff -f
  exit 1
fi

# Modules: those that every machine needs, and drivers of the devices that this one has.
$b mount -t sysfs -o nosuid,nodev,noexec sysfs /sys || fail "cannot mount /sys"
devices=""
while read -r module pattern; do
  if [ "$pattern" != "*" ]; then
    if [ -z "$devices" ]; then
      for file in /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias; do
        [ -e "$file" ] && read -r alias <"$file" && devices="$devices $alias "
      done
    fi
    # shellcheck disable=SC2027,SC2254 # it is a pattern
    case $devices in *" "$pattern" "*) ;; *) continue ;; esac
  fi
  [ -d "/sys/module/$module" ] || $b insmod "/lib/$module.ko" || fail "cannot load the kernel module $module"
done </lib/modules

# The other processors, where the kernel was told to leave them for later (see guest/boot.py): by now no device is to be
# set up any more.
read -r waiting </sys/devices/system/cpu/offline
if [ -n "$waiting" ]; then
  for processor in /sys/devices/system/cpu/cpu[0-9]*/online; do
    echo 1 >"$processor" || fail "cannot start the processor of $processor"
  done
fi

# The root: what is written goes to the disk, if the machine has one, and to memory otherwise.
$b mount -t erofs -o ro /dev/vda /image || fail "cannot mount the image"
if is_given hutch.disk; then
  $b mount -t ext4 -o nosuid,nodev /dev/vdb /layer || fail "cannot mount the disk"
else
  $b mount -t tmpfs -o mode=700,nosuid,nodev tmpfs /layer || fail "cannot mount memory for the root"
fi
[ -d /layer/upper ] || $b mkdir -m 755 /layer/upper || fail "cannot write to the root's layer"
[ -d /layer/work ] || $b mkdir -m 700 /layer/work || fail "cannot write to the root's layer"
$b mount -t overlay -o lowerdir=/image,upperdir=/layer/upper,workdir=/layer/work overlay $new ||
  fail "cannot put the root together"

# The disk stays in sight, for the image's systemd to let its file system grow with it (hutch-grow.service).
$b mount -t tmpfs -o mode=755,nosuid,nodev,size=20%,nr_inodes=800k tmpfs $new/run || fail "cannot mount /run"
$b cp -a /run/. $new/run/ || fail "cannot write to /run" # units of a virtual machine's own
if is_given hutch.disk; then
  layer=$new/run/hutch/disk
  { $b mkdir -p -m 700 $layer && $b mount --move /layer $layer; } || fail "cannot show the disk"
fi

# Where the machine has no other way to be told, what it is told is an archive on a disk of its own.
case " $arguments" in *" hutch.archive="*)
  archive=${arguments#*hutch.archive=} archive=${archive%% *}
  { $b mkdir -p -m 700 $new/run/hutch && $b mkdir -p -m 755 $new/run/credentials &&
    $b tar -x -f "$archive" -C $new/run/hutch; } || fail "cannot read what the host tells"
  listed=$new/run/hutch/shares
  export CREDENTIALS_DIRECTORY=/run/hutch/credentials ;;
esac

# A share that cannot be written ($1), and on it, at $2, a layer that can; it lies beside the root's own. What was written
# stays valid when the share has changed between two starts, hence the options.
overlay() {
  lower=/shares/$1 upper=$layer/$1-upper work=$layer/$1-work
  $b mkdir -p "$lower" && $b mount -t virtiofs -o ro,nosuid,nodev "$1" "$lower" || return
  [ -d "$upper" ] || $b mkdir -m 755 "$upper" || return
  [ -d "$work" ] || $b mkdir -m 700 "$work" || return
  options=nosuid,nodev,lowerdir=$lower,upperdir=$upper,workdir=$work
  $b mount -t overlay -o "$options,index=off,metacopy=off,redirect_dir=off,xino=off" overlay "$2"
}

# The shares. Each line: tag; "ro", "rw", or "overlay"; and the place, which may hold blanks. The image's symbolic links
# mean what they mean inside it.
[ -r $listed ] || fail "the list of shares is missing"
while IFS= read -r line; do
  tag=${line%% *} rest=${line#* }
  mode=${rest%% *} place=${rest#* }
  along="" linked=""
  IFS=/
  for name in ${place#/}; do
    along="$along/$name"
    [ ! -L "$new$along" ] || linked=yes
  done
  unset IFS
  [ -z "$linked" ] || place=$($b chroot $new /usr/bin/readlink -m -- "$place") || fail "cannot find $place in the image"
  [ -d "$new$place" ] || $b mkdir -p "$new$place" || fail "cannot make $place"
  if [ "$mode" = overlay ]; then
    overlay "$tag" "$new$place"
  else
    $b mount -t virtiofs -o "$mode,nosuid,nodev" "$tag" "$new$place"
  fi || fail "cannot mount the share at $place"
done <$listed

$b cp -a -f /nodes/. /dev/ || fail "cannot make device nodes"
for directory in dev proc sys; do
  $b mount --move /$directory $new/$directory || fail "cannot hand over /$directory"
done
# shellcheck disable=SC2093 # what comes next is for an exec that fails
exec $b switch_root $new /sbin/init
fail "cannot start the image's init"
