#!/bin/sh
# One virtual machine with QEMU and virtiofsd and nothing else: what a careful person would write by hand to boot a
# tree as a microvm without KVM, quickly and unprivileged, with its home on the host.
#
#   barevm.sh prepare KERNEL-TREE TREE DIR      once: DIR/vmlinuz, DIR/initrd, DIR/root.erofs
#   barevm.sh run DIR HOME CREDENTIALS MAC TSC-KHZ COMMAND...
#                                               becomes the machine; COMMAND gives it the TAP as descriptor 3
set -eu

# Without qemu_fw_cfg systemd finds no credentials; the rest of what is needed is built into Debian's cloud kernel.
MODULES="virtio_blk erofs overlay virtio_net vmw_vsock_virtio_transport qemu_fw_cfg virtio_mmio"

prepare() {
    kernel=$1 tree=$2 dir=$3
    version=$(ls "$kernel/usr/lib/modules")
    mkdir -p "$dir/initrd.d/bin" "$dir/initrd.d/lib"
    cp "$kernel/boot/vmlinuz-$version" "$dir/vmlinuz"
    cd "$dir/initrd.d"
    mkdir proc sys dev ro rw new
    cp "$(command -v busybox)" bin/
    depmod -b "$kernel/usr" -a "$version"
    for module in $MODULES; do
        modprobe -d "$kernel/usr" -S "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
        name=$(basename "$path" .xz)
        xz -dc "$path" > "lib/$name"
        echo "$name" >> lib/order
    done
    print_init > init
    chmod 0755 init
    find . | cpio --create --format=newc --quiet | zstd -q -3 -o "$dir/initrd"
    mkfs.erofs -zlz4 -C65536 "$dir/root.erofs" "$tree" >/dev/null
    chmod 0644 "$dir/vmlinuz" "$dir/initrd" "$dir/root.erofs"
}

print_init() {
    cat <<'EOF'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do $b insmod "/lib/$module"; done < /lib/order
$b mount -t erofs -o ro /dev/vda /ro
$b mount -t tmpfs layer /rw
$b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work root /new
$b umount /proc /sys
$b mount --move /dev /new/dev
exec $b switch_root /new /sbin/init
EOF
}

run() {
    dir=$1 home=$2 credentials=$3 mac=$4 khz=$5
    shift 5
    state=$(mktemp -d "$dir/run.XXXXXX")
    chmod 0755 "$state"
    mkdir -m 1777 "$state/guest"
    # It ends by itself when QEMU lets go of its socket.
    /usr/libexec/virtiofsd --socket-path="$state/fs.sock" --shared-dir="$home" --sandbox=namespace --seccomp=kill \
        --translate-uid squash-guest:0:1000:4294967295 --translate-gid squash-guest:0:1000:4294967295 --log-level=error &
    while [ ! -S "$state/fs.sock" ]; do sleep 0.01; done
    chmod 0666 "$state/fs.sock"
    set -- "$@" setpriv --reuid 65534 --regid 65534 --clear-groups qemu-system-x86_64
    for file in "$credentials"/*; do
        set -- "$@" -fw_cfg "name=opt/io.systemd.credentials/${file##*/},file=$file"
    done
    # Under TCG the guest reads the host's time stamp counter; on a busy host it calibrates it wrongly and then waits
    # for ever for a tick, so it is told the frequency.
    exec "$@" \
        -M microvm,accel=tcg,pcie=on,rtc=on,memory-backend=mem -cpu max -smp 2 -m 1024 \
        -object memory-backend-memfd,id=mem,size=1024M,share=on \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
        -nodefaults -no-user-config -nographic -no-reboot -serial "file:$state/guest/console" \
        -kernel "$dir/vmlinuz" -initrd "$dir/initrd" \
        -drive "if=none,id=root,file=$dir/root.erofs,format=raw,readonly=on" -device virtio-blk-pci,drive=root \
        -netdev tap,id=net,fd=3,vhost=off -device "virtio-net-pci,netdev=net,mac=$mac" \
        -chardev "socket,id=home,path=$state/fs.sock" -device vhost-user-fs-pci,chardev=home,tag=home \
        -qmp "unix:$state/guest/qmp,server=on,wait=off" \
        -append "console=ttyS0 panic=-1 systemd.show_status=0 random.trust_cpu=on net.ifnames=0 tsc_early_khz=$khz tsc=reliable"
}

command=$1
shift
"$command" "$@"
