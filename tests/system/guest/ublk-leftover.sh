#!/bin/bash
# In the guest: a daemon that is killed while it is the last process of its mount namespace, with a file system on its own
# disk there; and daemons that must not forget a disk.
set -euo pipefail
blkswitch=$1
cd "$(mktemp -d)"
export BLKSWITCH_SOCKET=$PWD/run/control.sock
fail() { echo "FAILED: $*"; tail -n 30 daemon.log; dmesg | tail -n 20; exit 1; }
trap 'fail "line $LINENO"' ERR
has() { case $1 in *"$2"*) ;; *) fail "'$2' is not in: $1" ;; esac; }
bs() { "$blkswitch" "$@"; }
serve() {
    "$blkswitch" serve --nbd "unix:$PWD/nbd.sock" "$@" >>daemon.log 2>&1 &
    daemon=$!
    answers
}
answers() {
    for _ in $(seq 1200); do
        bs version >/dev/null 2>&1 && return
        kill -0 $daemon 2>/dev/null || return 0
        sleep 0.05
    done
    fail "the daemon does not answer"
}
until_true() {
    for _ in $(seq 600); do
        "$@" && return
        sleep 0.1
    done
    fail "not so within a minute: $*"
}
modprobe ublk_drv
modprobe ext4
mkdir mnt

# In a mount namespace of its own: a daemon, its disk, a file system on it; then every process there but the daemon ends.
inside() {
    cat >inside.sh <<END
set -e
"$blkswitch" serve --nbd "unix:$PWD/nbd.sock" >>daemon.log 2>&1 &
echo \$! >daemon.pid
for _ in \$(seq 1200); do
    "$blkswitch" version >/dev/null 2>&1 && break
    kill -0 \$(cat daemon.pid)
    sleep 0.05
done
"$blkswitch" create disk --ublk --make-files --table "0 65536 switch 2 128 0 $PWD/a 0 $PWD/b 0"
"$blkswitch" message disk 0 set_region_mappings 5:1 R1,20
mkfs.ext4 -q /dev/blkswitch/disk
mount /dev/blkswitch/disk mnt
dd if=/dev/urandom of=mnt/bytes bs=64k count=32 status=none
cksum <mnt/bytes >sum
grep -c " $PWD/mnt " /proc/\$\$/mountinfo >own
sleep 1
grep -c " $PWD/mnt " "/proc/\$(cat daemon.pid)/mountinfo" >theirs || true
END
    unshare -m --propagation "$1" bash inside.sh
    daemon=$(cat daemon.pid)
}
left_behind() {
    kill -9 "$daemon"
    map=$(cksum <run/disks/map-0)
    serve
    has "$(bs info disk)" "/dev/ublkb0"
    [ "$(bs map show disk | cksum)" != "" ] && [ "$(cksum <run/disks/map-0)" = "$map" ] || fail "the map is another"
    until_true test ! -e "/proc/$old"
    mount /dev/blkswitch/disk mnt
    [ "$(cksum <mnt/bytes)" = "$(cat sum)" ] || fail "the bytes are others"
    umount mnt
    fsck.ext4 -f -n /dev/blkswitch/disk >/dev/null 2>&1 || fail "fsck"
    bs remove_all
    [ ! -e /dev/ublkb0 ] || fail "remove_all"
    kill $daemon
    wait $daemon || fail "status $?"
}
for propagation in private shared; do
    echo "the last process of a namespace: $propagation"
    inside $propagation
    old=$daemon
    [ "$(cat own)" = 1 ] || fail "not mounted"
    [ "$(cat theirs)" = 0 ] || fail "the mount is in the daemon's namespace: $(cat theirs)"
    left_behind
done

echo "a disk that another process serves"
serve
bs create disk --ublk --make-files --table "0 65536 linear $PWD/a 0"
cp -r run other
text=$("$blkswitch" serve --socket "$PWD/other/control.sock" 2>&1) && fail "started beside the daemon that serves the disk"
has "$text" "cannot go on with device 'disk': /dev/ublkb0 cannot be taken over: process $daemon serves it"
cmp run/disks/disks.json other/disks/disks.json || fail "the record has changed"
# Given up on purpose, the other daemon leaves it alone, too.
"$blkswitch" serve --abandon-disks --socket "$PWD/other/control.sock" >>other.log 2>&1 &
other=$!
for _ in $(seq 1200); do "$blkswitch" --socket "$PWD/other/control.sock" version >/dev/null 2>&1 && break; sleep 0.05; done
kill $other
wait $other || fail "the other daemon: $(cat other.log)"
[ ! -e other/disks/disks.json ] || fail "the other record is there"
dd if=/dev/zero of=/dev/blkswitch/disk bs=64k count=4 oflag=direct status=none

echo "grown tables"
text=$(printf '%s\n' "0 65536 linear $PWD/a 0" "65536 65536 linear $PWD/b 0" | bs load disk 2>&1)
has "$text" "/dev/ublkb0 keeps its size of 65536 sectors, and the table has 131072: what is beyond it is not used"
text=$(bs resume disk 2>&1)
has "$text" "/dev/ublkb0 keeps its size of 65536 sectors"
[ "$(blockdev --getsz /dev/blkswitch/disk)" = 65536 ] || fail "size"
bs detach disk
bs attach disk --ublk
[ "$(blockdev --getsz /dev/blkswitch/disk)" = 131072 ] || fail "size"
text=$(bs resume disk 2>&1)
[ -z "$text" ] || fail "resume says: $text"
bs remove_all

echo "files on the daemon's own disk"
bs create disk --ublk --make-files --table "0 65536 linear $PWD/a 0"
mkfs.ext4 -q /dev/blkswitch/disk
mount /dev/blkswitch/disk mnt
dd if=/dev/zero of=mnt/leaf bs=64k count=4 conv=fsync status=none
for leaf in "$PWD/mnt/leaf" /dev/ublkb0 "$(readlink -f /dev/blkswitch/disk)"; do
    text=$(bs create upon --table "0 8 linear $leaf 0" 2>&1) && fail "made a device upon its own disk: $leaf"
    has "$text" "'$leaf' is on a disk that this daemon serves"
done
bs info upon >/dev/null 2>&1 && fail "a refused device stays"
# The disk waits for a daemon, and the state folder or the log on it would wait for the disk.
kill -9 $daemon
wait $daemon || true
text=$(timeout 60 "$blkswitch" serve --state "$PWD/mnt/state" 2>&1) && fail "started with a state folder on its own disk"
has "$text" "the state folder '$PWD/mnt/state' is on a disk that no daemon serves"
serve
umount mnt
bs remove_all
kill $daemon
wait $daemon
echo "what daemons leave behind: ok"
