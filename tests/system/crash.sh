# The daemon is killed with -9 in mid-load and started again: everything that a completed flush (or FUA) covered is
# there, and no block holds anything that was not written to it.
. "$(dirname "$0")/lib.sh"
need_libnbd
serve
three disk 128
for round in 1 2 3 4 5; do
    # What the writer of the round before has said is not this one's.
    rm -f writer.log
    /usr/bin/python3 "$SYSTEM/crash.py" write "$(uri disk)" journal 2048 "$round" >writer.log 2>&1 &
    writer=$!
    until_true grep -q ready writer.log
    # A message in mid-load, to the same map: what the leaves hold must not depend on it.
    blkswitch message disk 0 set_region_mappings 0:0 :1 :2
    sleep "0.$((RANDOM % 7 + 1))"
    kill -KILL "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    wait $writer || fail "the writer: $(cat writer.log)"
    # The sockets of the dead daemon are in the way, and are replaced.
    [ -S "$NBD" ] || fail "there is no stale socket to replace"
    serve
    three disk 128
    /usr/bin/python3 "$SYSTEM/crash.py" check "$(uri disk)" journal || fail "round $round"
done

# A second daemon does not take a living one's sockets, nor its files.
refused blkswitch serve --nbd "unix:$HERE/other.sock" >/dev/null
(export BLKSWITCH_SOCKET=$HERE/other-control.sock && refused blkswitch serve --nbd "unix:$NBD" >/dev/null)
