# The Debian package: what is in it, what it depends on, and that the program in it serves, iSCSI included.
. "$(dirname "$0")/lib.sh"
need dpkg-deb dpkg
need strip binutils

package=$(cd "$REPOSITORY" && "$XTASK" package)
dpkg-deb --info "$package" >info
for wanted in "Package: blkswitch" "Depends: " "libc6 (>= "; do
    has "$(cat info)" "$wanted"
done
dpkg-deb --contents "$package" >contents
for wanted in usr/bin/blkswitch man1/blkswitch.1.gz man1/blkswitch-create.1.gz completions/blkswitch \
    doc/blkswitch/copyright doc/blkswitch/docs/multipath.md system/blkswitch.service; do
    grep -q "root/root .*$wanted\$" contents || fail "$wanted is not in the package: $(cat contents)"
done
# It could be installed here: what it depends on is.
[ "$(id -u)" != 0 ] || dpkg --dry-run --install "$package" >installed 2>&1 || fail "$(cat installed)"

dpkg-deb --extract "$package" root
PATH=$HERE/root/usr/bin:$PATH
equal "$(command -v blkswitch)" "$HERE/root/usr/bin/blkswitch"
# As its unit has it, with the state in a folder of ours.
grep -qx 'ExecStart=/usr/bin/blkswitch serve --state /var/lib/blkswitch' root/lib/systemd/system/blkswitch.service ||
    fail "$(cat root/lib/systemd/system/blkswitch.service)"
serve --state "$HERE/state"
blkswitch create disk --table "0 2048 switch 2 128 0 mem:1M 0 mem:1M 0"
has "$(blkswitch status disk)" "0 2048 switch"
said=$(refused blkswitch create none --table "0 8 linear iscsi://127.0.0.1:1/iqn.x/1?timeout=1 0")
has "$said" "iscsi://127.0.0.1:1/iqn.x/1"
