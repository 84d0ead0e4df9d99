# Discards reach block devices as discards, through every target; what cannot discard is said, counted and not offered.
. "$(dirname "$0")/lib.sh"
need losetup mount
[ "$(id -u)" = 0 ] || { echo "loop devices need root"; exit 77; }
LOOPS=()
clean_up() {
    local status=$?
    blkswitch remove_all >/dev/null 2>&1 || true
    for loop in "${LOOPS[@]}"; do losetup -d "$loop" || true; done
    finish $status
}
trap clean_up EXIT
for file in a b c; do
    dd if=/dev/urandom of=$file bs=1M count=4 status=none
    loop=$(losetup -f --show $file 2>losetup.log) || { echo "no loop devices here: $(cat losetup.log)"; exit 77; }
    LOOPS+=("$loop")
done
A=${LOOPS[0]} B=${LOOPS[1]} C=${LOOPS[2]}
queue() { echo "/sys/block/${1#/dev/}/queue"; }
[ "$(cat "$(queue "$A")/discard_max_bytes")" != 0 ] || { echo "these loop devices cannot discard"; exit 77; }
# One that cannot, as a disk without TRIM.
echo 0 >"$(queue "$C")/discard_max_bytes"
cp c c.before
# Sectors that the device was asked to discard; a write of zeroes does not count.
discarded() { awk '{ print $14 }' "/sys/block/${1#/dev/}/stat"; }
ask() { python3 "$SYSTEM/discard.py" "$1" "$NBD" "$2"; }
ignored() { blkswitch stats "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["total"]["ignored_discards"])'; }
sum=0
# through_all: every target, with data in the files before.
through_all() {
    for file in a b; do dd if=c.before of=$file bs=1M conv=notrunc,fsync status=none; done
    while read -r name sectors table; do
        blkswitch create "$name" --table "$table"
        equal "$(ask offered "$name")" yes
        before=$(($(discarded "$A") + $(discarded "$B")))
        ask trim "$name" || fail "$name"
        equal "$(($(discarded "$A") + $(discarded "$B") - before))" "$sectors"
        equal "$(ignored "$name")" 0
        blkswitch remove "$name"
        sum=$((sum + sectors))
    done <<TABLES
linear 8192 0 8192 linear $A 0
striped 16384 0 16384 striped 2 64 $A 0 $B 0
switch 8192 0 8192 switch 2 128 0 $A 0 $B 0
multipath 8192 0 8192 multipath 0 0 1 1 round-robin 0 1 1 $A 1
TABLES
    # The space is free: the files behind it are holes.
    equal "$(stat -c %b a)" 0
}
# A kernel without io_uring's command for it (Linux 6.12) has a thread do it.
setarch --uname-2.6 blkswitch serve --nbd "unix:$NBD" --queues 2 >>daemon.log 2>&1 &
DAEMON=$!
until_true blkswitch version >/dev/null
until_true listens "$NBD"
through_all
stop
serve --queues 1
through_all

# Through the page cache, too, where there are dirty pages of it.
blkswitch create cached --buffered --table "0 8192 linear $A 0"
before=$(discarded "$A")
python3 "$SYSTEM/discard.py" write "$NBD" cached
ask trim cached
equal "$(($(discarded "$A") - before))" 8192
blkswitch remove cached

blkswitch create none --table "0 8192 linear $C 0"
equal "$(ask offered none)" no
blkswitch remove none
blkswitch create some --table "0 16384 striped 2 64 $B 0 $C 0"
equal "$(ask offered some)" yes
ask trim some || fail "a hint that cannot be taken is no error"
ask trim some
[ "$(ignored some)" -ge 2 ] || fail "ignored: $(ignored some)"
cmp c c.before || fail "a device that cannot discard was written to"
equal "$(grep -c 'it cannot discard: discards are counted as ignored' daemon.log)" 1
blkswitch remove some
echo "$sum sectors discarded"
