# A runbook for dmsetup, with that one word replaced. The first part is the example of the kernel's own document
# (Documentation/admin-guide/device-mapper/switch.rst); what is printed is what dmsetup prints.
. "$(dirname "$0")/lib.sh"
serve
truncate -s 1G switch0 switch1 switch2

# step COMMANDS WANTED: what stands in a runbook prints what it prints there.
step() {
    local said
    said=$(sed 's/\bdmsetup\b/blkswitch/g' <<<"$1" | bash -e 2>&1) || fail "$1"$'\n'"$said"
    equal "$said" "$2"
}
# blockdev is for block devices.
blockdev() { stat -c %s "$2" | awk '{ print $1 / 512 }'; }
export -f blockdev

step 'dmsetup create switch --table "0 `blockdev --getsz switch0` switch 3 128 0 '"$HERE"'/switch0 0 '"$HERE"'/switch1 0 '"$HERE"'/switch2 0"' ''
# These paths are three files, so one line more than dmsetup's goes to standard error, once for each device.
step 'dmsetup message switch 0 set_region_mappings 0:0 :1 :2 :0 :1 :2 :1' '  a message moves no data: paths 0 and 1 lead to different storage, so a region that changes its path shows other data (said once for each device)'
step 'dmsetup message switch 0 set_region_mappings 1000:1 :2 R2,10' ''
step 'dmsetup table switch' "0 2097152 switch 3 128 0 $HERE/switch0 0 $HERE/switch1 0 $HERE/switch2 0"
step 'dmsetup status' 'switch: 0 2097152 switch '
step 'dmsetup ls' "switch"$'\t'"(0:0)"
step 'dmsetup info switch | grep -v "^Read Ahead"' "Name:              switch
State:             ACTIVE
Tables present:    LIVE
Open count:        0
Event number:      0
Major, minor:      0, 0
Number of targets: 1"
step 'dmsetup info -c --noheadings -o name,attr,open,segments,events' 'switch:L--w:0:1:0'
step 'dmsetup suspend switch; dmsetup info switch | grep State' 'State:             SUSPENDED'
step 'dmsetup table switch | dmsetup load switch; dmsetup info switch | grep Tables' \
    'Tables present:    LIVE & INACTIVE'
step 'dmsetup resume switch; dmsetup info switch | grep -e State -e Tables' "State:             ACTIVE
Tables present:    LIVE"
step 'dmsetup rename switch volume; dmsetup ls' "volume"$'\t'"(0:0)"
step 'echo "0 2048 linear '"$HERE"'/switch0 0
2048 2048 error" | dmsetup create two; dmsetup table two' "0 2048 linear $HERE/switch0 0
2048 2048 error "
step 'dmsetup remove two && dmsetup remove volume; dmsetup ls' 'No devices found'
step 'dmsetup create mp --table "0 2048 multipath 0 0 1 1 round-robin 0 2 1 mem:1M 1 null:1M 1"
dmsetup wait mp 0 & waits=$!
sleep 0.3; kill -0 $waits
dmsetup message mp 0 fail_path null:1048576
wait $waits; dmsetup info -c --noheadings -o events mp' '1'
step 'dmsetup create upper --table "0 2048 linear /dev/blkswitch/mp 0"; dmsetup remove --force upper; dmsetup ls' "mp"$'\t'"(0:0)"
step 'dmsetup create upper --table "0 2048 linear /dev/blkswitch/mp 0"; dmsetup remove_all; dmsetup ls' 'No devices found'
step 'dmsetup mknodes; dmsetup targets | grep "^switch " | cut -d" " -f1' 'switch'

# Failures have dmsetup's words and status.
equal "$(refused blkswitch message none 0 set_region_mappings 0:0 | head -n 1)" \
    'device-mapper: message ioctl on none  failed: No such device or address'
equal "$(refused blkswitch remove none | head -n 1)" \
    'device-mapper: remove ioctl on none  failed: No such device or address'

# A long message from standard input shows its progress on a terminal, and nothing elsewhere.
need script bsdutils
blkswitch create large --table "0 2097152 switch 3 8 0 null:1G 0 null:1G 0 null:1G 0"
python3 -c 'print("set_region_mappings", " ".join(f"{i % 262144:x}:{i % 5 % 3}" for i in range(1 << 20)))' >words
slowly='(head -c 5000000 words; sleep 1; tail -c +5000001 words) | blkswitch message large 0 -'
equal "$(bash -c "$slowly" 2>&1)" ""
blkswitch map export large >exported
blkswitch message large 0 set_region_mappings 0:0 R1,3ffff
shown=$(script -qec "bash -c '$slowly'" /dev/null)
has "$shown" "MiB/s"
equal "$(blkswitch map export large --plain)" "$(grep -v ^# exported)"
