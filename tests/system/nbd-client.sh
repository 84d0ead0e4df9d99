# nbd-client: the kernel's own NBD client, under a stock Debian kernel in the laboratory of `cargo xtask vm`.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need nbd-client nbd-client
need qemu-system-x86_64 qemu-system-x86
need blkdiscard util-linux
cd "$REPOSITORY"
"$XTASK" vm --user-space --timeout 1200 tests/system/guest/nbd-client.sh "$(command -v blkswitch)" "$(command -v nbd-client)"
