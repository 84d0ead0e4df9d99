#!/bin/bash
# In the guest: devices of the daemon as disks. What is refused without a driver; a file system; signals to stop while a disk
# is in use; messages, suspends and reloads under a verifying load; ten deaths and upgrades of the daemon under it, each after
# a remap that was acknowledged; devices on devices; what happens to disks that cannot be taken over.
set -euo pipefail
blkswitch=$1
cd "$(mktemp -d)"
export BLKSWITCH_SOCKET=$PWD/run/control.sock
fail() { echo "FAILED: $*"; tail -n 30 daemon.log; dmesg | tail -n 20; exit 1; }
trap 'fail "line $LINENO"' ERR
has() { case $1 in *"$2"*) ;; *) fail "'$2' is not in: $1" ;; esac; }
bs() { "$blkswitch" "$@"; }
# Once the checker has found something out.
status_becomes() {
    for _ in $(seq 600); do
        case $(bs status "$1") in *"$2"*) return ;; esac
        sleep 0.1
    done
    has "$(bs status "$1")" "$2"
}

serve() {
    "$blkswitch" serve --nbd "unix:$PWD/nbd.sock" "$@" >>daemon.log 2>&1 &
    daemon=$!
    for _ in $(seq 1200); do
        bs version >/dev/null 2>&1 && return
        kill -0 $daemon 2>/dev/null || return 0
        sleep 0.05
    done
    fail "the daemon does not answer"
}
# ends: the daemon ends, with its status; one that does not is looked at.
ends() {
    local task
    for _ in $(seq 900); do
        kill -0 $daemon 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 $daemon 2>/dev/null; then
        for task in /proc/$daemon/task/*; do
            echo "$(cat "$task/comm"): $(cat "$task/wchan")"
            cat "$task/stack"
        done
        fail "the daemon does not end"
    fi
    wait $daemon
}
die() { kill -9 $daemon; wait $daemon 2>/dev/null || true; }

# Without a driver the device is made all the same.
serve
text=$(bs create disk --ublk --make-files --table "0 32768 switch 1 128 0 $PWD/early 0" 2>&1) && fail "made a disk"
has "$text" "device 'disk' is made and served over NBD, but is no disk: no ublk driver: /dev/ublk-control does not exist"
has "$(bs ls)" disk
bs remove disk
modprobe ublk_drv
modprobe ext4

# A zoned disk is no leaf.
modprobe null_blk nr_devices=1 zoned=1 zone_size=4 gb=1
text=$(bs create zoned --table "0 8192 linear /dev/nullb0 0" 2>&1) && fail "took a zoned disk"
has "$text" "'/dev/nullb0' is a zoned disk, whose zones must be written from front to back"
rmmod null_blk

# Two ways to one disk are a multipath, as its world wide name says; ways to two disks are not.
modprobe sd_mod
modprobe scsi_debug add_host=2 max_luns=2 dev_size_mb=8 vpd_use_hostno=0
for _ in $(seq 600); do
    [ "$(ls -d /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/* 2>/dev/null | wc -l)" = 4 ] && break
    sleep 0.1
done
disks=()
for wwid in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/wwid; do
    disks+=("$(cat "$wwid") /dev/$(ls "${wwid%wwid}block")")
done
read -r one other <<<"$(printf '%s\n' "${disks[@]%% /dev/*}" | sort -u | tr '\n' ' ')"
ways() { printf '%s\n' "${disks[@]}" | awk -v wwid="$1" '$1 == wwid { print $2 }' | tr '\n' ' '; }
read -r a b <<<"$(ways "$one")"
read -r c _ <<<"$(ways "$other")"
[ -b "$a" ] && [ -b "$b" ] && [ -b "$c" ] || fail "disks: ${disks[*]}"
paths() { echo "0 16384 multipath 0 0 2 1 round-robin 0 1 1 $1 1 round-robin 0 1 1 $2 1"; }
text=$(bs create mp --table "$(paths "$a" "$c")" 2>&1) && fail "took two disks for one"
has "$text" "'$c'"
has "$text" "$one"
text=$(bs create mp --buffered --table "$(paths "$a" "$b")" 2>&1) && fail "took paths through the page cache"
has "$text" "goes through the page cache"
bs create mp --ublk --table "$(paths "$a" "$b")"
dd if=/dev/urandom of=data bs=1M count=8 status=none
dd if=data of=/dev/blkswitch/mp bs=64k oflag=direct status=none
bs message mp 0 fail_path "$a"
# Its failure is counted; the checker may have reinstated it by now.
status=$(bs status mp)
has "${status/"$a A 1"/"$a F 1"}" "$a F 1 E 0 1 0 $b A 0"
dd if=/dev/blkswitch/mp bs=64k iflag=direct status=none | cmp - data
bs message mp 0 reinstate_path "$a"
bs message mp 0 switch_group 1
dd if=/dev/blkswitch/mp bs=64k iflag=direct status=none | cmp - data
# One way is taken away by the kernel: requests go on over the other.
echo offline >"/sys/block/${a#/dev/}/device/state"
dd if=/dev/blkswitch/mp bs=64k iflag=direct status=none | cmp - data
has "$(bs status mp)" "$a F"
echo running >"/sys/block/${a#/dev/}/device/state"
status_becomes mp "$a A"
bs remove mp

# A way that says nothing, neither data nor error: what was sent there waits, the checker fails it, the rest goes on.
for way in first second; do
    dmsetup create $way --table "0 16384 linear $c 0"
done
first=/dev/mapper/first second=/dev/mapper/second
bs create mp --ublk --table "$(paths $first $second)"
dd if=data of=/dev/blkswitch/mp bs=64k oflag=direct status=none
dmsetup suspend first
dd if=/dev/blkswitch/mp of=late bs=64k count=1 iflag=direct status=none &
late=$!
status_becomes mp "$first F 1 E 0 1 0 $second A 0"
dd if=/dev/blkswitch/mp bs=64k iflag=direct status=none | cmp - data
dd if=data of=/dev/blkswitch/mp bs=64k oflag=direct status=none
kill -0 $late || fail "a request to a way that hangs was answered"
dmsetup resume first
wait $late || fail "a late answer: status $?"
cmp -n 65536 late data
status_becomes mp "$first A"
dd if=/dev/blkswitch/mp bs=64k iflag=direct status=none | cmp - data
bs remove mp
# A probe may still have them open.
dmsetup remove --retry first
dmsetup remove --retry second

# A disk that becomes write-protected, which the kernel does not notice: writes go the other way until it can be written.
truncate -s 8M other-way
bs create mp --ublk --table "$(paths "$c" "$PWD/other-way")"
echo 1 >/sys/module/scsi_debug/parameters/wp
dd if=data of=/dev/blkswitch/mp bs=64k oflag=direct status=none
cmp data other-way
has "$(bs status -v mp)" "$c: it has become read-only"
# Several probes find that it can be read, and still not written.
sleep 12
has "$(bs status mp)" "$c F"
echo 0 >/sys/module/scsi_debug/parameters/wp
status_becomes mp "$c A"
bs remove mp
rmmod scsi_debug

# A thin unit that can only unmap, not write zeroes fast: what is discarded there is free, on a disk and over NBD.
# Its attribute `map` has the blocks that are allocated.
modprobe scsi_debug lbpu=1 lbpws=0 lbpws10=0 dev_size_mb=16
thin=
for _ in $(seq 600); do
    thin=$(ls -d /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/* 2>/dev/null | head -n 1)
    [ -n "$thin" ] && break
    sleep 0.1
done
thin=/dev/${thin##*/}
[ -b "$thin" ] || fail "no thin unit"
allocated() { cat /sys/bus/pseudo/drivers/scsi_debug/map; }
bs create thin --ublk --table "0 32768 switch 2 128 0 $thin 0 $thin 0"
[ "$(cat /sys/block/ublkb0/queue/discard_max_bytes)" != 0 ] || fail "a disk over a thin unit cannot discard"
dd if=/dev/urandom of=/dev/blkswitch/thin bs=1M count=16 oflag=direct status=none
has "$(allocated)" "0-32767"
blkdiscard /dev/blkswitch/thin
[ -z "$(allocated)" ] || fail "blkdiscard leaves blocks: $(allocated)"
mkfs.ext4 -q -F /dev/blkswitch/thin
case $(allocated) in 0-32767) fail "mkfs has every block allocated" ;; esac
bs stats thin --json | grep -q '"ignored_discards": *0' || fail "$(bs stats thin --json)"
bs remove thin
rmmod scsi_debug
# A unit without unmapping: the disk does not offer discards.
modprobe scsi_debug dev_size_mb=16
for _ in $(seq 600); do
    [ -b "$thin" ] && break
    sleep 0.1
done
bs create thick --ublk --table "0 32768 linear $thin 0"
[ "$(cat /sys/block/ublkb0/queue/discard_max_bytes)" = 0 ] || fail "a disk over a unit without UNMAP offers discards"
text=$(blkdiscard /dev/blkswitch/thick 2>&1) && fail "discarded"
bs remove thick
rmmod scsi_debug

# A disk by its name.
bs create disk --ublk --make-files --table "0 65536 switch 3 24 0 $PWD/a 0 $PWD/b 0 $PWD/c 0"
[ "$(readlink /dev/blkswitch/disk)" = /dev/ublkb0 ] || fail "link"
has "$(bs info disk)" "Disk:              /dev/ublkb0 (/dev/blkswitch/disk, "
[ "$(bs ls)" = "disk	(0:0)	/dev/ublkb0" ] || fail "ls: $(bs ls)"
[ "$(blockdev --getsize64 /dev/blkswitch/disk)" = $((65536 * 512)) ] || fail "size"
[ "$(cat /sys/block/ublkb0/queue/chunk_sectors)" = 24 ] || fail "chunk_sectors"
mkfs.ext4 -q /dev/blkswitch/disk
mkdir mnt
mount /dev/blkswitch/disk mnt
cp -r /etc/terminfo mnt/ 2>/dev/null || cp /bin/busybox mnt/
sync
text=$(bs detach disk 2>&1) && fail "detached what is mounted"
has "$text" "/dev/ublkb0 is in use"
text=$(bs remove disk 2>&1) && fail "removed what is mounted"
echo "refusing to stop"
# Who would be left waiting is asked twice, mounted or merely open; a signal that comes twice at once is one.
refused() {
    local seen
    seen=$(grep -c "is refused, for disks are in use" daemon.log || true)
    kill "$@" $daemon
    kill "$@" $daemon
    for _ in $(seq 200); do
        [ "$(grep -c "is refused, for disks are in use" daemon.log || true)" -gt "$seen" ] && return
        sleep 0.05
    done
    fail "not refused"
}
refused -INT
has "$(tail -n 1 daemon.log)" "SIGINT is refused, for disks are in use: 'disk' (/dev/ublkb0: it is mounted or another device stands on it)"
sleep 1
kill -0 $daemon || fail "stopped by a signal that nobody can have meant"
dd if=/dev/zero of=mnt/zeroes bs=64k count=4 oflag=direct status=none
umount mnt
sleep 15 # longer than it could have been confirmed
exec 9</dev/ublkb0
refused -TERM
has "$(tail -n 1 daemon.log)" "SIGTERM is refused, for disks are in use: 'disk' (/dev/ublkb0: process $$ ($(cat /proc/$$/comm)) has it open)"
sleep 3 # longer than a signal counts as the one before
kill -INT $daemon
ends || fail "a signal given twice: status $?"
[ -e /dev/ublkb0 ] || fail "the disk is gone"
exec 9<&-
serve
fsck.ext4 -f -n /dev/blkswitch/disk >/dev/null 2>&1
# Nobody uses it: it waits for the next.
kill $daemon
ends || fail "status $?"
serve
bs rename disk other
[ "$(readlink /dev/blkswitch/other)" = /dev/ublkb0 ] && [ ! -e /dev/blkswitch/disk ] || fail "rename"
bs detach other
[ ! -e /dev/blkswitch/other ] && [ ! -e /dev/ublkb0 ] || fail "detach"
for queues in 1 2; do
    bs attach other --ublk --queues $queues --depth 16
    [ "$(ls /sys/block/ublkb0/mq | wc -l)" = $queues ] || fail "queues"
    bs detach other
done
bs attach other --ublk
bs remove other
[ ! -e /dev/ublkb0 ] || fail "remove"

# Three paths to one file: whatever the map says, the bytes are the same.
bs create disk --ublk --make-files --table "0 65536 switch 3 40 0 $PWD/one 0 $PWD/one 0 $PWD/one 0"
load() {
    while [ ! -e enough ]; do
        fio --name=verify --filename=/dev/blkswitch/disk --rw=randwrite --bs=4k-64k --direct=1 --ioengine=libaio \
            --iodepth=16 --io_size=8m --verify=crc32c --verify_backlog=32 --verify_fatal=1 --randseed=$RANDOM \
            >fio.log 2>&1 && grep -q "err= 0" fio.log || return 1
        echo >>fio.rounds
    done
}
load &
load=$!
remap() {
    local words="" word
    for _ in {1..200}; do
        printf -v word ' %x:%x' $((RANDOM % 1639)) $((RANDOM % 3))
        words+=$word
    done
    # shellcheck disable=SC2086
    bs message disk 0 set_region_mappings $words
}
for round in $(seq 10); do
    remap
    bs suspend disk
    bs load disk --table "0 65536 switch 3 40 0 $PWD/one 0 $PWD/one 0 $PWD/one 0"
    bs resume disk
    remap
    map=$(bs map export disk | cksum)
    start=$(date +%s%N)
    # The even ones are upgrades in place: the daemon of the first would refuse the signal.
    if [ $((round % 2)) = 0 ]; then kill $daemon; ends; else die; fi
    kill -0 $load || fail "fio in round $round: $(cat fio.log)"
    serve --leave-disks
    echo "round $round: $((($(date +%s%N) - start) / 1000000)) ms without a daemon"
    [ "$(bs map export disk | cksum)" = "$map" ] || fail "round $round: acknowledged remaps are lost"
    has "$(bs info disk)" "/dev/ublkb0"
done
touch enough
wait $load || fail "fio: $(cat fio.log)"
echo "fio verified $(wc -l <fio.rounds) times"
[ "$(ls run/disks | wc -l)" = 2 ] || fail "files are left: $(ls run/disks)"

# A closed gate stays closed, and devices below come back too.
bs suspend disk
die
serve
has "$(bs info disk)" SUSPENDED
bs resume disk
bs remove disk
bs create lower --make-files --table "0 65536 switch 2 16 0 $PWD/l0 0 $PWD/l1 0"
bs create upper --ublk --table "0 65536 linear /dev/blkswitch/lower 0"
bs message lower 0 set_region_mappings 0:1 R1,10
map=$(bs map export lower | cksum)
dd if=/dev/urandom of=bytes bs=1M count=4 status=none
dd if=bytes of=/dev/blkswitch/upper oflag=direct bs=256k status=none
die
serve
[ "$(bs map export lower | cksum)" = "$map" ] || fail "the map below is lost"
dd if=/dev/blkswitch/upper of=read iflag=direct bs=256k count=16 status=none
cmp bytes read

# By force, while it is mounted.
mkfs.ext4 -q /dev/blkswitch/upper
mount /dev/blkswitch/upper mnt
bs detach --force upper
[ ! -e /dev/ublkb0 ] || fail "detach --force"
umount mnt
bs remove upper
bs remove lower

# What is in the daemon's memory dies with it: that is said, and the disk can be let go of.
bs create disk --ublk --table "0 65536 linear mem:32M 0"
grep -q "cannot be taken over" daemon.log || fail "nothing said"
die
serve
grep -q "nothing is known here" daemon.log || fail "nothing said of what is left"
[ -e /dev/ublkb0 ] || fail "gone"
kill $daemon
ends
serve --abandon-disks
[ ! -e /dev/ublkb0 ] || fail "abandon"

# A leaf that is gone: the disk is taken over, its requests wait, and it goes on with the leaf.
bs create disk --ublk --make-files --table "0 2048 linear $PWD/leaf 0"
dd if=bytes of=/dev/blkswitch/disk oflag=direct bs=4k count=1 status=none
die
mv leaf away
serve --ublk
has "$(bs info disk)" "/dev/ublkb0"
bs info disk | grep -q "Away: .*leaf.*I/O waits" || fail "no reason"
[ "$(blockdev --getsz /dev/ublkb0)" = 2048 ] || fail "another size"
dd if=/dev/blkswitch/disk of=read iflag=direct bs=4k count=1 status=none & reader=$!
mv away leaf
wait $reader || fail "a request that should wait failed"
cmp -n 4096 bytes read
bs info disk | grep -q "Away:" && fail "still away"
bs create second --make-files --table "0 2048 linear $PWD/second 0"
has "$(bs info second)" "/dev/ublkb1"
bs create third --notable
bs load third --make-files --table "0 2048 linear $PWD/third 0"
bs resume third
has "$(bs info third)" "/dev/ublkb2"
bs remove_all
[ ! -e /dev/ublkb0 ] && [ ! -e /dev/ublkb1 ] && [ ! -e /dev/ublkb2 ] || fail "remove_all"
kill $daemon
ends
echo "the daemon's disks: ok"
