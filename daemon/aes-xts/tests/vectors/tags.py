#!/usr/bin/env python3
"""Vectors of the sector record (TAG.md) from nothing but Python's integers and an AES written from FIPS 197.

Prints the lines of tags.txt: hash key, PRF key, domain, epoch, address, sequence, ciphertext, checksum, tag; numbers
big-endian, bytes as they lie.
"""
import hashlib

P = (1 << 128) | (1 << 127) | (1 << 126) | (1 << 121) | 1

def multiply(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> 128:
            a ^= P
        b >>= 1
    return product


def inverse(a):
    result, square = 1, a
    for bit in range(128):
        if bit:
            result = multiply(result, square)
        square = multiply(square, square)
    return result


X_INVERSE_128 = inverse(P ^ (1 << 128))


def polyval(key, data):
    total = 0
    for at in range(0, len(data), 16):
        block = int.from_bytes(data[at : at + 16], "little")
        total = multiply(multiply(total ^ block, key), X_INVERSE_128)
    return total.to_bytes(16, "little")


def byte_multiply(a, b):
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def sbox_entry(value):
    inverted = next((c for c in range(256) if byte_multiply(value, c) == 1), 0)
    rotated = [((inverted << by) | (inverted >> (8 - by))) & 0xFF for by in range(5)]
    return rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63


SBOX = [sbox_entry(value) for value in range(256)]


def aes256(key, block):
    words = [list(key[at : at + 4]) for at in range(0, 32, 4)]
    constant = 1
    for index in range(8, 60):
        word = list(words[-1])
        if index % 8 == 0:
            word = [SBOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = byte_multiply(constant, 2)
        elif index % 8 == 4:
            word = [SBOX[byte] for byte in word]
        words.append([a ^ b for a, b in zip(words[-8], word)])
    keys = [sum(words[4 * r : 4 * r + 4], []) for r in range(15)]
    state = [a ^ b for a, b in zip(block, keys[0])]
    for r in range(1, 15):
        state = [SBOX[byte] for byte in state]
        state = [state[(column * 4 + row + 4 * row) % 16] for column in range(4) for row in range(4)]
        if r < 14:
            mixed = []
            for column in range(4):
                c = state[4 * column : 4 * column + 4]
                for row in range(4):
                    mixed.append(
                        byte_multiply(c[row], 2) ^ byte_multiply(c[(row + 1) % 4], 3) ^ c[(row + 2) % 4] ^ c[(row + 3) % 4]
                    )
            state = mixed
        state = [a ^ b for a, b in zip(state, keys[r])]
    return bytes(state)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def stream(name, length):
    return hashlib.shake_128(name.encode()).digest(length)


assert aes256(bytes(range(32)), bytes.fromhex("00112233445566778899aabbccddeeff")).hex() == "8ea2b7ca516745bfeafc49904b496089"
assert polyval(
    int.from_bytes(bytes.fromhex("25629347589242761d31f826ba4b757b"), "little"),
    bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362"),
).hex() == "f7a3b47b846119fae5b7866cf5e5b77e"
assert crc32c(b"123456789") == 0xE3069283

print("# hash key, PRF key, domain, epoch, address, sequence, ciphertext, checksum, tag (tags.py)")
for number, length in enumerate([512, 528, 1024, 2048, 4096, 4096]):
    name = f"nightlatch tag vector {number}"
    hash_key, prf_key, domain = stream(name + " h", 16), stream(name + " k", 32), stream(name + " d", 16)
    epoch = int.from_bytes(stream(name + " e", 4), "big")
    address = int.from_bytes(stream(name + " a", 16), "big") >> (0 if number % 2 else 80)
    sequence = int.from_bytes(stream(name + " s", 8), "big")
    ciphertext = stream(name + " c", length) if number != 5 else bytes(length)
    header = b"nl-tag 1" + length.to_bytes(8, "little") + domain + address.to_bytes(16, "little")
    header += sequence.to_bytes(8, "little") + epoch.to_bytes(4, "little") + bytes(4)
    tag = aes256(prf_key, polyval(int.from_bytes(hash_key, "little"), header + ciphertext))
    fields = [hash_key, prf_key, domain, epoch.to_bytes(4, "big"), address.to_bytes(16, "big")]
    fields += [sequence.to_bytes(8, "big"), ciphertext, crc32c(ciphertext).to_bytes(4, "big"), tag]
    print(" ".join(field.hex() for field in fields))
