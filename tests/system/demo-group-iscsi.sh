# The storage group over iSCSI: tgt before each member. It ends as the one over NBD does, and leaves nothing behind,
# whether it comes to its end, is interrupted, or is killed.
. "$(dirname "$0")/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
need tgtd tgt
need nbdfuse libnbd-bin
need setpriv util-linux
need pgrep procps
[ "$(id -u)" = 0 ] || { echo "tgtd needs root"; exit 77; }
mkdir work
export TMPDIR=$HERE/work
GROUP=(blkswitch demo group --members 3 --act 0.5 --transport iscsi)
# What is missing is named.
case $(PATH=/nowhere refused "$(command -v blkswitch)" "${GROUP[@]:1}") in
    *"nbdfuse (Debian package libnbd-bin)"*) ;;
    *) fail "it is not said what is missing" ;;
esac
if ! (: </dev/fuse) 2>/dev/null; then
    # What such a machine can show, which is not the group.
    has "$(refused "${GROUP[@]}")" /dev/fuse
    echo "no /dev/fuse that can be opened"
    exit 77
fi

# gone: nothing is mounted, and none of the programs that $children had the numbers of runs.
gone() {
    local child
    ! grep -q "$TMPDIR" /proc/mounts || return
    for child in $children; do
        # One that has ended and was not waited for has no words.
        [ -z "$({ tr -d '\0' <"/proc/$child/cmdline"; } 2>/dev/null)" ] || return
    done
}
# start: the group, until its clients run.
start() {
    rm -f group.log
    "${GROUP[@]}" >group.log 2>&1 &
    group=$!
    until_true grep -q "without a pause" group.log
    children=$(pgrep -P $group)
    [ "$(wc -w <<<"$children")" -ge 6 ] || fail "not a tgtd and a nbdfuse per member: $(ps -ef)"
    gone && fail "nothing runs"
    true
}
start
wait $group || fail "$(cat group.log)"
has "$(cat group.log)" "each holds what was written last"
has "$(cat group.log)" "none failed"
equal "$(ls work)" ""
gone || fail "something is left behind"

start
kill -INT $group
wait $group && fail "it was interrupted"
has "$(cat group.log)" interrupted
equal "$(ls work)" ""
gone || fail "something is left behind by an interrupted group"

start
kill -KILL $group
wait $group 2>/dev/null || true
until_true gone
