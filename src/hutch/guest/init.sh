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

# A kernel without KVM measures the rate of its processor's timer against the counter, over 26 ticks that may all be in the
# past when a busy host lets it go on: it then measures next to nothing, and has no timer for good; or one that comes far
# too late. QEMU's timer counts 1/16 ns, which is this multiplier, give or take a third. The host starts a machine that
# resets itself here again, three times at most.
if is_given tsc=reliable && ! $b grep -q -x ' mult: *[23][0-9]\{8\}' /proc/timer_list; then
  echo "hutch: the host was too busy while the kernel measured its timer" >/dev/console
  echo b >/proc/sysrq-trigger # at once: an orderly reboot waits for the timer
  exit 1
fi

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

# Where firmware boots the machine, one disk has all of it in parts, found by their names; and the disc in the drive is
# the archive of what it is told. The kernel finds them in its own time.
find_part() {
  for file in /sys/class/block/*/uevent; do
    if $b grep -q -x "PARTNAME=$1" "$file"; then
      part=/dev/$($b basename "${file%/uevent}")
      return
    fi
  done
  return 1
}
image=/dev/vda disk="" archive=""
! is_given hutch.disk || disk=/dev/vdb
case " $arguments" in *" hutch.archive="*) archive=${arguments#*hutch.archive=} archive=${archive%% *} ;; esac
if is_given hutch.parts; then
  archive=/dev/sr0
  tries=0
  until find_part hutch-image && image=$part && find_part hutch-layer && disk=$part && [ -b $archive ]; do
    [ $((tries += 1)) -le 300 ] || fail "cannot find the parts of the disk, and the disc with what the host tells"
    $b sleep 0.1
  done
fi

# The root: what is written goes to the disk, if the machine has one, and to memory otherwise.
$b mount -t erofs -o ro "$image" /image || fail "cannot mount the image"
if [ -n "$disk" ]; then
  $b mount -t ext4 -o nosuid,nodev "$disk" /layer || fail "cannot mount the disk"
else
  $b mount -t tmpfs -o mode=700,nosuid,nodev tmpfs /layer || fail "cannot mount memory for the root"
fi
[ -d /layer/upper ] || $b mkdir -m 755 /layer/upper || fail "cannot write to the root's layer"
[ -d /layer/work ] || $b mkdir -m 700 /layer/work || fail "cannot write to the root's layer"
$b mount -t overlay -o lowerdir=/image,upperdir=/layer/upper,workdir=/layer/work overlay $new ||
  fail "cannot put the root together"

# A disk of its own stays in sight, for the image's systemd to let its file system grow with it (hutch-grow.service).
$b mount -t tmpfs -o mode=755,nosuid,nodev,size=20%,nr_inodes=800k tmpfs $new/run || fail "cannot mount /run"
$b cp -a /run/. $new/run/ || fail "cannot write to /run" # units of a virtual machine's own
if is_given hutch.disk; then
  layer=$new/run/hutch/disk
  { $b mkdir -p -m 700 $layer && $b mount --move /layer $layer; } || fail "cannot show the disk"
fi

# Where the machine has no other way to be told, what it is told is an archive on a disk of its own.
if [ -n "$archive" ]; then
  { $b mkdir -p -m 700 $new/run/hutch && $b mkdir -p -m 755 $new/run/credentials &&
    $b tar -x -f "$archive" -C $new/run/hutch; } || fail "cannot read what the host tells"
  listed=$new/run/hutch/shares
  export CREDENTIALS_DIRECTORY=/run/hutch/credentials
fi
# Who makes the kernel's arguments of such a disk does not know the machine; not every systemd takes these by credential.
if is_given hutch.parts; then
  told=$new/run/hutch/credentials
  { $b cp $told/system.hostname $new/etc/hostname && $b cp $told/system.machine_id $new/etc/machine-id &&
    $b chmod 444 $new/etc/hostname $new/etc/machine-id; } || fail "cannot write who it is"
fi

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

# The one file ($1: the tag) of a share that is mounted as $2 says, at $3.
show_file() {
  shared=$new/run/hutch/files/$1
  $b mkdir -p "$shared" "${3%/*}" && $b mount -t virtiofs -o "$2,nosuid,nodev" "$1" "$shared" || return
  [ -e "$3" ] || : >"$3" || return
  $b mount --bind "$shared/file" "$3"
}

# The shares. Each line: tag; "ro", "rw", the same with "-file", or "overlay"; and the place, which may hold blanks. The
# image's symbolic links mean what they mean inside it.
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
  case $mode in
    *-file) show_file "$tag" "${mode%-file}" "$new$place" ;;
    *)
      [ -d "$new$place" ] || $b mkdir -p "$new$place" || fail "cannot make $place"
      if [ "$mode" = overlay ]; then
        overlay "$tag" "$new$place"
      else
        $b mount -t virtiofs -o "$mode,nosuid,nodev" "$tag" "$new$place"
      fi
      ;;
  esac || fail "cannot mount the share at $place"
  case $place in
    /tmp/*) $b ln -s -f /dev/null $new/run/systemd/system/tmp.mount ;; # a new /tmp would hide it
  esac
done <$listed

$b cp -a -f /nodes/. /dev/ || fail "cannot make device nodes"
for directory in dev proc sys; do
  $b mount --move /$directory $new/$directory || fail "cannot hand over /$directory"
done
# shellcheck disable=SC2093 # what comes next is for an exec that fails
exec $b switch_root $new /sbin/init
fail "cannot start the image's init"
