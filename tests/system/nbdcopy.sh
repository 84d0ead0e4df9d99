# nbdcopy: images in, out and across, over one and many connections, compared byte by byte.
# Debian 13's programs, too.
. "$(dirname "$0")/lib.sh"
need nbdcopy libnbd-bin
serve --nbd tcp:127.0.0.1:0
three disk 1000
pattern image $((1000 << 16))
size=$(stat -c %s image)

nbdcopy --connections=4 --requests=64 --flush image "$(uri disk)"
nbdcopy --connections=4 --requests=64 "$(uri disk)" out
cmp image out
# The data is where the map says, without asking the daemon's data path.
assemble disk assembled
cmp image assembled
for path in a b c; do
    [ "$(stat -c %s "disk.$path")" = "$size" ] || fail "disk.$path has changed its size"
done

# Another map, other places, the same image; from a pipe, and without extents and multi-conn.
blkswitch message disk 0 set_region_mappings 1:0 :0 :0 :2 :2 R5,3e2
nbdcopy --synchronous - "$(uri disk)" <image
nbdcopy --no-extents --connections=1 "$(uri disk)" - >out
cmp image out
assemble disk assembled
cmp image assembled

# Small requests that cut regions; zeroes instead of holes.
three small 1000
nbdcopy --request-size=4096 --allocated image "$(uri small)"
nbdcopy --request-size=4096 --sparse=0 "$(uri small)" out
cmp image out

# From device to device, one of them over TCP.
three copy 1000
tcp=$(blkswitch version --json | grep -o 'nbd://[0-9.]*:[1-9][0-9]*')
nbdcopy --connections=4 "$(uri disk)" "$tcp/copy"
nbdcopy "$tcp/copy" out
cmp image out

# Too small a device is an error, not a short copy.
three tiny 10
refused nbdcopy image "$(uri tiny)" >/dev/null
