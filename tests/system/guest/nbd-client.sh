#!/bin/bash
# In the guest: /dev/nbd0 is a switch device of ours. Bytes in, bytes out, discards, flushes, remaps, a file system's
# worth of small I/O through the page cache, and a clean end.
set -euo pipefail
blkswitch=$1 client=$2
cd "$(mktemp -d)"
export BLKSWITCH_SOCKET=$PWD/control.sock
fail() { echo "FAILED: $*"; tail -n 20 daemon.log; dmesg | tail -n 20; exit 1; }
trap 'fail "line $LINENO"' ERR

modprobe nbd nbds_max=2
"$blkswitch" serve --nbd "unix:$PWD/nbd.sock" >daemon.log 2>&1 &
daemon=$!
for _ in $(seq 600); do
    "$blkswitch" version >/dev/null 2>&1 && break
    sleep 0.1
done
"$blkswitch" create disk --make-files --table "0 32768 switch 3 128 0 $PWD/a 0 $PWD/b 0 $PWD/c 0"

"$client" -V 2>&1 | head -n 1
"$client" -unix "$PWD/nbd.sock" /dev/nbd0 -name disk -block-size 512 -connections 2
# holds COUNT_MIB SKIP_MIB: the device has at SKIP_MIB what the image has at its beginning.
holds() {
    dd if=/dev/nbd0 of=out bs=1M count="$1" skip="$2" iflag=direct status=none
    cmp -n $(($1 << 20)) image out
}
[ "$(blockdev --getsize64 /dev/nbd0)" = $((32768 * 512)) ] || fail "size"
[ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" != 0 ] || fail "no discard"
[ "$(cat /sys/block/nbd0/queue/write_cache)" = "write back" ] || fail "no flush"

dd if=/dev/urandom of=image bs=1M count=16 status=none
dd if=image of=/dev/nbd0 bs=256k oflag=direct conv=fsync status=none
holds 16 0

# Discarded is zero on files, and only what was discarded.
blkdiscard --offset $((1 << 20)) --length $((3 << 20)) /dev/nbd0
dd if=/dev/zero of=image bs=1M seek=1 count=3 conv=notrunc status=none
holds 16 0
blkdiscard --zeroout --offset $((5 << 20)) --length $((1 << 20)) /dev/nbd0
dd if=/dev/zero of=image bs=1M seek=5 count=1 conv=notrunc status=none
holds 16 0

# Through the page cache, small, and with the map moving to where the same bytes were put.
sync
"$blkswitch" suspend disk
cp a region
for path in b c; do
    dd if=region of=$path bs=64k count=1 conv=notrunc status=none
done
"$blkswitch" resume disk
for path in 1 2 0; do
    "$blkswitch" message disk 0 set_region_mappings 0:$path
    holds 1 0
done
dd if=image of=/dev/nbd0 bs=4k count=512 seek=512 conv=fsync status=none
holds 2 2

"$client" -d /dev/nbd0
for _ in $(seq 600); do
    "$blkswitch" remove disk 2>/dev/null && break
    sleep 0.1
done
[ "$("$blkswitch" ls)" = "No devices found" ] || fail "the device is still open"
kill -TERM $daemon
wait $daemon
! dmesg | grep -e 'BUG' -e 'blocked for more' || fail "the kernel complains"
