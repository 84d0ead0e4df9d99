# qemu-img: convert in both directions, compare, map, info.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-utils
serve
three disk 512
pattern image $((512 << 16))

info=$(qemu-img info "$(uri disk)")
has "$info" "virtual size: 32 MiB (33554432 bytes)"
has "$info" "file format: raw"

qemu-img convert -f raw -O raw -n image "$(uri disk)"
qemu-img compare -f raw -F raw image "$(uri disk)"
assemble disk assembled
cmp image assembled

# Out of order, many at once, and after a remap without moving data there is a difference.
qemu-img convert -f raw -O raw -n -W -m 16 image "$(uri disk)"
qemu-img compare -f raw -F raw image "$(uri disk)"
qemu-img convert -f raw -O qcow2 -W "$(uri disk)" out.qcow2
qemu-img compare -f raw -F qcow2 image out.qcow2
blkswitch message disk 0 set_region_mappings 0:1 :2 :0 R3,1fd
refused qemu-img compare -f raw -F raw image "$(uri disk)" >/dev/null
qemu-img convert -f qcow2 -O raw -n out.qcow2 "$(uri disk)"
qemu-img compare -f raw -F raw image "$(uri disk)"

# qemu's map is what was written: holes where nothing is, data where a block is.
three holes 16
qemu-io -f raw -c 'write -P 7 192k 64k' "$(uri holes)" >/dev/null
equal "$(qemu-img map --output=json -f raw "$(uri holes)" | python3 -c '
import json, sys
for e in json.load(sys.stdin):
    print(e["start"], e["length"], e["zero"], e["data"])')" \
    "$(printf '%s\n' '0 196608 True False' '196608 65536 False True' '262144 786432 True False')"

# qemu names the region map by its context.
has "$(qemu-img map --output=json --image-opts \
    "driver=nbd,server.type=unix,server.path=$NBD,export=holes,x-dirty-bitmap=blkswitch:path")" '"start": 0'
