# A state folder on a file system that has become read-only, as after an error of its disk: the daemon starts with all
# that is kept and serves it, what is to be saved is refused with the real error and has not happened, and nothing in
# the folder changes.
. "$(dirname "$0")/lib.sh"
need_libnbd
[ "$(id -u)" = 0 ] || { echo "only root mounts"; exit 77; }
# Mounts of its own, which end with the test.
if [ "${1-}" != inside ]; then
    exec unshare --mount --propagation private bash "$SYSTEM/state-readonly.sh" inside
fi

mkdir state
mount -t tmpfs -o size=16m,mode=0700 tmpfs state
# sum: every file of the folder, with its times.
sum() {
    find state -type f -printf '%p %s %T@ ' -exec md5sum {} + | sort
}

serve --state "$HERE/state"
three disk 16
three other 16
blkswitch create over --table "0 2048 linear /dev/blkswitch/disk 0"
blkswitch message disk 0 set_region_mappings 0:2 :2 5:1
blkswitch suspend other
nbdsh -u "$(uri disk)" -c 'h.pwrite(b"kept" * 16384, 0)' -c 'h.flush()'
blkswitch map export disk >map
blkswitch table >tables
blkswitch info -c --noheadings -o name,suspended,minor | sort >infos
stop
mount -o remount,ro state
before=$(sum)

serve --state "$HERE/state"
equal "$(blkswitch map export disk)" "$(cat map)"
equal "$(blkswitch table)" "$(cat tables)"
equal "$(blkswitch info -c --noheadings -o name,suspended,minor | sort)" "$(cat infos)"
nbdsh -u "$(uri over)" -c 'assert h.pread(65536, 0) == b"kept" * 16384' -c 'h.pwrite(b"more" * 16384, 0)' -c 'h.flush()'

# What would have to be saved says why it cannot be, and has not happened.
for command in \
    "create new --table '0 8 zero'" \
    "message disk 0 set_region_mappings 0:0" \
    "rename disk renamed" \
    "suspend disk" \
    "resume other" \
    "remove over" \
    "remove --deferred over"; do
    said=$(refused eval "blkswitch $command")
    has "$said" "Read-only file system"
done
equal "$(blkswitch map export disk)" "$(cat map)"
equal "$(blkswitch table)" "$(cat tables)"
equal "$(blkswitch info -c --noheadings -o name,suspended,minor | sort)" "$(cat infos)"
# A table with a map needs a file for it; another one is refused when it is to be live.
has "$(refused blkswitch load disk --table "0 2048 switch 1 128 0 null:1M 0")" "Read-only file system"
blkswitch load disk --table "0 2048 zero"
has "$(refused blkswitch resume disk)" "Read-only file system"
equal "$(blkswitch table)" "$(cat tables)"
blkswitch clear disk
nbdsh -u "$(uri over)" -c 'assert h.pread(65536, 0) == b"more" * 16384'
stop
equal "$(sum)" "$before"

# The next daemon that can write has all of it, and goes on.
mount -o remount,rw state
serve --state "$HERE/state"
equal "$(blkswitch map export disk)" "$(cat map)"
equal "$(blkswitch info -c --noheadings -o name,suspended,minor | sort)" "$(cat infos)"
blkswitch message disk 0 set_region_mappings 0:0
blkswitch remove over
stop
blkswitch state check "$HERE/state"
