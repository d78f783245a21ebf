#!/usr/bin/env bash
# Builds the packages and the tarball. Programs are built first, or taken as they are:
#
#   systemd/packages/build.sh OUTPUT                     the release, from this tree
#   systemd/packages/build.sh OUTPUT --programs DIR      of the programs in DIR, as tests do
#   ... --version VERSION                                another version than the workspace's
#
# The same commit gives the same bytes: every time is SOURCE_DATE_EPOCH, or the commit's.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

cd "$(dirname "$0")/../.."
output=${1:?say where to}
shift
programs= version=
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=$2 ;;
        --version) version=$2 ;;
        *) echo "build.sh: $1 is not known" >&2 && exit 2 ;;
    esac
    shift 2
done
[ -n "$version" ] || version=$(awk -F '"' '/^version = / { print $2; exit }' Cargo.toml)
[ -n "${SOURCE_DATE_EPOCH:-}" ] || SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
if [ -z "$programs" ]; then
    cargo build --locked --release -p node -p keyholder -p cli -p smart --bins
    programs=target/release
fi
mkdir -p "$output"
output=$(cd "$output" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# put MODE FROM TO: a file of the tree, in its place below the stage.
put() { install -D -m "$1" "$2" "$stage/$package/$3"; }

# Programs without what only a debugger reads.
program() {
    put 755 "$programs/$1" "usr/bin/$1"
    strip --strip-unneeded "$stage/$package/usr/bin/$1"
}

# A manual page, as Debian wants it.
page() {
    put 644 "$1" "usr/share/man/man$2/$(basename "$1")"
    gzip -9n "$stage/$package/usr/share/man/man$2/$(basename "$1")"
}

documents() {
    local folder=usr/share/doc/$package
    put 644 LICENSE "$folder/copyright"
    cat LICENSE-APACHE LICENSE-MIT >>"$stage/$package/$folder/copyright"
    put 644 CHANGELOG.md "$folder/changelog"
    gzip -9n "$stage/$package/$folder/changelog"
}

package=nightlatch-node
program nightlatchd
program nightlatch-smart
for unit in nightlatchd.service nightlatchd-nbd.socket nightlatchd-nbd-unix.socket nightlatch-smart.service nightlatch-smart.timer; do
    put 644 systemd/$unit usr/lib/systemd/system/$unit
done
put 644 systemd/nightlatchd.sysusers usr/lib/sysusers.d/nightlatchd.conf
put 644 systemd/nightlatchd.tmpfiles usr/lib/tmpfiles.d/nightlatchd.conf
put 644 systemd/nightlatch.sysctl etc/sysctl.d/60-nightlatch.conf
put 644 systemd/nightlatch.rules etc/audit/rules.d/nightlatch.rules
put 644 systemd/HARDENING.md usr/share/doc/$package/HARDENING.md
put 644 docs/operating.md usr/share/doc/$package/operating.md
put 644 monitoring/alerts.yml usr/share/doc/$package/monitoring/alerts.yml
put 644 monitoring/dashboard.json usr/share/doc/$package/monitoring/dashboard.json
for board in hardware/boards/*.toml; do put 644 "$board" usr/share/doc/$package/boards/"$(basename "$board")"; done
put 644 hardware/boards/README.md usr/share/doc/$package/boards/README.md
page systemd/packages/man/nightlatchd.8 8
page systemd/packages/man/nightlatch-smart.8 8
documents

package=nightlatch-keyholder
program nightlatch-keyholder
put 644 systemd/nightlatch-keyholder.service usr/lib/systemd/system/nightlatch-keyholder.service
put 644 systemd/nightlatch-keyholder.sysusers usr/lib/sysusers.d/nightlatch-keyholder.conf
put 644 systemd/nightlatch-keyholder.tmpfiles usr/lib/tmpfiles.d/nightlatch-keyholder.conf
page systemd/packages/man/nightlatch-keyholder.8 8
documents

package=nightlatch
program nightlatch
"$programs/nightlatch" man "$stage/man" >/dev/null
for one in "$stage"/man/*.1; do page "$one" 1; done
for shell in bash:bash-completion/completions/nightlatch zsh:zsh/vendor-completions/_nightlatch fish:fish/vendor_completions.d/nightlatch.fish; do
    "$programs/nightlatch" completions "${shell%%:*}" >"$stage/completion"
    put 644 "$stage/completion" "usr/share/${shell#*:}"
done
put 644 systemd/nightlatch-drill.service usr/lib/systemd/system/nightlatch-drill.service
put 644 systemd/nightlatch-drill.timer usr/lib/systemd/system/nightlatch-drill.timer
put 644 systemd/nightlatch-drill.sysusers usr/lib/sysusers.d/nightlatch-drill.conf
put 644 systemd/nightlatch-drill.tmpfiles usr/lib/tmpfiles.d/nightlatch-drill.conf
put 640 systemd/drill.env etc/nightlatch/drill.env
documents
rm -r "$stage/man" "$stage/completion"

# What is where, for cargo-deb: each crate's Cargo.toml has the rest.
# One at a time: the place is the same for all.
mkdir -p target
exec 9>target/packages-stage.lock
flock 9
rm -rf target/packages-stage
cp -a "$stage" target/packages-stage
for crate in node keyholder cli; do
    cargo deb --quiet --locked --no-build --no-strip --manifest-path "daemon/$crate/Cargo.toml" --deb-version "$version" --output "$output/"
done

tree=nightlatch-$version-$(uname -m)
mkdir "$stage/$tree"
for package in nightlatch-node nightlatch-keyholder nightlatch; do cp -a "$stage/$package/." "$stage/$tree/"; done
install -m 644 systemd/packages/INSTALL.md "$stage/$tree/INSTALL.md"
tar --create --directory "$stage" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu "$tree" \
    | gzip -9n >"$output/$tree.tar.gz"
(cd "$output" && sha256sum -- *_"$version"_*.deb "$tree.tar.gz" >SHA256SUMS)
ls -l "$output"
