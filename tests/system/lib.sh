# Sourced by every test of `cargo xtask system-test`. The current folder is the test's own; the daemon, its sockets
# and its backing files live there. Without the runner: PATH=target/release:$PATH bash tests/system/NAME.sh in an
# empty folder.
set -euo pipefail

HERE=$PWD
SYSTEM=${REPOSITORY:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}/tests/system
export BLKSWITCH_SOCKET=$HERE/control.sock
NBD=$HERE/nbd.sock
DAEMON=

# need PROGRAM PACKAGE: the test cannot run without this program of this Debian package.
need() {
    command -v "$1" >/dev/null && return
    echo "no $1 here (Debian package $2)"
    exit 77
}

# need_libnbd: nbdsh and its module for the system's python3.
need_libnbd() {
    need nbdsh libnbd-bin
    /usr/bin/python3 -c 'import nbd' 2>/dev/null && return
    echo "no module nbd for /usr/bin/python3 (Debian package python3-libnbd)"
    exit 77
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# has TEXT WANTED: WANTED is somewhere in TEXT.
has() {
    case $1 in *"$2"*) ;; *) fail "'$2' is not in:"$'\n'"$1" ;; esac
}

# equal GOT WANTED
equal() {
    [ "$1" = "$2" ] || fail "got:"$'\n'"$1"$'\n'"wanted:"$'\n'"$2"
}

# refused COMMAND...: the command fails; prints what it said.
refused() {
    local said
    if said=$("$@" 2>&1); then
        fail "'$*' was to fail and said: $said"
    fi
    printf '%s\n' "$said"
}

# until_true COMMAND...: the command succeeds, within a minute: far more than a busy machine needs.
until_true() {
    local end=$((SECONDS + 60))
    while [ $SECONDS -lt $end ]; do
        "$@" 2>/dev/null && return
        sleep 0.05
    done
    fail "not so within a minute: $*"
}

# listens SOCKET: a server does there. (There is a file before it does; and to connect is more than some servers stand.)
listens() {
    # Flags with the one for sockets that listen, and the path at the end.
    awk -v path="$1" '$4 == "00010000" && $NF == path { found = 1 } END { exit !found }' /proc/net/unix
}

# serve [OPTION]...: starts the daemon; it is stopped, and its end judged, when the test ends.
serve() {
    blkswitch serve --nbd "unix:$NBD" "$@" >>daemon.log 2>&1 &
    DAEMON=$!
    until_true blkswitch version >/dev/null
    until_true listens "$NBD"
}

# stop: ends the daemon as a service manager would.
stop() {
    local daemon=$DAEMON status=0
    DAEMON=
    kill -TERM "$daemon"
    wait "$daemon" || status=$?
    if [ $status != 0 ]; then
        echo "FAILED: the daemon ended with status $status"
        return 1
    fi
    if grep -n -e panicked -e ' ERROR ' daemon.log; then
        echo "FAILED: the daemon's log has errors"
        return 1
    fi
    if [ -e "$NBD" ] || [ -e "$BLKSWITCH_SOCKET" ]; then
        echo "FAILED: the daemon left its sockets"
        return 1
    fi
}

# finish [STATUS]: the end of every test, which ends with this status.
finish() {
    local status=${1:-$?}
    trap - EXIT
    if [ -n "$DAEMON" ]; then
        if [ $status = 0 ]; then
            stop || status=1
        else
            kill -KILL "$DAEMON" || true
            wait "$DAEMON" 2>/dev/null || true
        fi
    fi
    if [ $status != 0 ] && [ $status != 77 ] && [ -e daemon.log ]; then
        echo "--- the daemon's log:"
        tail -n 40 daemon.log
    fi
    exit $status
}
trap finish EXIT

# uri [NAME]: the NBD URI of a device.
uri() {
    echo "nbd+unix:///${1-}?socket=$NBD"
}

# three NAME REGIONS [OPTION]...: a device of REGIONS regions of 64 KiB over three files a, b, c that it makes.
three() {
    local name=$1 sectors=$(($2 * 128))
    shift 2
    blkswitch create "$name" --make-files "$@" \
        --table "0 $sectors switch 3 128 0 $HERE/$name.a 0 $HERE/$name.b 0 $HERE/$name.c 0"
}

# pattern FILE BYTES: a file of data that does not repeat, with holes and zeroes in it, the same in every run.
pattern() {
    python3 - "$1" "$2" <<'PYTHON'
import random, sys
path, size = sys.argv[1], int(sys.argv[2])
rng, piece = random.Random(size), 64 << 10
with open(path, "wb") as out:
    out.truncate(size)
    for at in range(0, size, piece):
        kind = rng.randrange(8)
        if kind > 1:
            out.seek(at)
            out.write(rng.randbytes(piece) if kind > 2 else bytes(piece))
PYTHON
}

# assemble NAME IMAGE: puts the device together from its backing files and its map, without the daemon's data path.
assemble() {
    blkswitch map show "$1" --json >map.json
    python3 - "$2" "$HERE/$1.a" "$HERE/$1.b" "$HERE/$1.c" <<'PYTHON'
import json, sys
with open("map.json") as text:
    shape = json.load(text)
region, leaves = shape["region_size"] * 512, [open(path, "rb") for path in sys.argv[2:]]
with open(sys.argv[1], "wb") as out:
    for run in shape["runs"]:
        leaf = leaves[run["path"]]
        leaf.seek(run["start"] * region)
        out.write(leaf.read(run["count"] * region))
PYTHON
}
