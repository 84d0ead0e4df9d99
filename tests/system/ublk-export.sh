# ublk-export: the export by itself (crates/io/tests/ublk) under a stock Debian kernel that has a ublk driver, and under
# one that has none, where its error and the command line's (tests/system/guest/no-ublk.sh) say so.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need blkdiscard util-linux
need dmsetup dmsetup
need lvcreate lvm2
need qemu-io qemu-utils
cd "$REPOSITORY"
test=$(cargo test --quiet --package blkswitch-io --test ublk --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
"$XTASK" vm --user-space --timeout 900 tests/system/guest/ublk-export.sh "$test" --test-threads=1 --nocapture
"$XTASK" vm --user-space --timeout 600 --cpus 4 tests/system/guest/ublk-export.sh "$test" a_filesystem_lives_on_it --nocapture
"$XTASK" vm --user-space --timeout 300 --kernel 6.1 "$test" without_a_driver --nocapture
"$XTASK" vm --user-space --timeout 300 --kernel 6.1 tests/system/guest/no-ublk.sh "$(command -v blkswitch)"
