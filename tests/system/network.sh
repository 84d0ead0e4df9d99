# Paths over links that are cut: a server in a network namespace, two links to it, a multipath device over both, fio
# that verifies. A cut link says nothing, unlike a killed server: only the time limit of the leaf tells. Meanwhile regions
# move, and all devices are suspended, resumed and reloaded, as SEED says: SEED=N runs the same again.
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
PATHS=('nbd://198.51.100.2/?timeout=1&settle=1' 'nbd://198.51.100.6/?timeout=1&settle=1')
SECTORS=$((64 * 2048))
# A request may wait while one link is cut: for its silence, which is looked at every second, and for its writes in
# doubt to settle; for both again when the other link is cut; for a probe of the other link, should that not be in use
# again yet; and for a busy machine.
LONGEST=$((2 * (1 + 1 + 1) + 2 + 6))
member() {
    echo "0 $SECTORS multipath 1 queue_if_no_path 0 2 1 \
        round-robin 0 1 1 ${PATHS[$1]} 1 round-robin 0 1 1 ${PATHS[1 - $1]} 1"
}
declare -A TABLES=(
    [member0]=$(member 0) [member1]=$(member 1)
    [volume]="0 $SECTORS switch 2 128 0 /dev/blkswitch/member0 0 /dev/blkswitch/member1 0"
)
DEVICES=(member0 member1 volume)
for device in "${DEVICES[@]}"; do blkswitch create $device --table "${TABLES[$device]}"; done
states() {
    blkswitch status member0
    blkswitch status member1
}
all_up() {
    [ "$(states | grep -oE 'settle=1 [AF]' | sort | uniq -c | tr -s ' ')" = " 4 settle=1 A" ]
}
path_is_down() {
    [ "$(states | grep -cF "${PATHS[$1]} F")" = 2 ]
}
all_up || fail "$(states)"

# load NAME: again and again, until there is a file NAME.enough: how long the links take depends on the machine.
load() {
    local round=0
    while [ ! -e "$1.enough" ]; do
        round=$((round + 1))
        fio --name=load --ioengine=nbd --uri="$(uri volume)" --rw=randrw --bsrange=4k-64k --bs_unaligned=0 \
            --iodepth=16 --numjobs=2 --size=32m --offset_increment=32m --time_based --runtime=10 --fsync=64 \
            --verify=crc32c --verify_fatal=1 --verify_backlog=256 --verify_state_save=0 --group_reporting \
            --output-format=json --output="$1.$round.json" >load.log 2>&1 || return 1
    done
}
# judge NAME [SECONDS]: what fio says; the longest wait is below so many seconds.
judge() {
    python3 - "$1" "${2:-inf}" "$1".*.json <<'PYTHON'
import json, sys
name, longest = sys.argv[1], float(sys.argv[2])
jobs = []
for file in sys.argv[3:]:
    text = open(file).read()
    jobs.append(json.loads(text[text.index("{"):])["jobs"][0])
reads, writes = (sum(job[way]["total_ios"] for job in jobs) for way in ("read", "write"))
wait = max(job[way]["clat_ns"]["max"] for job in jobs for way in ("read", "write")) / 1e9
print(f"{name}: {reads} reads, {writes} writes, longest wait {wait:.2f} s" + (f" of at most {longest:.0f} s" if longest < 1e9 else ""))
assert all(job["error"] == 0 for job in jobs) and reads > 100 and writes > 100
assert wait < longest, f"{wait} s"
PYTHON
}
# disturb: regions move, devices are suspended and reloaded, until there is a file calm; it notes how often.
disturb() {
    local times=0 device words
    RANDOM=$SEED
    while [ ! -e calm ]; do
        sleep 0.$((1 + RANDOM % 4))
        words=
        for _ in 1 2 3 4 5 6 7 8; do words+=$(printf ' %x:%x' $((RANDOM % 1024)) $((RANDOM % 2))); done
        blkswitch message volume 0 set_region_mappings $words
        device=${DEVICES[RANDOM % 3]}
        [ $((RANDOM % 2)) = 0 ] || blkswitch load $device --table "${TABLES[$device]}"
        # Without --noflush what finds no path would fail.
        blkswitch suspend --noflush $device
        blkswitch resume $device
        times=$((times + 1))
    done
    echo $times >disturbed
}
SEED=${SEED:-$RANDOM}
echo "SEED=$SEED"
disturb >disturb.log 2>&1 &
disturb=$!

# Each link in turn.
load one &
load=$!
sleep 1
for link in 0 1; do
    ip link set "bs$link-$$" down
    until_true path_is_down $link
    ip link set "bs$link-$$" up
    until_true all_up
done
touch one.enough
wait $load || fail "fio: $(cat load.log one.*.json)"
judge one $LONGEST

# Both.
load both &
load=$!
sleep 1
for link in 0 1; do ip link set "bs$link-$$" down; done
until_true path_is_down 0
until_true path_is_down 1
kill -0 $load || fail "fio did not wait for a path: $(cat load.log both.*.json)"
for link in 0 1; do ip link set "bs$link-$$" up; done
until_true all_up
touch both.enough calm
wait $load || fail "fio: $(cat load.log both.*.json)"
judge both
wait $disturb || fail "a device could not be remapped, suspended, reloaded or resumed: $(cat disturb.log)"
echo "suspended $(cat disturbed) times"
[ "$(cat disturbed)" -gt 3 ] || fail "hardly anything was disturbed"
for device in volume member0 member1; do blkswitch remove $device; done
