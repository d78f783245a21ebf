#!/usr/bin/env bash
# Installs what `make test` (or `make lint`) needs beside Rust and a C compiler: the real clients that the system
# tests drive, and the test runner. Idempotent, and quick when everything is there.
#
#   tests/clients.sh test     NBD, S3 and TLS clients, UPS daemons, a bus, a debugger, a machine for the guest tests
#                             (QEMU, a kernel, busybox), a Python venv, cargo-nextest
#   tests/clients.sh bench    what the NBD head is measured beside
#   tests/clients.sh lint     cargo-deny
#
# System packages come through apt, as root or with sudo. Everything else lands under target/tools and goes with
# `cargo clean`. A test never skips because a client is missing: it fails and names this script.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly tools="$PWD/target/tools"
readonly venv="$tools/python"
readonly nextest_version=0.9.143
readonly deny_version=0.20.2
export PATH="$tools/bin:$PATH"

say() { printf 'clients: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# What a test calls, and the Debian or Ubuntu package that brings it.
readonly programs=(
    qemu-img:qemu-utils
    qemu-io:qemu-utils
    nbdinfo:libnbd-bin
    nbdcopy:libnbd-bin
    nbdfuse:libnbd-bin
    fusermount3:fuse3
    mkfs.ext4:e2fsprogs
    fio:fio
    strace:strace
    gdb:gdb
    depmod:kmod
    strip:binutils
    xz:xz-utils
    zstd:zstd
    rclone:rclone
    openssl:openssl
    objdump:binutils
    valgrind:valgrind
    curl:curl
    python3:python3
    dbus-daemon:dbus-daemon
)

readonly rivals=(
    fio:fio
    nbdkit:nbdkit
    nbd-server:nbd-server
    qemu-img:qemu-utils
    qemu-nbd:qemu-utils
    openssl:openssl
)

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        fail "needs root to run: $* (run it yourself as root, or install sudo)"
    fi
}

apt_get() {
    # Another installation may hold the package lock: wait for it instead of failing.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"
}

# install_packages ENTRY...: what of PROGRAM:PACKAGE is not on the PATH.
install_packages() {
    local wanted=() entry
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || wanted+=("${entry##*:}")
    done
    [ ${#wanted[@]} -gt 0 ] || return 0
    mapfile -t wanted < <(printf '%s\n' "${wanted[@]}" | sort -u)
    command -v apt-get >/dev/null \
        || fail "this machine has no apt: install by hand what brings ${*%%:*}, then run again"
    say "installing ${wanted[*]}"
    apt_get update >/dev/null
    apt_get install -y --no-install-recommends "${wanted[@]}" >/dev/null
}

# UPS daemons, which lie outside the PATH. Debian's apcupsd and NUT exclude each other (only one may shut a machine
# down), and neither is to look after this machine: apcupsd is unpacked, not installed.
install_ups_daemons() {
    local package
    [ -x /lib/nut/upsd ] || {
        say "installing nut-server"
        apt_get update >/dev/null
        apt_get install -y --no-install-recommends nut-server >/dev/null
    }
    [ -x /sbin/apcupsd ] || [ -x "$tools/apcupsd/sbin/apcupsd" ] || {
        say "unpacking apcupsd"
        apt_get install -y --no-install-recommends libusb-0.1-4 >/dev/null
        mkdir -p "$tools/apcupsd"
        (cd "$tools/apcupsd" && apt-get -q -o APT::Sandbox::User=root download apcupsd >/dev/null)
        package=$(echo "$tools"/apcupsd/apcupsd_*.deb)
        dpkg -x "$package" "$tools/apcupsd"
        rm "$package"
    }
}

# The name of the distribution's newest kernel package, from the one that stands for it.
kernel_image() {
    local meta
    for meta in linux-image-amd64 linux-image-generic; do
        apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2 }'
    done | head -n 1
}

# What the tests in tests/guest boot: QEMU, a kernel with its modules, busybox. Unpacked and not installed: Debian's QEMU
# excludes newer qemu-utils, and a kernel package would change what this machine boots.
install_guest_tools() {
    local root="$tools/guest" image modules wanted
    [ -x "$root/bin/busybox" ] && compgen -G "$root/boot/vmlinuz-*" >/dev/null && return 0
    say "unpacking a machine for the guest tests: QEMU, a kernel, busybox"
    apt_get update >/dev/null
    image=$(kernel_image)
    [ -n "$image" ] || fail "apt knows no kernel (linux-image-amd64 or linux-image-generic)"
    wanted=("$image" busybox-static)
    # Ubuntu packs the modules apart.
    modules=linux-modules-${image#linux-image-}
    apt-cache show "$modules" >/dev/null 2>&1 && wanted+=("$modules")
    command -v qemu-system-x86_64 >/dev/null \
        || mapfile -t -O "${#wanted[@]}" wanted < <(apt-get install --simulate --no-install-recommends qemu-system-x86 \
            | awk '$1 == "Inst" { print $2 }')
    rm -rf "$root"
    mkdir -p "$root/packages"
    (cd "$root/packages" && apt-get -q -o APT::Sandbox::User=root download "${wanted[@]}" >/dev/null)
    for package in "$root"/packages/*.deb; do dpkg -x "$package" "$root"; done
    rm -r "$root/packages"
    # Where / is merged into /usr, packages bring only that.
    [ -e "$root/bin/busybox" ] || ln -s usr/bin "$root/bin"
    [ -e "$root/lib/modules" ] || ln -s usr/lib "$root/lib"
}

# The distribution's interpreter where there is one: its venv does not depend on a user's version manager.
system_python() {
    if [ -x /usr/bin/python3 ]; then /usr/bin/python3 "$@"; else python3 "$@"; fi
}

install_python() {
    local wanted=tests/requirements.txt stamp="$venv/requirements.txt"
    cmp -s "$wanted" "$stamp" && return 0
    say "making a Python environment with $(paste -sd ' ' "$wanted")"
    rm -rf "$venv"
    system_python -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted"
    cp "$wanted" "$stamp"
}

# cargo_tool NAME VERSION: installed once; any version that is already on the PATH will do.
cargo_tool() {
    command -v "$1" >/dev/null && return 0
    say "building $1 $2 (once; some minutes)"
    # Unoptimised on purpose: these start processes and read text, and compiling is what costs.
    cargo install --quiet --locked --debug --root "$tools" "$1@$2"
}

case "${1:-}" in
    test)
        # A Python without ensurepip cannot make the venv: Debian splits it off.
        [ -x "$venv/bin/python" ] || system_python -c 'import ensurepip, venv' 2>/dev/null \
            || set -- "$@" "a venv":python3-venv
        install_packages "${programs[@]}" "${@:2}"
        install_ups_daemons
        install_guest_tools
        install_python
        cargo_tool cargo-nextest "$nextest_version"
        ;;
    bench)
        install_packages "${rivals[@]}"
        ;;
    lint)
        cargo_tool cargo-deny "$deny_version"
        ;;
    *)
        fail "say which set: tests/clients.sh test | bench | lint"
        ;;
esac
