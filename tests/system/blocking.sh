# Whatever may block does not run on a queue's thread: a file system that takes its time to look for holes, and files
# that hang, hold up nobody else, nor a stop.
. "$(dirname "$0")/lib.sh"
need strace strace
[ "$(id -u)" = 0 ] || { echo "mounts need root"; exit 77; }
serve --queues 1 --stop-timeout 2
for file in slow quick; do
    truncate -s 1M $file
    blkswitch create $file --table "0 2048 linear $HERE/$file 0"
done

strace -f -o strace.log -p "$DAEMON" -e trace=lseek -e inject=lseek:delay_enter=2500000:when=1 2>/dev/null &
TRACER=$!
until_true grep -q "TracerPid:[[:space:]]$TRACER" "/proc/$DAEMON/status"
python3 "$SYSTEM/blocking.py" holes "$NBD"
kill -INT $TRACER
wait $TRACER || true
grep -q 'lseek.*DELAYED' strace.log || fail "no seek was slow: $(tail -n 5 strace.log)"

# A file system that is frozen: what changes its files waits, in threads of the kernel.
truncate -s 64M disk
mkfs.ext4 -q -F disk
mkdir mounted
mount -o loop disk mounted 2>mount.log || { echo "no loop devices here: $(cat mount.log)"; exit 77; }
clean_up() {
    local status=$?
    fsfreeze -u mounted 2>/dev/null || true
    [ -z "$DAEMON" ] || blkswitch remove frozen >/dev/null 2>&1 || true
    # A process with an operation under way stays until that ends, and so does the mount.
    [ -z "$STOPPED" ] || wait "$STOPPED" || true
    umount -l mounted || true
    finish $status
}
STOPPED=
trap clean_up EXIT
dd if=/dev/urandom of=mounted/file bs=1M count=1 status=none conv=fsync
blkswitch create frozen --table "0 2048 linear $HERE/mounted/file 0"
fsfreeze -f mounted
mkfifo go
python3 "$SYSTEM/blocking.py" hung "$NBD" <go >hung.log 2>&1 &
CLIENT=$!
exec 9>go
until_true bash -c "grep -q 'trims beside' hung.log || ! kill -0 $CLIENT"
fsfreeze -u mounted
echo >&9
wait $CLIENT || fail "$(cat hung.log)"
cat hung.log

# A stop does not wait for it. Clients learn that nothing comes, the other files are closed, and the log says why.
fsfreeze -f mounted
python3 "$SYSTEM/blocking.py" left "$NBD" >left.log 2>&1 &
CLIENT=$!
until_true grep -q 'sent' left.log
kill -TERM "$DAEMON"
STOPPED=$DAEMON
DAEMON=
until_true grep -q "stopping: '$HERE/mounted/file' has not answered .* not waited for" daemon.log
until_true test ! -e "$NBD"
wait $CLIENT || fail "$(cat left.log)"
cat left.log
[ ! -e "$BLKSWITCH_SOCKET" ] || fail "the control socket stays"
export BLKSWITCH_SOCKET=$HERE/next.sock
NBD=$HERE/next-nbd.sock
mv daemon.log stopped.log
serve --queues 1
blkswitch create quick --table "0 2048 linear $HERE/quick 0"
has "$(refused blkswitch create frozen --table "0 2048 linear $HERE/mounted/file 0")" "in use"
fsfreeze -u mounted
status=0
wait "$STOPPED" || status=$?
STOPPED=
equal "$status" 1
has "$(cat stopped.log)" "stopped, but not in good order: '$HERE/mounted/file'"
blkswitch create frozen --table "0 2048 linear $HERE/mounted/file 0"
blkswitch remove frozen
