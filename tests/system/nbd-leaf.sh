# The NBD leaf on servers that others wrote: nbdkit (memory, a file, delays, errors), qemu-nbd with one connection for
# all and with several, qemu-storage-daemon; fio verifies a switch over three of them through our own export; one is
# killed and comes back meanwhile.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need nbdkit nbdkit
need nbdinfo libnbd-bin
need nbdcopy libnbd-bin
need qemu-nbd qemu-utils
need qemu-storage-daemon qemu-system-common
need fio fio
need qemu-io qemu-utils
fio --enghelp 2>/dev/null | grep -q '\bnbd\b' || { echo "this fio has no nbd engine"; exit 77; }

SERVERS=()
# start SOCKET COMMAND...: a server in the background, until it listens. Its process id is added to SERVERS.
start() {
    local socket=$1
    shift
    rm -f "$socket"
    "$@" >>servers.log 2>&1 &
    SERVERS+=($!)
    until_true listens "$socket"
}
end_servers() {
    local server
    for server in "${SERVERS[@]}"; do
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    SERVERS=()
}
kit() {
    local socket=$1
    shift
    start "$socket" nbdkit --foreground --unix "$socket" --pidfile "$socket.pid" "$@"
}
leaf() {
    echo "nbd+unix:///${2-}?socket=$1${3-}"
}
# exercise DEVICE: qemu-io writes, reads and zeroes, fio verifies.
exercise() {
    local said
    said=$(qemu-io -f raw -c 'write -P 0x11 0 8M' -c 'write -f -P 0x22 60k 200k' -c 'read -P 0x11 0 60k' \
        -c 'read -P 0x22 60k 200k' -c 'write -z 64k 128k' -c 'read -P 0 64k 128k' -c 'read -P 0x22 192k 68k' \
        -c 'discard 1M 1M' -c 'write -P 0x33 1M 1M' -c flush -c 'read -P 0x33 1M 1M' -c 'read -P 0x11 2M 6M' \
        "$(uri "$1")" 2>&1) || fail "qemu-io on $1: $said"
    case $said in *rror* | *ailed*) fail "qemu-io on $1: $said" ;; esac
    verify "$1" 8m 1
}
# verify DEVICE SIZE LOOPS
verify() {
    fio --name="$1" --ioengine=nbd --uri="$(uri "$1")" --rw=randrw --bsrange=4k-128k --bs_unaligned=0 --iodepth=16 \
        --numjobs=2 --size="$2" --offset_increment="$2" --loops="$3" --fsync=32 --verify=crc32c --verify_fatal=1 \
        --verify_backlog=64 --verify_state_save=0 --group_reporting >"$1.log" 2>&1 || fail "fio on $1: $(cat "$1.log")"
}
# extents URI: allocation as 'start length flags'.
extents() {
    nbdinfo --map "$1" | awk '{ print $1, $2, $3 }'
}
serve --queues 2
SECTORS=$((16 * 2048))

# Each stock server by itself.
truncate -s 16M a.img b.img c.img d.img
kit "$HERE/memory" memory 16M
kit "$HERE/file" file "$HERE/a.img"
kit "$HERE/slow" --filter=delay --filter=blocksize-policy memory 16M rdelay=2ms wdelay=2ms \
    blocksize-minimum=4096 blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error
start "$HERE/qemu" qemu-nbd --persistent --format raw --socket "$HERE/qemu" --export-name vol --discard unmap b.img
start "$HERE/qemu8" qemu-nbd --persistent --format raw --socket "$HERE/qemu8" --export-name vol --shared 8 c.img
start "$HERE/qsd" qemu-storage-daemon --blockdev file,node-name=f,filename="$HERE/d.img" \
    --nbd-server addr.type=unix,addr.path="$HERE/qsd" --export nbd,id=e,node-name=f,name=vol,writable=on
for case in memory: file: slow: qemu:vol qemu8:vol qsd:vol; do
    name=${case%:*}
    blkswitch create "$name" --table "0 $SECTORS linear $(leaf "$HERE/$name" "${case#*:}") 0"
    exercise "$name"
    has "$(blkswitch table "$name")" "nbd+unix:///${case#*:}?socket=$HERE/$name"
    # The server's holes are the device's. A server of one connection is not asked.
    case $name in
    memory | file | qemu8)
        equal "$(extents "$(uri "$name")")" "$(extents "$(leaf "$HERE/$name" "${case#*:}")")"
        ;;
    qemu) equal "$(extents "$(uri "$name")")" "0 $((SECTORS * 512)) 0" ;;
    esac
    blkswitch remove "$name"
done

# A copy stays sparse through a switch of multipaths.
truncate -s 64M sparse.img
kit "$HERE/sparse" file "$HERE/sparse.img"
for path in 0 1; do
    blkswitch create "m$path" --table "0 131072 multipath 0 0 1 1 round-robin 0 1 0 $(leaf "$HERE/sparse")"
done
blkswitch create thin --table "0 131072 switch 2 2048 0 /dev/blkswitch/m0 0 /dev/blkswitch/m1 0"
qemu-io -f raw -c 'write -P 0x44 5M 1536k' "$(uri thin)" >/dev/null
equal "$(extents "$(uri thin)")" "$(printf '%s\n' '0 5242880 3' '5242880 1572864 0' '6815744 60293120 3')"
nbdcopy "$(uri thin)" copy.img
cmp copy.img sparse.img || fail "the copy differs"
qemu-img convert -f raw -O raw "$(uri thin)" converted.img
cmp converted.img sparse.img || fail "the converted copy differs"
for copy in copy.img converted.img; do
    [ "$(stat -c %b "$copy")" -le 8192 ] || fail "$copy takes $(stat -c %b "$copy") sectors for 3,072 of data"
done
blkswitch remove thin
blkswitch remove m0
blkswitch remove m1

# Over TCP, with a percent-encoded name. Somebody else may have the port before nbdkit has it: then another one is taken.
for _ in 1 2 3 4 5; do
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --pidfile tcp.pid memory 1M >>servers.log 2>&1 &
    server=$!
    SERVERS+=($server)
    until_true eval "test -s tcp.pid || ! kill -0 $server"
    [ ! -s tcp.pid ] || break
done
blkswitch create tcp --table "0 2048 linear nbd://127.0.0.1:$port/any%20name 0"
qemu-io -f raw -c 'write -P 7 0 1M' -c 'read -P 7 0 1M' "$(uri tcp)" >/dev/null || fail "TCP"
blkswitch remove tcp

# Errors of a server are errors of the request: the leaf goes on.
kit "$HERE/errors" --filter=error memory 16M error-rate=0 error-pread-rate=50% error=EIO error-file="$HERE/fault"
blkswitch create errors --table "0 $SECTORS linear $(leaf "$HERE/errors") 0"
exercise errors
qemu-io -f raw -c 'write -P 0x33 1M 64k' "$(uri errors)" >/dev/null
touch fault
good=0 bad=0
for _ in $(seq 40); do
    if qemu-io -f raw -c 'read -P 0x33 1M 64k' "$(uri errors)" >>errors.log 2>&1; then
        good=$((good + 1))
    else
        bad=$((bad + 1))
    fi
done
[ $good -gt 0 ] && [ $bad -gt 0 ] || fail "of 40 reads $good succeeded, $bad failed: $(cat errors.log)"
grep -q "connection lost" daemon.log && fail "an error cost a connection"
rm fault
exercise errors
blkswitch remove errors

# Nobody there: refused, with the address.
said=$(refused blkswitch create none --table "0 2048 linear $(leaf "$HERE/nobody") 0")
has "$said" "nbd+unix:///?socket=$HERE/nobody"
has "$(refused blkswitch create none --table "0 2048 linear nbd://127.0.0.1/x?bogus=1 0")" "bogus=1"

# A switch over three, with regions that move, while one server is killed and comes back.
blkswitch create disk --table "0 $SECTORS switch 3 128 0 \
    $(leaf "$HERE/file" '' '&reconnect=30') 0 $(leaf "$HERE/qemu" vol '&reconnect=30') 0 \
    $(leaf "$HERE/qsd" vol '&reconnect=30') 0"
verify disk 8m 2 &
load=$!
for round in 1 2 3; do
    sleep 0.7
    kill -KILL "$(cat "$HERE/file.pid")" 2>/dev/null || true
    rm -f "$HERE/file.pid"
    sleep 0.3
    kit "$HERE/file" file "$HERE/a.img"
done
wait $load || fail "fio while a server is killed: $(cat disk.log)"
grep -q "connection lost" daemon.log || fail "no connection was lost"
grep -q "connected again" daemon.log || fail "no connection was made again"
blkswitch remove disk
stop
end_servers
