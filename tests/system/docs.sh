# The commands of README and of docs/: every block behind a line `<!-- run -->` is run, page by page, by an ordinary
# user in an empty folder. `<!-- run: WORDS -->` first makes what the words say (prepare, below).
. "$(dirname "$0")/lib.sh"
need nbdkit nbdkit
need nbdinfo libnbd-bin
need qemu-io qemu-utils
need curl curl

ROOT=$(realpath "$SYSTEM/../..")
# Sockets have short names, and root's folders are closed to others.
WORK=$(mktemp -d /tmp/docs.XXXXXX)
# leave: servers that a page which failed has left behind go with the folder.
leave() {
    local status=$?
    cat "$WORK"/*/*/*.pid 2>/dev/null | xargs -r kill 2>/dev/null || true
    rm -rf "$WORK"
    finish $status
}
trap leave EXIT
chmod 755 "$WORK"
mkdir "$WORK/bin"
install -m 755 "$(command -v blkswitch)" "$WORK/bin/"

# blocks PAGE: its commands, with a call of prepare before those of a block that needs something.
blocks() {
    awk '
        /^<!-- run/ {
            block = 1
            if (match($0, /: .* -->/)) print "prepare \"" substr($0, RSTART + 2, RLENGTH - 6) "\""
            next
        }
        /^    / && block { print substr($0, 5); inside = 1; next }
        /^$/ { next }
        block && inside { block = 0; inside = 0 }
    ' "$1"
}

cat >"$WORK/prelude" <<'PRELUDE'
set -euo pipefail
# Job control, as at a prompt: the pages name jobs.
set -m
mkdir -m 700 run
export XDG_RUNTIME_DIR=$PWD/run BLKSWITCH_SOCKET=$PWD/run/blkswitch/control.sock
# Who types commands waits until the daemon says that it is ready.
blkswitch() {
    local try
    # In the background: the job is the daemon, and its signals reach it.
    [ "$1" != serve ] || exec "$(type -P blkswitch)" "$@"
    for try in $(seq 600); do
        command blkswitch version >/dev/null 2>&1 && break
        sleep 0.1
    done
    command blkswitch "$@"
}
prepare() {
    case $1 in
    "needs a daemon") blkswitch serve 2>serve.log & ;;
    "needs a daemon and a device named switch")
        blkswitch serve 2>serve.log &
        blkswitch create switch --table "0 32768 switch 3 128 0 null:16M 0 null:16M 0 null:16M 0"
        blkswitch message switch 0 set_region_mappings 0:2 R1,20
        ;;
    "after remove_all") blkswitch remove_all ;;
    "needs the devices low and high")
        blkswitch remove_all
        blkswitch create low --table "0 32768 linear null:16M 0"
        blkswitch create high --table "0 32768 switch 1 128 0 /dev/blkswitch/low 0"
        ;;
    *) echo "docs.sh cannot prepare '$1'" && exit 1 ;;
    esac
}
# The daemon, and what else a page leaves running, ends with the page.
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
PRELUDE

# page FILE: runs its blocks; prints what they printed if one fails.
page() {
    local name commands folder as=()
    name=$(basename "$1" .md)
    commands=$WORK/$name.sh folder=$WORK/$name
    { cat "$WORK/prelude"; blocks "$1"; } >"$commands"
    mkdir "$folder"
    if [ "$(id -u)" = 0 ]; then
        chown nobody "$folder"
        as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    fi
    (cd "$folder" && "${as[@]}" env -i PATH="$WORK/bin:$PATH" HOME="$folder" \
        timeout 300 bash -x "$commands" </dev/null >"$commands.log" 2>&1) ||
        fail "$1:"$'\n'"$(tail -n 40 "$commands.log")"
    echo "${1#"$ROOT/"}: $(blocks "$1" | wc -l) lines"
}

found=0
for file in "$ROOT"/README.md "$ROOT"/docs/*.md; do
    [ -n "$(blocks "$file")" ] || continue
    page "$file"
    found=$((found + 1))
done
# As many pages as had commands when this was written.
[ $found -ge 5 ] || fail "only $found pages have commands that are run"

# A message moves no data, as README says in bold: over three files the same commands show other data.
serve
three disk 16
qemu-io -f raw -c 'write -P 0x41 0 1M' "$(uri disk)" >written
blkswitch message disk 0 set_region_mappings 0:1
has "$(qemu-io -f raw -c 'read -P 0x41 0 64k' "$(uri disk)" 2>&1 || true)" "Pattern verification failed"
# A client that waits for the daemon to come back (docs/vm.md) sees no error over a restart.
truncate -s 1M "$HERE/vol"
stop
serve --state "$HERE/state"
blkswitch create vm --table "0 2048 linear $HERE/vol 0"
image="driver=nbd,server.type=unix,server.path=$NBD,export=vm,reconnect-delay=20"
qemu-io --image-opts "$image" -c 'write -P 0x42 0 64k' -c 'sleep 3000' -c 'read -P 0x42 0 64k' >client.log 2>&1 &
client=$!
until_true grep -q wrote client.log
stop
serve --state "$HERE/state"
wait $client || fail "the client with reconnect-delay: $(cat client.log)"
equal "$(grep -c -e '^wrote 65536/65536' -e '^read 65536/65536' client.log)" 2
