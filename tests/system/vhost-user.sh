# vhost-user: a device of the daemon as a disk of a guest, by QEMU's vhost-user-blk: written and verified by fio, remapped,
# grown, and served by a daemon that is killed and started again ten times meanwhile.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need fio fio
KILLS=${KILLS:-10}

start() {
    blkswitch serve --nbd "unix:$NBD" --state "$HERE/state" >>daemon.log 2>&1 &
    DAEMON=$!
    until_true blkswitch version >/dev/null
}
start
# Three paths to one volume, so that a remap changes the way and not the data.
disk="0 65536 switch 3 128 0 $HERE/volume 0 $HERE/volume 0 $HERE/volume 0"
blkswitch create disk --make-files --table "$disk"
socket=$(blkswitch attach disk --vhost-user --queues 4)
equal "$socket" "$HERE/disk.vhost"
equal "$(stat -c %a "$socket")" 600
has "$(blkswitch info disk)" "Vhost-user:        $socket (4 queues, no front end)"
has "$(blkswitch info disk --json)" '"connected": false'
has "$(blkswitch ls)" "$socket"

cat >guest.sh <<'GUEST'
set -euo pipefail
modprobe virtio_blk
disk=/dev/vda
for _ in $(seq 100); do [ -b $disk ] && break; sleep 0.1; done
[ "$(blockdev --getsize64 $disk)" = 33554432 ]
[ "$(cat /sys/block/vda/serial)" = disk ]
[ "$(cat /sys/block/vda/queue/write_cache)" = "write back" ]
[ "$(cat /sys/block/vda/queue/discard_max_bytes)" != 0 ]
[ "$(ls /sys/block/vda/mq | wc -l)" = 2 ]
blkdiscard -o 0 -l 1048576 $disk
blkdiscard -z -o 0 -l 1048576 $disk
echo "guest: begins"
fio --name=verify --filename=$disk --rw=randwrite --bsrange=512-128k --blockalign=512 --size=32m --loops=3 \
    --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --time_based --runtime="$1" \
    --fsync=64 --minimal >fio.log || { cat fio.log; exit 1; }
echo "guest: verified"
# The host has loaded a longer table: the kernel hears of it.
for _ in $(seq 300); do [ "$(blockdev --getsize64 $disk)" = 67108864 ] && break; sleep 0.1; done
[ "$(blockdev --getsize64 $disk)" = 67108864 ]
dd if=/dev/zero of=$disk bs=1M seek=60 count=4 oflag=direct 2>dd.log
echo "guest: ends"
GUEST
"$XTASK" vm --user-space --timeout 900 --vhost-user "$socket" "$(command -v bash)" "$HERE/guest.sh" $((20 + 6 * KILLS)) \
    >guest.log 2>&1 &
guest=$!
said() { grep -q "$1" guest.log || ! kill -0 $guest; }
until_said() {
    for _ in $(seq 6000); do said "$1" && return; sleep 0.1; done
}
until_said "guest: begins"
has "$(blkswitch info disk)" "connected)"
has "$(refused blkswitch detach disk)" "a vhost-user front end is connected"
# served: the daemon has served the guest. QEMU 7.2 does not come back from a daemon that dies while it connects.
served() { blkswitch stats disk | awk '$1 == "disk" { done = $2 > 0 || $4 > 0 } END { exit !done }'; }
for kill in $(seq "$KILLS"); do
    until_true served
    sleep 1
    blkswitch message disk 0 set_region_mappings "$((kill % 8)):$((kill / 2 % 3))"
    kill -KILL $DAEMON
    wait $DAEMON 2>/dev/null || true
    start
done
until_said "guest: verified"
truncate -s 32M more
printf '%s\n' "$disk" "65536 65536 linear $HERE/more 0" >longer
blkswitch load disk longer
blkswitch resume disk
wait $guest || { cat guest.log; fail "the guest ended with $?"; }
has "$(cat guest.log)" "guest: ends"
blkswitch detach disk
[ ! -e "$socket" ] || fail "the socket stays behind"
