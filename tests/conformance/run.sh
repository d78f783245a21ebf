#!/usr/bin/env bash
# Runs the public S3 suite (ceph/s3-tests) against `nightlatch demo` and says what passed and what failed, by name.
#
#   tests/conformance/run.sh [pytest arguments]
#
# The suite is fetched for the run, at one commit, and never becomes part of this repository: $S3_TESTS may name a
# checkout of it that is there already. Results land under target/conformance: passed.txt, failed.txt, report.txt.
# Fails where a test fails that known-failures.tsv does not name, or where one passes that it does.
set -euo pipefail

cd "$(dirname "$0")/../.."
readonly commit=8f0ae7b
readonly source=https://github.com/ceph/s3-tests
readonly work="$PWD/target/conformance"
readonly suite="${S3_TESTS:-$work/s3-tests}"
readonly bins="$PWD/target/debug"
readonly nightlatch="$bins/nightlatch"
# The 734 tests: everything in two files but what asks for other storage classes, other clouds, logs or queries, and what
# waits for lifecycles, which has a run of its own (lifecycle).
readonly core='not lifecycle_expiration and not lifecycle_transition and not cloud_transition and not cloud_restore
    and not bucket_logging and not s3select'
readonly marks="${S3_TESTS_MARKS:-$core}"
# Tests at the same time: each has buckets of its own.
readonly jobs="${S3_TESTS_JOBS:-3}"

say() { printf 'conformance: %s\n' "$*" >&2; }

fetch() {
    [ -d "$suite/s3tests" ] || {
        say "fetching the suite at $commit"
        git clone --quiet "$source" "$suite"
        git -C "$suite" checkout --quiet "$commit"
    }
    [ -x "$work/python/bin/pytest" ] || {
        say "making a Python environment for it"
        python3 -m venv "$work/python"
        "$work/python/bin/pip" install --quiet --disable-pip-version-check \
            --requirement "$suite/requirements.txt" pytest-xdist pytest-timeout
    }
}

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }

# start: the demonstration, in a directory of its own, until this script ends.
start() {
    dir=$(mktemp -d "$work/site.XXXXXX")
    rm -f "$work/ready.json"
    "$nightlatch" demo --dir "$dir" --s3-plain --s3-day-s 10 --s3-signature-v2 --json >"$work/ready.json" 2>"$work/demo.log" &
    demo=$!
    trap 'kill "$demo" 2>/dev/null; wait "$demo" 2>/dev/null; rm -rf "$dir"' EXIT
    local tries=120
    until [ -s "$work/ready.json" ]; do
        kill -0 "$demo" 2>/dev/null || { cat "$work/demo.log" >&2; exit 1; }
        [ $((tries -= 1)) -gt 0 ] || { say "the demonstration does not come up"; exit 1; }
        sleep 1
    done
}

# user NAME SECTION...: makes a user and writes the sections that the suite finds it by.
user() {
    local name=$1 made="$work/user.json" section
    "$nightlatch" --profile "$dir" --json user create "$name" >"$made"
    for section in "${@:2}"; do
        printf '\n[%s]\ndisplay_name = %s\nuser_id = %s\nemail = %s\ntenant = tenant\naccess_key = %s\nsecret_key = %s\n' \
            "$section" "$name" "$name" "$name" "$(field "$made" access_key)" "$(field "$made" secret_key)"
    done
}

configure() {
    local endpoint
    endpoint=$(field "$work/ready.json" s3_endpoint)
    local host=${endpoint#*://}
    printf '[DEFAULT]\nhost = %s\nport = %s\nis_secure = False\n\n[fixtures]\nbucket prefix = nl-{random}-\n' \
        "${host%:*}" "${host##*:}"
    user main@example.com "s3 main"
    user alt@example.com "s3 alt"
    user tenant@example.com "s3 tenant"
    user iam@example.com iam "iam root" "iam alt root"
}

# The keys that the suite names where it is told no others.
keys() {
    for name in testkey-1 testkey-2; do
        "$nightlatch" --profile "$dir" --json key create "$name" >"$work/key.json"
        "$nightlatch" --profile "$dir" --json push --key "$name" >"$work/key.json"
    done
}

mkdir -p "$work"
[ -x "$nightlatch" ] || { say "build the programs first: make build"; exit 1; }
fetch
start
keys
configure >"$work/s3tests.conf"
say "running; $work/pytest.log has the details"
(cd "$suite" && S3TEST_CONF="$work/s3tests.conf" "$work/python/bin/pytest" -q --tb=short -rA --timeout=300 \
    -p no:cacheprovider -n "$jobs" -m "${marks//$'\n'/ }" \
    s3tests/functional/test_s3.py s3tests/functional/test_headers.py "$@") >"$work/pytest.log" 2>&1 || true
python3 tests/conformance/report.py "$work"
