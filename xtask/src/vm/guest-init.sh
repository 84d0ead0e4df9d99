#!/bin/busybox sh
# The guest's first process: makes the host's root its own, runs what is asked, says how it ended, powers off.
# /run holds MODULES, FOLDER and the command; port 1 carries the command's output, port 2 its exit status.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# Complaints of this script go to the console, which is shown when there is no status.
exec 2>/dev/ttyS0
. /run

# The kernel itself asks for modules, too, and does so from here.
mkdir -p /sbin /lib
ln -s /bin/busybox /sbin/modprobe
ln -s "/host${MODULES%/*}" /lib/modules

for module in /modules/*.ko; do
    insmod "$module"
done

fail() {
    echo "guest-init: $*" >/dev/ttyS0
    poweroff -f
}

# cache=loose: nobody changes the host's files under a running guest, so it need not ask again.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host || fail "no host root"
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/data,workdir=/upper/work overlay /root || fail "no overlay"

cd /root
mkdir -p dev proc sys run tmp "lib/modules/$(uname -r)" usr/local/sbin
mount --move /dev dev
mount --move /proc proc
mount --move /sys sys
mount -t tmpfs tmpfs run
mount --bind "/host$MODULES" "lib/modules/$(uname -r)"
mount -t debugfs debug sys/kernel/debug
# Not every host has these; the busybox ones know all a test needs.
for tool in modprobe insmod rmmod lsmod; do
    cp /bin/busybox "usr/local/sbin/$tool"
done
ip link set lo up

# Through a pipe: a port can be opened by one process only, and scripts do open /dev/stdout and /dev/stderr.
{
    env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1 \
        chroot /root /bin/sh -c 'cd "$1" || exit; shift; exec "$@"' sh "$FOLDER" "$@" 2>&1 </root/dev/null
    echo $? >/status
} | cat >"$(echo /root/dev/vport*p1)"
cat /status >"$(echo /root/dev/vport*p2)"
poweroff -f
