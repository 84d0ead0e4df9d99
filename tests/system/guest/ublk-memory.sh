#!/bin/bash
# In a guest of 320 MiB with a disk: file systems on disks of the daemon are written to beyond the guest's memory, beside a
# loop device; and whether files below go past the page cache.
set -euo pipefail
blkswitch=$1
runs=${2:-3}
cd "$(mktemp -d)"
export BLKSWITCH_SOCKET=$PWD/run/control.sock
fail() { echo "FAILED: $*"; tail -n 20 daemon.log; dmesg | tail -n 40; exit 1; }
trap 'fail "line $LINENO"' ERR
has() { case $1 in *"$2"*) ;; *) fail "'$2' is not in: $1" ;; esac; }
lacks() { case $1 in *"$2"*) fail "'$2' is in: $1" ;; esac; }
bs() { "$blkswitch" "$@"; }
serve() {
    "$@" "$blkswitch" serve --nbd "unix:$PWD/nbd.sock" >>daemon.log 2>&1 &
    daemon=$!
    for _ in $(seq 1200); do
        bs version >/dev/null 2>&1 && return
        kill -0 $daemon 2>/dev/null || fail "the daemon has ended"
        sleep 0.05
    done
    fail "the daemon does not answer"
}
stop() { kill $daemon; wait $daemon || fail "the daemon ended with status $?"; }
# modes FILE: "direct", "buffered", or both, as the daemon has it open.
modes() {
    for fd in "/proc/$daemon/fd/"*; do
        [ "$(readlink "$fd")" = "$1" ] || continue
        flags=$(awk '$1 == "flags:" { print $2 }' "/proc/$daemon/fdinfo/${fd##*/}")
        if ((flags & 040000)); then echo direct; else echo buffered; fi
    done | sort -u | tr '\n' ' '
}
modprobe ublk_drv
modprobe ext4
modprobe virtio_blk
modprobe loop
mkfs.ext4 -q -E lazy_itable_init=0 /dev/vda
mkdir store mnt
mount /dev/vda store
store=$PWD/store
head -n 1 /proc/meminfo

# two_writers DISK: two writes of 120 MiB each, at once, to a new file system there. Says how long they took.
two_writers() {
    mkfs.ext4 -q "$1"
    mount "$1" mnt
    local start=$SECONDS
    timeout 300 dd if=/dev/zero of=mnt/one bs=1M count=120 conv=fsync status=none &
    local one=$!
    timeout 300 dd if=/dev/zero of=mnt/two bs=1M count=120 conv=fsync status=none &
    local two=$!
    wait $one || fail "the first writer: status $? after $((SECONDS - start)) s"
    wait $two || fail "the second writer: status $? after $((SECONDS - start)) s"
    took=$((SECONDS - start))
    umount mnt
}

truncate -s 400M store/loop
loop=$(losetup --find --show store/loop)
two_writers "$loop"
echo "loop device: $took s"
loop_took=$took
losetup -d "$loop"
rm store/loop
for mode in "" --buffered; do
    for run in $(seq "$runs"); do
        serve
        # shellcheck disable=SC2086
        bs create disk --ublk --make-files $mode --table "0 819200 switch 2 2048 0 $store/a 0 $store/b 0"
        info=$(bs info disk)
        if [ -z "$mode" ]; then
            lacks "$info" "If memory is short"
            [ "$(modes "$store/a")" = "direct " ] || fail "mode: $(modes "$store/a")"
        else
            has "$info" "If memory is short: '$store/a' goes through the page cache"
            [ "$(modes "$store/a")" = "buffered " ] || fail "mode: $(modes "$store/a")"
        fi
        [ "$(cat /proc/$daemon/oom_score_adj)" = -999 ] || fail "oom_score_adj"
        [ "$(awk '$1 == "VmLck:" { print $2 }' /proc/$daemon/status)" -gt 5000 ] || fail "nothing is locked"
        two_writers /dev/blkswitch/disk
        echo "disk ${mode:-by default}, run $run: $took s, $(grep -E 'VmLck|VmRSS' /proc/$daemon/status | tr '\n\t' '  ')"
        # Wherever the loop device does; what is direct, sooner.
        [ $took -le $((loop_took * 3 + 60)) ] || fail "$took s beside $loop_took s of a loop device"
        kill -0 $daemon || fail "the daemon was killed"
        bs remove_all
        stop
        rm store/a store/b
    done
done

echo "modes of leaves"
serve
truncate -s 32M store/a
bs create plain --table "0 65536 linear $store/a 0"
[ "$(modes "$store/a")" = "buffered " ] || fail "a file that is below no disk: $(modes "$store/a")"
dd if=/dev/urandom of=bytes bs=64k count=16 status=none
nbdcopy bytes "nbd+unix:///plain?socket=$PWD/nbd.sock"
bs attach plain --ublk
[ "$(modes "$store/a")" = "direct " ] || fail "a file below a disk: $(modes "$store/a")"
dd if=/dev/blkswitch/plain bs=64k count=16 iflag=direct status=none | cmp - bytes
# A killed daemon's disk has the same mode and blocks.
kill -9 $daemon
wait $daemon 2>/dev/null || true
serve
[ "$(modes "$store/a")" = "direct " ] || fail "taken over: $(modes "$store/a")"
dd if=/dev/blkswitch/plain bs=64k count=16 iflag=direct status=none | cmp - bytes
# One mode for all: that which was asked for last.
bs create other --buffered --table "0 65536 linear $store/a 0"
[ "$(modes "$store/a")" = "buffered " ] || fail "asked for: $(modes "$store/a")"
bs load plain --table "0 65536 linear $store/a 0"
bs resume plain
[ "$(modes "$store/a")" = "buffered " ] || fail "what was asked for stays: $(modes "$store/a")"
dd if=/dev/blkswitch/plain bs=64k count=16 iflag=direct status=none | cmp - bytes
bs remove_all
# Blocks of 4096 bytes: direct only where that is asked for.
truncate -s 128M store/disk
loop=$(losetup --find --show --sector-size 4096 store/disk)
mkfs.ext4 -q "$loop"
mkdir large
mount "$loop" large
bs create disk --ublk --make-files --table "0 65536 linear $PWD/large/file 0"
[ "$(modes "$PWD/large/file")" = "buffered " ] || fail "blocks of 4096 below a disk of 512"
[ "$(blockdev --getss /dev/blkswitch/disk)" = 512 ] || fail "block size"
has "$(bs info disk)" "'$PWD/large/file' goes through the page cache"
text=$(bs create second --direct --table "0 65536 linear $PWD/large/file 0" 2>&1) && fail "changed under a disk"
has "$text" "direct I/O needs blocks of 4096 bytes there, and blocks of 512 are announced"
bs remove_all
bs create disk --ublk --direct --table "0 65536 linear $PWD/large/file 0"
for _ in 1 2; do
    [ "$(modes "$PWD/large/file")" = "direct " ] || fail "asked for"
    [ "$(blockdev --getss /dev/blkswitch/disk)" = 4096 ] || fail "block size"
    kill -9 $daemon
    wait $daemon 2>/dev/null || true
    serve
done
bs remove_all
umount large
losetup -d "$loop"
stop

echo "without privileges"
ulimit -l 64
serve setpriv --bounding-set=-sys_resource,-ipc_lock
bs create disk --ublk --table "0 65536 linear $store/a 0"
for text in "is held up by write-back (no CAP_SYS_RESOURCE: " "its memory is not locked (no CAP_IPC_LOCK" "may be killed for memory"; do
    has "$(bs info disk)" "If memory is short: $text"
    has "$(cat daemon.log)" "$text"
done
bs remove_all
stop
umount store
echo "short memory: ok"
