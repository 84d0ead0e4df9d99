# ublk-newest: the export and the daemon's disks under the newest kernel of the laboratory, where data need not be copied: the
# export's tests without copies whatever is below, the daemon's with what it chooses for files (copies).
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need blkdiscard util-linux
need dmsetup dmsetup
need lvcreate lvm2
need qemu-io qemu-utils
need fio fio
cd "$REPOSITORY"
test=$(cargo test --quiet --package blkswitch-io --test ublk --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
"$XTASK" vm --user-space --kernel newest --timeout 950 tests/system/guest/ublk-export.sh "$test" --test-threads=1 --nocapture
"$XTASK" vm --user-space --kernel newest --timeout 950 tests/system/guest/ublk.sh "$(command -v blkswitch)"
