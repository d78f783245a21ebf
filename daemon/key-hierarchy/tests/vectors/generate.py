#!/usr/bin/env python3
"""Recomputes hierarchy.txt with Python's hmac alone: an implementation independent of the crate's.

    python3 generate.py > hierarchy.txt

Each line: family, label, epoch, root secret, domain secret, domain, PRK, HKDF info, key; all bytes in hexadecimal.
"""
import hashlib
import hmac

VERSION = b"nightlatch hierarchy 1"
ROOT_SALT = b"nightlatch root 1"
DOMAIN_KEYS = [("xts", 64), ("tag-hash", 16), ("tag-prf", 32), ("check", 16), ("check-tagged", 16), ("check-crc", 16)]
ROOT_KEYS = [("ledger-wrap", 32), ("grant-signing", 32), ("audit-signing", 32)]


def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha256).digest()


def expand(prk, info, length):
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
        counter += 1
    return out[:length]


def info(label, domain, epoch):
    fields = b"".join(bytes([len(field)]) + field for field in (VERSION, label.encode(), domain))
    return fields + epoch.to_bytes(4, "big")


def secret(name):
    return hashlib.sha256(b"nightlatch test vector: " + name.encode()).digest()


def line(*fields):
    print(" ".join(f.hex() or "-" if isinstance(f, bytes) else str(f) for f in fields))


print("# family label epoch root domain-secret domain prk info key   (made by generate.py)")
for case, epoch in [(1, 0), (2, 1), (3, 0xFFFFFFFF)]:
    root = secret(f"root {case}")
    domain_secret = secret(f"domain secret {case}")
    domain = secret(f"domain {case}")[:16]
    prk = extract(domain_secret, root)
    for label, length in DOMAIN_KEYS:
        context = info(label, domain, epoch)
        line("domain", label, epoch, root, domain_secret, domain, prk, context, expand(prk, context, length))
    prk = extract(ROOT_SALT, root)
    for label, length in ROOT_KEYS:
        context = info(label, b"", epoch)
        line("root", label, epoch, root, b"", b"", prk, context, expand(prk, context, length))
