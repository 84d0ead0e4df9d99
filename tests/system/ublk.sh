# ublk: devices as disks of the machine, under a stock Debian kernel in the laboratory of `cargo xtask vm`: the export
# by itself (crates/io/tests/ublk), and on 6.1 the error that says what is missing.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-system-x86
need mkfs.ext4 e2fsprogs
need blkdiscard util-linux
need dmsetup dmsetup
cd "$REPOSITORY"
test=$(cargo test --quiet --package blkswitch-io --test ublk --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
"$XTASK" vm tests/system/guest/ublk.sh "$test"
"$XTASK" vm --kernel 6.1 "$test" without_a_driver --nocapture
