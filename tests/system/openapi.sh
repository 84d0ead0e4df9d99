# openapi: what a program gets that knows the daemon from its OpenAPI document only. A client in Python is
# generated from the document and used; schemathesis sends what the document allows, and what it does not, and
# checks that each answer is one that the document has; promtool checks the metrics.
. "$(dirname "$0")/lib.sh"
need promtool prometheus
need curl curl

OPENAPI=$SYSTEM/openapi
# Generated requests for each operation at most; in another order with SEED=.
EXAMPLES=${EXAMPLES:-25} SEED=${SEED:-1}

# The programs of requirements.txt, in a folder that is kept until the versions change.
VERSIONS=$(sha256sum "$OPENAPI/requirements.txt")
PYTHON=$SYSTEM/../../target/python-${VERSIONS:0:12}
if ! [ -e "$PYTHON/complete" ]; then
    rm -rf "$PYTHON"
    /usr/bin/python3 -m venv "$PYTHON" || { echo "no venv here (Debian package python3-venv)"; exit 77; }
    "$PYTHON/bin/pip" install --quiet --disable-pip-version-check --retries 10 \
        --requirement "$OPENAPI/requirements.txt"
    touch "$PYTHON/complete"
fi

serve
curl --silent --fail --unix-socket "$BLKSWITCH_SOCKET" http://localhost/v1/openapi.json >openapi.json

# What the generator leaves out is a failure, too.
"$PYTHON/bin/openapi-python-client" generate --path openapi.json --meta none --fail-on-warning \
    --config "$OPENAPI/generate.yml" --output-path generated/blkswitch_client
PYTHONPATH=generated "$PYTHON/bin/python" "$OPENAPI/client.py" "$BLKSWITCH_SOCKET"

# The metrics, of devices of every kind that have done something, in both forms.
three disk 8
blkswitch create paths --table "0 2048 multipath 0 0 1 1 round-robin 0 2 0 mem:1M:a mem:1M:b"
metrics() {
    curl --silent --fail --show-error --unix-socket "$BLKSWITCH_SOCKET" --header "accept: $1" \
        --dump-header headers --output metrics http://localhost/metrics
    grep -qi "^content-type: $2" headers || fail "$(cat headers)"
}
for accept in 'text/plain' '*/*'; do
    metrics "$accept" 'text/plain; version=0.0.4'
    said=$(promtool check metrics <metrics 2>&1) || fail "$said"
    equal "$said" ""
done
grep -q '^blkswitch_path_up{device="paths",.*} 1' metrics || fail "$(cat metrics)"
metrics 'application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*;q=0.1' 'application/openmetrics-text'
equal "$(tail -n 1 metrics)" "# EOF"
blkswitch remove_all

# schemathesis speaks TCP only.
"$PYTHON/bin/python" "$OPENAPI/relay.py" "$BLKSWITCH_SOCKET" >port &
RELAY=$!
# `finish` judges the daemon.
trap 'status=$?; kill $RELAY 2>/dev/null || true; finish $status' EXIT
until_true test -s port
RELAY_PORT=$(cat port)
export RELAY_PORT SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$OPENAPI
"$PYTHON/bin/schemathesis" --config-file "$OPENAPI/schemathesis.toml" run "http://127.0.0.1:$RELAY_PORT/v1/openapi.json" \
    --seed "$SEED" --max-examples "$EXAMPLES" --phases examples,coverage,fuzzing --request-timeout 20 \
    --continue-on-failure --warnings off --no-color
