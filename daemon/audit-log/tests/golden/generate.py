#!/usr/bin/env python3
"""Makes the golden trails with Python's hashlib and OpenSSL alone: an implementation independent of the crate's.

    python3 generate.py    writes audit-v1.jsonl and audit-v2.jsonl beside itself
"""
import hashlib
import json
import pathlib
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
BOOT = "07" * 16
TRAIL = bytes([1] * 16)


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def ed25519(seed, message=None):
    """The public key, or a signature."""
    with tempfile.TemporaryDirectory() as folder:
        key, text = pathlib.Path(folder, "key"), pathlib.Path(folder, "message")
        key.write_bytes(bytes.fromhex("302e020100300506032b657004220420") + seed)
        if message is None:
            command = ["openssl", "pkey", "-inform", "DER", "-in", key, "-pubout", "-outform", "DER"]
            return subprocess.check_output(command)[-32:]
        text.write_bytes(message)
        command = ["openssl", "pkeyutl", "-sign", "-rawin", "-keyform", "DER", "-inkey", key, "-in", text]
        return subprocess.check_output(command)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def version_1():
    last = "00" * 32
    for seq, event in enumerate(["start", "ceremony", "unsealed"], 1):
        open_ = compact({"seq": seq, "unix_s": 1700000000 + seq, "event": event})[:-1] + f',"prev":"{last}"'
        last = hashlib.sha256((open_ + "}").encode()).hexdigest()
        yield f'{open_},"hash":"{last}"}}\n'


def version_2():
    run, root = bytes([3] * 32), bytes([0xAA] * 32)
    key, root_key = ed25519(run), ed25519(root)
    session = sha256(b"nightlatch/audit/2 session", TRAIL, key, (1).to_bytes(8, "little"), bytes(32))
    entries = [
        ("start", {"trail": TRAIL.hex(), "key": key.hex(), "version": "1"}),
        ("session-certified", {"root_key": root_key.hex(), "certificate": ed25519(root, session).hex()}),
        ("revoke", {"by": "operator/op", "why": 'a "quoted" word'}),
        ("stop", {}),
    ]
    last = bytes(32)
    for seq, (event, fields) in enumerate(entries, 1):
        second = seq - 1
        body = {
            "v": 2,
            "seq": seq,
            "unix_ms": 1_700_000_000_000 + second * 1000,
            "boot": BOOT,
            "boot_ns": second * 1_000_000_000,
            "event": event,
        } | fields
        text = compact(body)
        link = b"nightlatch/audit/2 link" + TRAIL + last + seq.to_bytes(8, "little") + sha256(text.encode())
        hash_ = sha256(link)
        signature = ed25519(run, sha256(b"nightlatch/audit/2 entry", hash_))
        yield f'{text[:-1]},"prev":"{last.hex()}","hash":"{hash_.hex()}","sig":"{signature.hex()}"}}\n'
        last = hash_


(HERE / "audit-v1.jsonl").write_text("".join(version_1()))
(HERE / "audit-v2.jsonl").write_text("".join(version_2()))
