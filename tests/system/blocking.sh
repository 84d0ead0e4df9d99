# Whatever may block does not run on a queue's thread: a file system that takes its time to look for holes, and files
# that hang, hold up nobody else.
. "$(dirname "$0")/lib.sh"
need strace strace
[ "$(id -u)" = 0 ] || { echo "mounts need root"; exit 77; }
serve --queues 1
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
    blkswitch remove frozen >/dev/null 2>&1 || true
    umount -l mounted || true
    finish $status
}
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
