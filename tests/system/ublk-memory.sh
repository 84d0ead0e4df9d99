# ublk-memory: disks of the daemon in a guest whose memory is short, and whether files below them go past the page cache.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need setpriv util-linux
need nbdcopy libnbd-bin
cd "$REPOSITORY"
"$XTASK" vm --user-space --timeout 1500 --memory 320 --disk 2048 tests/system/guest/ublk-memory.sh "$(command -v blkswitch)"
