"""Checks the committed frames with another implementation: hashes from hashlib, Ed25519 from the openssl command.

Run it in this directory: python3 check.py
"""
import hashlib
import subprocess
import tempfile

EXPORTER = bytes([0x55]) * 32
LABELS = {1: "hello", 2: "evidence", 3: "grant", 4: "receipt", 5: "grant-refused", 6: "challenge-request",
          7: "renewal-challenge", 8: "renewal", 9: "revoke", 10: "wipe-receipt", 12: "attestation", 13: "credential",
          14: "credential-opened", 15: "epoch-key", 16: "epoch-taken"}
FROM_NODE = {2, 4, 5, 7, 10, 12, 14, 16}
VERSION = b"\6"


def parts(*items):
    digest = hashlib.sha256()
    for item in items:
        digest.update(len(item).to_bytes(8, "little") + item)
    return digest.digest()


def frame(name):
    return bytes.fromhex(open(name + ".hex").read())


def verify(key, digest, signature):
    with tempfile.NamedTemporaryFile() as pub, tempfile.NamedTemporaryFile() as sig, tempfile.NamedTemporaryFile() as msg:
        pub.write(bytes.fromhex("302a300506032b6570032100") + key)
        sig.write(signature)
        msg.write(digest)
        for file in (pub, sig, msg):
            file.flush()
        subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", pub.name, "-rawin",
                        "-in", msg.name, "-sigfile", sig.name], check=True, stdout=subprocess.DEVNULL)


hello = frame("01-hello")[98:]
node, rest = hello[:16], hello[16:]
name, rest = rest[1:1 + rest[0]], rest[1 + rest[0]:]
signing_key, root_epoch, challenge = rest[:32], rest[32], rest[33:]
assert len(challenge) == 32

evidence = frame("02-evidence")[98:]
identity_key = evidence[16:48]


def session_of(evidence):
    return parts(b"nightlatch/lease/1 session", VERSION, name, signing_key, root_epoch.to_bytes(4, "little"), node,
                 identity_key, EXPORTER, challenge, evidence)


session, attested = session_of(evidence), session_of(frame("13-evidence-that-attests")[98:])
assert parts(b"nightlatch/lease/1 quote", VERSION, attested) == frame("quote-digest")
wipe = parts(b"nightlatch wipe 1", bytes([0x99]) * 16, b"power-line", (7_000_000).to_bytes(8, "little"),
             (1).to_bytes(8, "little"))
assert wipe == frame("wipe-measurement")
hello_transcript = parts(b"nightlatch/lease/1 hello", VERSION, EXPORTER)

names = ["01-hello", "02-evidence", "03-grant", "04-receipt", "05-grant-refused", "06-challenge-request",
         "07-renewal-challenge", "08-renewal", "09-revoke", "10-wipe-receipt", "12-wipe-receipt-last",
         "13-evidence-that-attests", "14-attestation", "15-credential", "16-credential-opened", "17-epoch-key",
         "18-epoch-taken"]
for file in names:
    bytes_ = frame(file)
    version, kind, transcript, signature, body = bytes_[0], bytes_[1], bytes_[2:34], bytes_[34:98], bytes_[98:]
    assert version == VERSION[0]
    assert transcript == (hello_transcript if kind == 1 else attested if "13" <= file < "17" else session), file
    digest = parts(b"nightlatch/lease/1 signature", VERSION, LABELS[kind].encode(), transcript, body)
    verify(identity_key if kind in FROM_NODE else signing_key, digest, signature)
print(f"{len(names)} frames verified")
