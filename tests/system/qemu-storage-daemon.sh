# qemu's block layer between two NBD servers: qemu-storage-daemon is our client and offers what it sees again.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need qemu-storage-daemon qemu-system-common
need nbdcopy libnbd-bin
serve
three disk 256
pattern image $((256 << 16))

qemu-storage-daemon \
    --blockdev "driver=nbd,node-name=below,server.type=unix,server.path=$NBD,export=disk,discard=unmap" \
    --nbd-server "addr.type=unix,addr.path=$HERE/qemu.sock,max-connections=8" \
    --export type=nbd,id=again,node-name=below,name=again,writable=on &
qemu=$!
until_true listens "$HERE/qemu.sock"
again="nbd+unix:///again?socket=$HERE/qemu.sock"
until_true nbdinfo --size "$again" >/dev/null
nbdcopy --requests=64 image "$again"
nbdcopy "$again" out
cmp image out
nbdsh -u "$again" -c 'h.zero(1 << 20, 1 << 20)' -c 'h.trim(1 << 20, 4 << 20)' -c 'h.flush()'
# The daemon is restarted with SIGTERM only when its clients are gone: they see every answer they wait for.
kill -TERM $qemu
wait $qemu
nbdsh -u "$(uri disk)" -c 'assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)'
assemble disk assembled
nbdcopy "$(uri disk)" out
cmp out assembled
