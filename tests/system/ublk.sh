# ublk: devices of the daemon as disks of the machine, under a stock Debian kernel in the laboratory of `cargo xtask vm`.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need fio fio
cd "$REPOSITORY"
"$XTASK" vm --user-space --timeout 1200 tests/system/guest/ublk.sh "$(command -v blkswitch)"
