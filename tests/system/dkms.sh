# dkms: Debian's dkms builds the kernel module from the tree that `make dkms-source` makes, against the headers of a stock
# kernel, in folders of its own.
. "$(dirname "$0")/lib.sh"
need dkms dkms
[ "$(id -u)" = 0 ] || { echo "dkms wants to be root"; exit 77; }
mkdir state
make --quiet -C "$REPOSITORY/kmod" dkms-source DESTDIR="$HERE"
folders=(--sourcetree "$HERE/usr/src" --dkmstree "$HERE/state")
root=$("$XTASK" vm --prepare)
release=$(cat "$root/release")
kernel=(-k "$release" -a x86_64 --kernelsourcedir "$root/usr/src/linux-headers-$release")

dkms add blkswitch/0.1.0 "${folders[@]}"
has "$(dkms status "${folders[@]}")" "blkswitch/0.1.0: added"
dkms build blkswitch/0.1.0 "${folders[@]}" "${kernel[@]}" || {
    cat state/blkswitch/0.1.0/build/make.log
    fail "dkms build"
}
has "$(dkms status "${folders[@]}")" "blkswitch/0.1.0, $release, x86_64: built"
module=$(find state/blkswitch/0.1.0 -name 'blkswitch.ko*' -not -path '*/build/*')
has "$(/sbin/modinfo "$module")" "vermagic:       $release "
"$XTASK" vm --timeout 1200 sh -c 'modprobe dm-mod; xz -dc "$1" >/run/blkswitch.ko 2>/dev/null || cp "$1" /run/blkswitch.ko
    insmod /run/blkswitch.ko && dmsetup targets' sh "$HERE/$module" >targets
has "$(cat targets)" "switch           v1.1.0"
