# ublk-leftover: disks that a killed daemon leaves behind, mounts of a daemon's own disks, disks that must not be forgotten.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need unshare util-linux
cd "$REPOSITORY"
"$XTASK" vm --user-space --timeout 600 tests/system/guest/ublk-leftover.sh "$(command -v blkswitch)"
