#!/usr/bin/env bash
# Writes packages.lock: which Debian packages an image is made of and built with, by version and hash.
#
#   image-build/lock.sh              take what the distribution has today; read the difference before you commit it
#
# Needs apt, Debian's archive keys and the network; changes nothing of this machine. apt checks the archive's signature,
# and from then on only the hashes in the lock count.
set -euo pipefail

readonly release=trixie
readonly mirror=http://deb.debian.org/debian
readonly keys=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
# In the image: the kernel, the stub that starts it, the C library; the debug profile's shell.
readonly image=(systemd-boot-efi libc6 libgcc-s1 busybox-static)
# On the build machine, unpacked beside the image and run from there.
readonly tools=(erofs-utils sbsigntool e2fsprogs)

cd "$(dirname "$0")"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{etc/apt/apt.conf.d,etc/apt/preferences.d,var/lib/apt/lists/partial,var/cache/apt/archives/partial,var/lib/dpkg}
touch "$root/var/lib/dpkg/status"
echo "deb [signed-by=$keys] $mirror $release main" > "$root/etc/apt/sources.list"
cat > "$root/apt.conf" <<CONF
Dir "$root";
Dir::State::status "$root/var/lib/dpkg/status";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
export APT_CONFIG="$root/apt.conf"
apt-get -q update >/dev/null

# lock USE PACKAGE...: an entry for each.
lock() {
    local use=$1 entry url file size hash
    shift
    apt-get --print-uris download "$@" | LC_ALL=C sort -k2 | while read -r url file size hash; do
        entry=${file%_*.deb}
        printf '\n[[package]]\nname = "%s"\nversion = "%s"\nuse = "%s"\nurl = "%s"\nbytes = %s\nsha256 = "%s"\n' \
            "${entry%%_*}" "$(sed 's/%3a/:/; s/%2b/+/g; s/%7e/~/g' <<<"${entry#*_}")" "$use" "$(tr -d "'" <<<"$url")" \
            "$size" "${hash#SHA256:}"
    done
}

kernel=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')
mapfile -t closure < <(apt-get install --simulate --no-install-recommends "${tools[@]}" | awk '$1 == "Inst" { print $2 }')
{
    echo "# Written by lock.sh: the packages of an image and of its build, by version and hash."
    lock kernel "$kernel"
    lock image "${image[@]}"
    lock tool "${closure[@]}"
} > "$root/packages.lock"
mv "$root/packages.lock" packages.lock
