# The iSCSI leaf on tgt: a switch over two targets, one of them behind CHAP, written through our NBD export and compared
# with what tgt has stored; one target is killed and comes back meanwhile. The secret, from a file or from the environment, is
# seen nowhere, however much is logged.
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
need tgtd tgt
need tgtadm tgt
need fio fio
need nbdcopy libnbd-bin
need curl curl
fio --enghelp 2>/dev/null | grep -q '\bnbd\b' || { echo "this fio has no nbd engine"; exit 77; }
[ "$(id -u)" = 0 ] || { echo "tgtd needs root"; exit 77; }
SECRET=correct-horse-battery
CHAP_SECRET=$SECRET serve --queues 2 --log-level trace --state "$HERE/state"
blkswitch monitor --json >monitor.log 2>&1 &
MONITOR=$!

# admin NUMBER WORD...: tgtadm for the target daemon of that control number.
admin() {
    local number=$1
    shift
    tgtadm --control-port "$number" --lld iscsi "$@"
}
DAEMONS=()
BASE=$((20000 + $$ % 10000))
# target NAME [NUMBER]: a daemon of its own on a port of its own, with one unit of 16 MiB over the file NAME.img.
target() {
    # tgt names its units after the number of the target.
    local name=$1 tid=${#1} number=${2:-$((BASE + ${#1}))}
    # Below the ports that the kernel gives to whoever asks for any.
    local port=$number
    tgtd --foreground --iscsi "portal=127.0.0.1:$port,portal=127.0.0.2:$port" --control-port "$number" >>tgtd.log 2>&1 &
    DAEMONS+=($!)
    eval "pid_$name=$!"
    until_true admin $number --mode sys --op show >/dev/null
    admin $number --mode target --op new --tid $tid -T "iqn.2026-11.org.example:$name"
    admin $number --mode logicalunit --op new --tid $tid --lun 1 -b "$HERE/$name.img"
    admin $number --mode target --op bind --tid $tid -I ALL
    if [ "$name" = chap ]; then
        admin $number --mode account --op new --user me --password $SECRET
        admin $number --mode account --op bind --tid $tid --user me
    fi
    eval "port_$name=$port"
}
end_daemons() {
    local daemon number
    for daemon in "${DAEMONS[@]}"; do
        kill -KILL "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    done
    for number in $((BASE + 4)) $((BASE + 2)) $((BASE + 9)); do
        rm -f "/var/run/tgtd/socket.$number" "/var/run/tgtd/socket.$number.lock"
    done
}
clean_up() {
    local status=$?
    end_daemons
    kill "$MONITOR" 2>/dev/null || true
    finish $status
}
trap clean_up EXIT
truncate -s 16M a1.img chap.img
target a1
target chap
echo $SECRET >secret
chmod 600 secret
cp secret open
chmod 604 open
echo wrong-$SECRET >wrong

# A secret in the address is refused; neither the answer nor the log repeats it.
said=$(refused blkswitch create none --table "0 8 linear iscsi://me%$SECRET@127.0.0.1:$port_chap/iqn.2026-11.org.example:chap/1 0")
has "$said" secret-file
case $said in *$SECRET*) fail "the secret is repeated: $said" ;; esac
# Without it, or with a wrong one, nobody is let in.
refused blkswitch create none --table "0 8 linear iscsi://127.0.0.1:$port_chap/iqn.2026-11.org.example:chap/1 0" >/dev/null

a1="iscsi://127.0.0.1:$port_a1/iqn.2026-11.org.example:a1/1?reconnect=30"
chap="iscsi://me@127.0.0.1:$port_chap/iqn.2026-11.org.example:chap/1?secret-file=$HERE/secret&reconnect=30"
refused blkswitch create none --table "0 8 linear ${chap/secret&/wrong&} 0" >refused.log
# From the environment, and from a file that everybody may read, which is said.
for at in secret-env=CHAP_SECRET "secret-file=$HERE/open"; do
    blkswitch create one --table "0 32768 linear ${chap/secret-file=*/$at} 0"
    fio --name=one --ioengine=nbd --uri="$(uri one)" --rw=read --bs=64k --size=1m >fio.log 2>&1 || fail "fio: $(cat fio.log)"
    blkswitch remove one
done
grep -q "everybody on this machine may read this secret.*$HERE/open" daemon.log || fail "no warning about the open file"
! grep -q "may read this secret.*$HERE/secret" daemon.log || fail "a warning about the closed file"
# A table that is longer than a unit is refused, with both lengths.
for type in "linear $a1 0" "linear $a1 1" "switch 2 128 0 $a1 0 $chap 0" "multipath 0 0 1 1 round-robin 0 1 0 $a1"; do
    case $type in *" 1") sectors=32768 ;; *) sectors=32776 ;; esac
    said=$(refused blkswitch create none --table "0 $sectors $type")
    has "$said" "${a1%\?*}"
    has "$said" 32768
done
blkswitch create disk --table "0 32768 switch 2 128 0 $a1 0 $chap 0"
verify() {
    fio --name=disk --ioengine=nbd --uri="$(uri disk)" --rw=randrw --bsrange=4k-128k --bs_unaligned=0 --iodepth=16 \
        --numjobs=2 --size=8m --offset_increment=8m --loops="$1" --fsync=32 --verify=crc32c --verify_fatal=1 \
        --verify_backlog=64 --verify_state_save=0 --group_reporting >fio.log 2>&1 || fail "fio: $(cat fio.log)"
}
verify 2 &
load=$!
for round in 1 2; do
    sleep 0.7
    kill -KILL "$pid_a1"
    wait "$pid_a1" 2>/dev/null || true
    sleep 0.3
    target a1
done
wait $load || fail "fio while a target is killed: $(cat fio.log)"
grep -q "connection lost" daemon.log || fail "no connection was lost"

# What is read by way of the leaves is what tgt has in its files.
pattern data 16777216
nbdcopy data "$(uri disk)" --flush
blkswitch map show disk --json >map.json
python3 - <<'PYTHON'
import json
with open("map.json") as text:
    shape = json.load(text)
region, leaves, wanted = shape["region_size"] * 512, [open("a1.img", "rb"), open("chap.img", "rb")], open("data", "rb")
for run in shape["runs"]:
    leaf = leaves[run["path"]]
    leaf.seek(run["start"] * region)
    wanted.seek(run["start"] * region)
    length = run["count"] * region
    assert leaf.read(length) == wanted.read(length), run
PYTHON

for seen in "$(blkswitch table disk)" "$(blkswitch status disk)" "$(blkswitch ls --tree)" "$(blkswitch info disk --json)" \
    "$(cat daemon.log refused.log monitor.log)" "$(grep -ra "" state)" "$(blkswitch stats disk)" "$(blkswitch stats disk --json)" \
    "$(blkswitch deps disk --json)" "$(tr '\0' ' ' <"/proc/$DAEMON/cmdline")" \
    "$(curl -s --unix-socket "$BLKSWITCH_SOCKET" http://localhost/metrics)"; do
    case $seen in *$SECRET*) fail "the secret is in: $seen" ;; esac
done
has "$(blkswitch table disk)" "secret-file="
blkswitch remove disk

# Two ways to one unit are a multipath; ways to two units are not.
other=${a1/127.0.0.1/127.0.0.2}
blkswitch create two --table "0 32768 multipath 0 0 1 1 round-robin 0 2 0 ${a1%\?*} ${other%\?*}"
nbdcopy data "$(uri two)" --flush
cmp data a1.img || fail "not what was written by two paths"
blkswitch message two 0 fail_path "${other%\?*}"
nbdcopy "$(uri two)" back
cmp data back || fail "not what was read by the path that is left"
blkswitch remove two
has "$(refused blkswitch create none --table "0 32768 multipath 0 0 1 1 round-robin 0 2 0 ${a1%\?*} $chap")" "not to one"
# Two machines whose administrators have left tgt's numbers as they are: nobody can tell the units apart. This is said.
! grep -q "may lead to two volumes" daemon.log || fail "a warning about two portals of one target"
truncate -s 16M b2.img
target b2 $((BASE + 9))
b2="iscsi://127.0.0.1:$port_b2/iqn.2026-11.org.example:b2/1"
blkswitch create twins --table "0 32768 multipath 0 0 1 1 round-robin 0 2 0 ${a1%\?*} $b2"
grep -q "may lead to two volumes.*$b2" daemon.log || fail "no warning about names that are not unique"
blkswitch remove twins
# With a serial number they are two.
admin $((BASE + 9)) --mode logicalunit --op update --tid 2 --lun 1 --params scsi_sn=another
has "$(refused blkswitch create twins --table "0 32768 multipath 0 0 1 1 round-robin 0 2 0 ${a1%\?*} $b2")" "not to one"

# Holes of a thin unit are the device's.
truncate -s 0 b2.img
truncate -s 16M b2.img
admin $((BASE + 9)) --mode logicalunit --op update --tid 2 --lun 1 --params thin_provisioning=1
blkswitch create thin --table "0 32768 linear $b2 0"
extents() {
    nbdinfo --map "$(uri thin)" | awk '{ print $1, $2, $3 }'
}
equal "$(extents)" "0 16777216 3"
nbdsh -u "$(uri thin)" -c 'h.pwrite(bytes([7]) * 65536, 131072)' -c 'h.flush()'
equal "$(extents)" "$(printf '%s\n' '0 131072 3' '131072 65536 0' '196608 16580608 3')"
