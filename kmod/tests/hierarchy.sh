#!/bin/sh
# The example of the kernel's documentation as it stands there, then the two tiers: a switch over two multipath devices,
# a path of one failed under I/O. `set -e`: any command that fails ends the test.
set -eu
export LC_ALL=C

expect() {
    [ "$2" = "$3" ] || { echo "FAILED hierarchy: $1: expected '$3', found '$2'"; exit 1; }
    passed=$((passed + 1))
}
passed=0

# Three volumes of the same size, as the documentation has them.
mkdir -p /dev/vg1
for volume in 0 1 2; do
    truncate -s 16M /run/vg1-$volume
    losetup /dev/loop1$volume /run/vg1-$volume
    ln -sf /dev/loop1$volume /dev/vg1/switch$volume
done

# --- from Documentation/admin-guide/device-mapper/switch.rst ---
dmsetup create switch --table "0 `blockdev --getsz /dev/vg1/switch0` switch 3 128 0 /dev/vg1/switch0 0 /dev/vg1/switch1 0 /dev/vg1/switch2 0"
dmsetup message switch 0 set_region_mappings 0:0 :1 :2 :0 :1 :2 :1
dmsetup message switch 0 set_region_mappings 1000:1 :2 R2,10 2>/dev/null && range=taken || range=refused
# ---------------------------------------------------------------
expect "table" "$(dmsetup table switch)" "0 32768 switch 3 128 0 7:10 0 7:11 0 7:12 0"
expect "status" "$(dmsetup status switch)" "0 32768 switch "
expect "the documented pattern begins past these 256 regions" "$range" refused
expect "map" "$(dmsetup message switch 0 get_region_mappings 0 9)" "0:0 :1 :2 R3,3 :1 R3,2"
for region in 0 1 6; do
    printf "%-512s" "region $region" | dd of=/dev/mapper/switch bs=512 seek=$((region * 128)) conv=notrunc,fsync 2>/dev/null
done
expect "region 0" "$(dd if=/dev/loop10 bs=512 count=1 iflag=direct 2>/dev/null | head -c 8)" "region 0"
expect "region 1" "$(dd if=/dev/loop11 bs=512 skip=128 count=1 iflag=direct 2>/dev/null | head -c 8)" "region 1"
expect "region 6" "$(dd if=/dev/loop11 bs=512 skip=768 count=1 iflag=direct 2>/dev/null | head -c 8)" "region 6"
dmsetup remove switch

# Two members; to each a preferred path and one for failover. All lead to one volume.
modprobe dm-multipath
modprobe dm-round-robin
truncate -s 32M /run/volume2
for path in 0 1 2 3; do
    losetup /dev/loop2$path /run/volume2
done
sectors=65536
for member in 0 1; do
    dmsetup create member$member --table "0 $sectors multipath 2 queue_mode bio 0 2 1 round-robin 0 1 0 /dev/loop2$((2 * member)) round-robin 0 1 0 /dev/loop2$((2 * member + 1))"
done
dmsetup create volume --table "0 $sectors switch 2 30720 0 /dev/mapper/member0 0 /dev/mapper/member1 0"
expect "two tiers" "$(dmsetup table volume | cut -d' ' -f1-6)" "0 $sectors switch 2 30720 0"
fio --name=tiers --filename=/dev/mapper/volume --direct=1 --ioengine=libaio --iodepth=4 --bs=4k --rw=randrw --size=32M \
    --time_based --runtime=6 --verify=crc32c --verify_backlog=128 --verify_fatal=1 --thread >/run/tiers.log 2>&1 &
fio=$!
idle() {
    dmsetup message volume 0 get_path_counters | awk '$2 + $4 == 0'
}
# fio takes its time to begin; if it never does, the test ends with it.
while [ -n "$(idle)" ] && kill -0 $fio; do sleep 0.2; done
dmsetup message member0 0 "fail_path /dev/loop20"
dmsetup message volume 0 set_region_mappings 0:1 :0 :1
sleep 1
dmsetup message member0 0 "reinstate_path /dev/loop20"
dmsetup message volume 0 set_region_mappings 0:0 R1,2
wait $fio && status=0 || status=$?
[ $status = 0 ] || cat /run/tiers.log
expect "fio over two tiers, a path failed" "$status" 0
expect "the path is back" "$(dmsetup status member0 | grep -c '7:20 A')" 1
expect "both members had I/O" "$(idle)" ""
dmsetup remove volume member0 member1
echo "hierarchy: $passed passed, 0 failed"
