#!/bin/bash
# In the guest: a kernel without a ublk driver. Every way to a disk says what is missing, and the daemon goes on.
set -euo pipefail
blkswitch=$1
cd "$(mktemp -d)"
export BLKSWITCH_SOCKET=$PWD/run/control.sock
fail() { echo "FAILED: $*"; tail -n 30 daemon.log; exit 1; }
trap 'fail "line $LINENO"' ERR
has() { case $1 in *"$2"*) ;; *) fail "'$2' is not in: $1" ;; esac; }
bs() { "$blkswitch" "$@"; }
MISSING="no ublk driver: /dev/ublk-control does not exist (kernel $(uname -r)). Load it with 'modprobe ublk_drv'"

serve() {
    "$blkswitch" serve --nbd "unix:$PWD/nbd.sock" "$@" >>daemon.log 2>&1 &
    daemon=$!
    for _ in $(seq 1200); do
        bs version >/dev/null 2>&1 && return
        kill -0 $daemon || fail "the daemon has ended"
        sleep 0.05
    done
    fail "the daemon does not answer"
}

modprobe ublk_drv 2>/dev/null && fail "there is a driver"
serve
text=$(bs create disk --ublk --table "0 2048 switch 2 8 0 mem:1M 0 mem:1M 0" 2>&1) && fail "made a disk"
has "$text" "device 'disk' is made and served over NBD, but is no disk: $MISSING"
has "$text" "6.1) cannot do it"
text=$(bs attach disk --ublk 2>&1) && fail "attached"
has "$text" "$MISSING"
has "$(bs info disk)" "State:             ACTIVE"
kill $daemon
wait $daemon || fail "status $?"
# With --ublk every device is to become a disk: each is made, and what is missing is said of each.
serve --ublk
text=$(bs create disk --table "0 2048 zero" 2>&1) && fail "made a disk under serve --ublk"
has "$text" "$MISSING"
has "$(bs ls)" disk
kill $daemon
wait $daemon || fail "status $?"
echo "without a driver: ok"
