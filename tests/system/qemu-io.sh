# qemu-io: every request it can make, with its pattern checks.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need qemu-io qemu-utils
serve
three disk 64

# io COMMAND...: the commands in one connection; qemu-io says failures in words, and in its status since 2.8.
io() {
    local words=() command said
    for command in "$@"; do
        words+=(-c "$command")
    done
    said=$(qemu-io -f raw "${words[@]}" "$(uri disk)" 2>&1) || fail "qemu-io: $said"
    case $said in *rror* | *ailed*) fail "qemu-io: $said" ;; esac
}

# Across regions, in part, unaligned (qemu makes whole sectors of it), with FUA.
io 'write -P 0x11 0 4M' 'write -P 0x22 60k 200k' 'read -P 0x11 0 60k' 'read -P 0x22 60k 200k' 'read -P 0x11 260k 1M'
io 'write -P 0x33 1000 3000' 'read -P 0x33 1000 3000' 'read -P 0x11 0 1000' 'read -P 0x11 4000 100'
io 'write -f -P 0x44 1M 64k' 'flush' 'read -P 0x44 1M 64k'
# Vectors.
io 'writev -P 0x55 2M 512 4k 70k 512' 'readv -P 0x55 2M 75k' 'read -P 0x11 2173952 512'
# Zeroes: as the server likes, keeping the space, dropping it, fast or not at all.
io 'write -z 64k 128k' 'read -P 0 64k 128k' 'read -P 0x22 60k 4k' 'read -P 0x22 192k 68k'
io 'write -P 0x66 0 512k' 'write -z -u 100k 100k' 'read -P 0 100k 100k' 'read -P 0x66 0 100k' 'read -P 0x66 200k 312k'
io 'write -z -n 300k 64k' 'read -P 0 300k 64k'
io 'write -z -f 400k 64k' 'read -P 0 400k 64k'
# Discarded data reads as zeroes on files.
io 'write -P 0x77 0 1M' 'discard 128k 512k' 'read -P 0 128k 512k' 'read -P 0x77 0 128k' 'read -P 0x77 640k 384k'
# Many at once, flushed in between.
io 'aio_write -P 0x88 0 1M' 'aio_write -P 0x99 1M 1M' 'aio_write -z 2M 1M' 'aio_flush' 'aio_read -P 0x88 0 1M' \
    'aio_read -P 0x99 1M 1M' 'aio_read -P 0 2M 1M' 'aio_flush'
# A remap moves what is read; back again, nothing was lost.
blkswitch message disk 0 set_region_mappings 0:1
io 'write -P 0xaa 0 64k'
blkswitch message disk 0 set_region_mappings 0:0
io 'read -P 0x88 0 64k'
# What lies behind the end.
has "$(refused qemu-io -f raw -c 'read 4M 512' "$(uri disk)")" "rror"

three fixed 4 --readonly
# qemu does not even open for writing what is announced as read-only.
has "$(refused qemu-io -f raw -c 'write 0 512' "$(uri fixed)")" "Permission denied"
qemu-io -r -f raw -c 'read -P 0 0 256k' "$(uri fixed)" >/dev/null
