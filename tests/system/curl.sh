# curl: the control protocol and the metrics, without our own client.
. "$(dirname "$0")/lib.sh"
need curl curl
need_libnbd
serve

# http METHOD PATH [BODY]: prints the body of the reply; STATUS is in the file status.
http() {
    local data=()
    [ $# -lt 3 ] || data=(--header 'content-type: application/json' --data-binary "$3")
    curl --silent --show-error --unix-socket "$BLKSWITCH_SOCKET" --request "$1" "${data[@]}" \
        --output body --write-out '%{http_code}' "http://localhost$2" >status
    cat body
}
# json EXPRESSION: of the last reply, called r.
json() {
    python3 -c "import json; r = json.load(open('body')); print($1)"
}

http GET /v1/version >/dev/null
equal "$(cat status) $(json 'r["pid"]')" "200 $DAEMON"
table="0 1024 switch 3 128 0 $HERE/a 0 $HERE/b 0 $HERE/c 0"
http POST /v1/devices "{\"name\": \"disk\", \"table\": \"$table\", \"leaves\": {\"make_files\": true}}" >/dev/null
equal "$(cat status) $(json 'r["name"], r["suspended"], r["open_count"]')" "201 disk False 0"
http GET /v1/devices >/dev/null
equal "$(json '[d["name"] for d in r["devices"]]')" "['disk']"

# A message is plain text, and may come as a stream.
printf 'set_region_mappings 0:2 :2 :2' | curl --silent --fail --unix-socket "$BLKSWITCH_SOCKET" -T - -X POST \
    --header 'content-type: text/plain' 'http://localhost/v1/devices/disk/message?sector=0' >body
http GET /v1/devices/disk/map >/dev/null
equal "$(json 'r["regions"], r["paths"], r["region_size"], r["runs"][0]')" \
    "8 3 128 {'start': 0, 'count': 3, 'path': 2}"

# Errors have a status outside 2xx and say what was wrong with what.
http POST '/v1/devices/disk/message?sector=0' 'set_region_mappings 8:0' >/dev/null
case $(cat status) in 4??) ;; *) fail "status $(cat status): $(cat body)" ;; esac
json 'r["reason"]' | grep -q 8 || fail "$(cat body)"
http GET /v1/devices/none >/dev/null
equal "$(cat status) $(json 'r["errno"]')" "404 ENXIO"
http POST /v1/devices '{"name": "x", "unknown": 1}' >/dev/null
case $(cat status) in 4??) ;; *) fail "status $(cat status): $(cat body)" ;; esac

# The document of it all, and the metrics after some I/O.
http GET /v1/openapi.json >/dev/null
json 'sorted(r["paths"])' | grep -q /v1/devices/{name}/message || fail "$(cat body)"
nbdsh -u "$(uri disk)" -c 'h.pwrite(bytes(65536), 0)' -c 'h.pread(65536, 0)' -c 'h.pread(512, 0)' -c 'h.flush()'
http GET /metrics >metrics
cat metrics
grep -q '^blkswitch_.*device="disk".* 2$' metrics || fail "two reads are not in the metrics"
grep -q '^# EOF' metrics || grep -q '^# TYPE blkswitch_' metrics || fail "no types"
http DELETE /v1/devices/disk >/dev/null
equal "$(cat status)" 204
