#!/bin/sh
# /init of the lab: make the host's files the root, run the command there, leave its exit status.
#
#   /host       the host's /, over 9p, read only
#   /changes    what is written over it: in memory, gone at the end
#   /root       the two as one: where the command runs
#   /exchange   a directory shared with scripts/lab:
#     command     the shell script to run
#     terminal    "ROWS COLUMNS" of the user's terminal; absent if there is none
#     write       the directory of the host that may be written (tag "write"); absent if none
#     status      the exit status, written by us
#
# The kernel's log is on ttyS0, the command's terminal is ttyS1.

fail() {
    echo "lab: /init: $*" >/dev/console
    poweroff -f
}

mount_9p() { # TAG DIRECTORY OPTIONS
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2" ||
        fail "cannot mount $1"
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

mkdir -p /host /changes /exchange /root
mount_9p host /host ro,cache=loose
mount_9p exchange /exchange cache=none
mount -t tmpfs -o size=80% tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root ||
    fail "cannot put an overlay over the host's files"

mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
cd /root || fail "there is no /root"
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mkdir -p dev/pts dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -m 1777 run/tmp
mkdir run/exchange
mount --move /exchange run/exchange

if [ -f run/exchange/write ]; then
    directory=$(cat run/exchange/write)
    mkdir -p "/root$directory"
    mount_9p write "/root$directory" cache=mmap
fi

hostname lab
ip link set lo up
# Guests may have more memory than this machine, as long as they do not touch it.
echo 1 >proc/sys/vm/overcommit_memory

# The terminal forgets its size when nobody has it open: it is set by who keeps it open.
if [ -f run/exchange/terminal ]; then
    read -r rows columns <run/exchange/terminal
    {
        stty sane rows "$rows" columns "$columns"
        chroot . /bin/sh -c 'exec setsid -c -w /bin/sh /run/exchange/command'
    } <dev/ttyS1 >dev/ttyS1 2>&1
else
    stty -F dev/ttyS1 raw -echo
    chroot . /bin/sh /run/exchange/command <dev/null >dev/ttyS1 2>&1
fi
echo $? >run/exchange/status
poweroff -f
