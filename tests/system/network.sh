# Paths over links that are cut: a server in a network namespace, two links to it, a multipath device over both, fio
# that verifies. A cut link says nothing, unlike a killed server: only the time limit of the leaf tells.
. "$(dirname "$0")/lib.sh"
need ip iproute2
need nbdkit nbdkit
need fio fio
fio --enghelp 2>/dev/null | grep -q '\bnbd\b' || { echo "this fio has no nbd engine"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "network namespaces need root"; exit 77; }
SPACE=blkswitch-$$
ip netns add "$SPACE" 2>netns.log || { echo "no network namespaces here: $(cat netns.log)"; exit 77; }
clean_up() {
    local status=$?
    # With the namespace its ends of the links go, and with these the others.
    ip netns pids "$SPACE" | xargs -r kill -KILL || true
    ip netns del "$SPACE"
    finish $status
}
trap clean_up EXIT

# From the addresses for documentation (RFC 5737), so that nothing real is hidden for the time of the test.
for link in 0 1; do
    ip link add "bs$link-$$" type veth peer name "link$link" netns "$SPACE"
    ip addr add "198.51.100.$((link * 4 + 1))/30" dev "bs$link-$$"
    ip -n "$SPACE" addr add "198.51.100.$((link * 4 + 2))/30" dev "link$link"
    ip link set "bs$link-$$" up
    ip -n "$SPACE" link set "link$link" up
done
ip -n "$SPACE" link set lo up
ip netns exec "$SPACE" nbdkit --foreground memory 64M >servers.log 2>&1 &
for address in 198.51.100.2 198.51.100.6; do until_true bash -c ": </dev/tcp/$address/10809"; done

serve --queues 2 --path-checker-interval 0.5
PATHS=(nbd://198.51.100.2/?timeout=1 nbd://198.51.100.6/?timeout=1)
SECTORS=$((64 * 2048))
blkswitch create member --table "0 $SECTORS multipath 1 queue_if_no_path 0 2 1 \
    round-robin 0 1 1 ${PATHS[0]} 1 round-robin 0 1 1 ${PATHS[1]} 1"
blkswitch create volume --table "0 $SECTORS switch 1 128 0 /dev/blkswitch/member 0"
all_up() {
    [ "$(blkswitch status member | grep -oE 'timeout=1 [AF]' | sort | uniq -c | tr -s ' ')" = " 2 timeout=1 A" ]
}
path_is_down() {
    blkswitch status member | grep -qF "${PATHS[$1]} F"
}
all_up || fail "$(blkswitch status member)"

# Again and again, until there was enough: how long the links take depends on the machine.
load() {
    local round=0
    while [ ! -e enough ]; do
        round=$((round + 1))
        fio --name=load --ioengine=nbd --uri="$(uri volume)" --rw=randrw --bsrange=4k-64k --bs_unaligned=0 \
            --iodepth=16 --numjobs=2 --size=32m --offset_increment=32m --time_based --runtime=10 --fsync=64 \
            --verify=crc32c --verify_fatal=1 --verify_backlog=256 --verify_state_save=0 --group_reporting \
            --output-format=json --output="load.$round.json" >load.log 2>&1 || return 1
    done
}
load &
load=$!
sleep 1
# Each link in turn, then both.
for link in 0 1; do
    ip link set "bs$link-$$" down
    until_true path_is_down $link
    ip link set "bs$link-$$" up
    until_true all_up
done
for link in 0 1; do ip link set "bs$link-$$" down; done
until_true path_is_down 0
until_true path_is_down 1
kill -0 $load || fail "fio did not wait for a path: $(cat load.log load.*.json)"
for link in 0 1; do ip link set "bs$link-$$" up; done
until_true all_up
touch enough
wait $load || fail "fio: $(cat load.log load.*.json)"
python3 - load.*.json <<'PYTHON'
import json, sys
jobs = []
for name in sys.argv[1:]:
    text = open(name).read()
    jobs.append(json.loads(text[text.index("{"):])["jobs"][0])
reads, writes = (sum(job[way]["total_ios"] for job in jobs) for way in ("read", "write"))
print("reads", reads, "writes", writes, "longest wait",
      max(job[way]["clat_ns"]["max"] for job in jobs for way in ("read", "write")) / 1e9, "s")
assert all(job["error"] == 0 for job in jobs) and reads > 100 and writes > 100
PYTHON
blkswitch remove volume
blkswitch remove member
