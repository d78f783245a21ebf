"""What boto3, with its defaults, must be able to do with the S3 head.

Each case is a function; `s3.py ENDPOINT CASE...` runs those named, in a bucket of its own each. Credentials come from
the environment; AWS_CA_BUNDLE names the authority where the endpoint speaks TLS.
"""

import hashlib
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

MIB = 1 << 20


def client(endpoint, **config):
    config.setdefault("retries", {"total_max_attempts": 1})
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4", **config),
    )


def body(size, seed=0):
    """Incompressible, reproducible bytes."""
    block = hashlib.shake_256(seed.to_bytes(8, "little")).digest(min(size, MIB))
    repeats = -(-size // max(len(block), 1)) if size else 0
    return (block * repeats)[:size]


def refused(call, status, code=None):
    """The ClientError that `call` must raise."""
    try:
        call()
    except ClientError as error:
        answer = error.response
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == status, answer
        assert code is None or answer["Error"]["Code"] == code, answer
        return answer
    raise AssertionError(f"was to be refused with {status} {code}")


def case_objects(s3, bucket):
    """Put, get, head, copy, delete; sizes around every boundary; ETags are MD5; metadata and content type stay."""
    for size in [0, 1, 4095, 4096, 4097, 65536, MIB + 1]:
        key, data = f"sizes/{size}", body(size, size)
        put = s3.put_object(Bucket=bucket, Key=key, Body=data, Metadata={"made-by": "test"}, ContentType="x/y")
        assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"', put
        got = s3.get_object(Bucket=bucket, Key=key)
        assert got["Body"].read() == data and got["ContentLength"] == size
        head = s3.head_object(Bucket=bucket, Key=key)
        assert head["Metadata"] == {"made-by": "test"} and head["ContentType"] == "x/y", head
        assert head["ETag"] == put["ETag"] and head["ContentLength"] == size
    source = {"Bucket": bucket, "Key": f"sizes/{MIB + 1}"}
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=source)
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == body(MIB + 1, MIB + 1)
    s3.put_object(Bucket=bucket, Key="copy", Body=b"overwritten")
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"overwritten"
    s3.delete_object(Bucket=bucket, Key="copy")
    refused(lambda: s3.get_object(Bucket=bucket, Key="copy"), 404, "NoSuchKey")
    refused(lambda: s3.head_object(Bucket=bucket, Key="copy"), 404)
    s3.delete_object(Bucket=bucket, Key="copy")
    odd = "folder with space/ünïcode+%2F&=?#.txt"
    s3.put_object(Bucket=bucket, Key=odd, Body=b"odd")
    assert s3.get_object(Bucket=bucket, Key=odd)["Body"].read() == b"odd"
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="folder")["Contents"]]
    assert listed == [odd], listed


def case_buckets(s3, bucket):
    """Create, head, list, delete; a bucket with objects in it stays."""
    other = f"{bucket}-other"
    s3.create_bucket(Bucket=other)
    s3.head_bucket(Bucket=other)
    names = [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    assert bucket in names and other in names and names == sorted(names), names
    s3.put_object(Bucket=other, Key="k", Body=b"v")
    refused(lambda: s3.delete_bucket(Bucket=other), 409, "BucketNotEmpty")
    s3.delete_object(Bucket=other, Key="k")
    s3.delete_bucket(Bucket=other)
    refused(lambda: s3.head_bucket(Bucket=other), 404)
    refused(lambda: s3.put_object(Bucket=other, Key="k", Body=b"v"), 404, "NoSuchBucket")
    refused(lambda: s3.create_bucket(Bucket="UPPER_case"), 400)


def case_ranges(s3, bucket):
    data = body(3 * MIB + 17, 5)
    s3.put_object(Bucket=bucket, Key="k", Body=data)

    def read(wanted):
        return s3.get_object(Bucket=bucket, Key="k", Range=wanted)

    for first, last in [(0, 0), (0, 4095), (1, 4096), (4095, 4096), (MIB - 1, 2 * MIB), (3 * MIB, 3 * MIB + 16)]:
        got = read(f"bytes={first}-{last}")
        assert got["Body"].read() == data[first : last + 1], (first, last)
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert got["ContentRange"] == f"bytes {first}-{last}/{len(data)}", got["ContentRange"]
    assert read("bytes=-100")["Body"].read() == data[-100:]
    assert read(f"bytes={2 * MIB}-")["Body"].read() == data[2 * MIB :]
    assert read(f"bytes=0-{10 * MIB}")["Body"].read() == data
    refused(lambda: read(f"bytes={len(data)}-"), 416, "InvalidRange")


def case_conditions(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"one")["ETag"]
    get = s3.get_object
    assert get(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"one"
    refused(lambda: get(Bucket=bucket, Key="k", IfMatch='"0"'), 412)
    refused(lambda: get(Bucket=bucket, Key="k", IfNoneMatch=etag), 304)
    when = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    refused(lambda: get(Bucket=bucket, Key="k", IfModifiedSince=when), 304)
    assert get(Bucket=bucket, Key="k", IfUnmodifiedSince=when)["Body"].read() == b"one"
    refused(lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfNoneMatch="*"), 412)
    s3.put_object(Bucket=bucket, Key="new", Body=b"first", IfNoneMatch="*")
    refused(lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfMatch='"0"'), 412)
    assert get(Bucket=bucket, Key="k")["Body"].read() == b"one"
    s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfMatch=etag)
    assert get(Bucket=bucket, Key="k")["Body"].read() == b"two"


def case_race(s3, bucket):
    """Of many writers that each want to be the first, exactly one is."""

    def attempt(number):
        try:
            s3.put_object(Bucket=bucket, Key="lock", Body=str(number).encode(), IfNoneMatch="*")
            return number
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412), error.response
            return None

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(attempt, range(64)) if number is not None]
    assert len(winners) == 1, winners
    assert s3.get_object(Bucket=bucket, Key="lock")["Body"].read() == str(winners[0]).encode()


def case_presigned(s3, bucket):
    data = body(100_000, 3)
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
    assert call("PUT", url, data)[0] == 200
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
    assert call("GET", url) == (200, data)
    forged = url[:-1] + ("0" if url[-1] != "0" else "1")
    assert call("GET", forged)[0] == 403, "the last character is the signature's"
    assert call("GET", url.split("?")[0])[0] == 403, "nothing is anonymous"
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=10)
    assert call("GET", url)[0] == 200
    deadline = time.monotonic() + 60
    while call("GET", url)[0] == 200:
        assert time.monotonic() < deadline, "a presigned URL outlives its time"
        time.sleep(0.1)
    assert call("GET", url)[0] == 403


def call(method, url, data=None):
    import ssl

    bundle = os.environ.get("AWS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=bundle) if url.startswith("https") else None
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with urllib.request.urlopen(request, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def case_credentials(s3, bucket):
    """A wrong secret, an unknown key and a foreign region are told apart, and none of them gets in."""
    endpoint = s3.meta.endpoint_url
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]

    def other(access_key, secret_key):
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    refused(lambda: other(key, secret[:-1] + "x").list_objects_v2(Bucket=bucket), 403, "SignatureDoesNotMatch")
    refused(lambda: other("A" * 20, secret).list_objects_v2(Bucket=bucket), 403, "InvalidAccessKeyId")


def case_checksums(s3, bucket):
    data = body(70_000, 9)
    # CRC32C needs more than boto3 itself; the S3 head's own tests have it.
    for algorithm in ["CRC32", "SHA1", "SHA256"]:
        put = s3.put_object(Bucket=bucket, Key=algorithm, Body=data, ChecksumAlgorithm=algorithm)
        got = s3.get_object(Bucket=bucket, Key=algorithm, ChecksumMode="ENABLED")
        field = f"Checksum{algorithm}"
        assert got["Body"].read() == data
        assert put[field] and got[field] == put[field], (put, got)
    wrong = {"Bucket": bucket, "Key": "wrong", "Body": data}
    refused(lambda: s3.put_object(**wrong, ChecksumCRC32="AAAAAA=="), 400)
    refused(lambda: s3.put_object(**wrong, ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg=="), 400)
    refused(lambda: s3.head_object(Bucket=bucket, Key="wrong"), 404)


def case_listing(s3, bucket):
    """10,000 keys: in UTF-8 order, page by page, by prefix, by delimiter, from a start."""
    count = 10_000
    keys = sorted((f"{n % 10}/{n % 100:02}/{hashlib.sha256(str(n).encode()).hexdigest()[:12]}-{n}" for n in range(count)))
    local = threading.local()

    def put(key):
        if not hasattr(local, "s3"):
            local.s3 = client(s3.meta.endpoint_url)
        local.s3.put_object(Bucket=bucket, Key=key, Body=key.encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, keys))
    pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket))
    assert len(pages) == 10 and all(page["KeyCount"] == 1000 for page in pages), [p["KeyCount"] for p in pages]
    listed = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert listed == sorted(keys, key=lambda key: key.encode()), "10,000 keys in order"
    assert all(entry["Size"] == len(entry["Key"]) for page in pages for entry in page["Contents"])
    top = s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in top["CommonPrefixes"]] == [f"{n}/" for n in range(10)], top
    assert "Contents" not in top
    paginator = s3.get_paginator("list_objects_v2")
    below = [
        entry["Prefix"]
        for page in paginator.paginate(Bucket=bucket, Prefix="3/", Delimiter="/", PaginationConfig={"PageSize": 3})
        for entry in page["CommonPrefixes"]
    ]
    assert below == [f"3/{n:02}/" for n in range(3, 100, 10)], below
    start = listed[7777]
    after = s3.list_objects_v2(Bucket=bucket, StartAfter=start, MaxKeys=5)
    assert [entry["Key"] for entry in after["Contents"]] == listed[7778:7783]
    old = s3.list_objects(Bucket=bucket, Prefix="9/99/", MaxKeys=10)
    assert [entry["Key"] for entry in old["Contents"]] == [key for key in listed if key.startswith("9/99/")][:10]
    for first in range(0, 3000, 1000):
        objects = [{"Key": key} for key in listed[first : first + 1000]]
        gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects})
        assert len(gone["Deleted"]) == 1000 and "Errors" not in gone
    left = [e["Key"] for page in paginator.paginate(Bucket=bucket) for e in page["Contents"]]
    assert left == listed[3000:]


def case_multipart(s3, bucket):
    """Parts in any order, replaced parts, the ETag of parts, listing, abort, and what must be refused."""
    parts = {1: body(5 * MIB, 1), 2: body(6 * MIB + 5, 2), 3: body(123, 3)}
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", Metadata={"a": "b"})["UploadId"]
    common = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    s3.upload_part(**common, PartNumber=2, Body=b"to be replaced")
    tags = {n: s3.upload_part(**common, PartNumber=n, Body=parts[n])["ETag"] for n in (3, 1, 2)}
    listed = s3.list_parts(**common)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(n, len(parts[n])) for n in (1, 2, 3)]
    assert [entry["Key"] for entry in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["k"]
    refused(lambda: s3.head_object(Bucket=bucket, Key="k"), 404)
    wanted = [{"PartNumber": n, "ETag": tags[n]} for n in (1, 2, 3)]

    def complete(chosen):
        return s3.complete_multipart_upload(**common, MultipartUpload={"Parts": chosen})

    refused(lambda: complete([wanted[0], {"PartNumber": 2, "ETag": '"0"'}]), 400, "InvalidPart")
    refused(lambda: complete([wanted[1], wanted[0]]), 400, "InvalidPartOrder")
    refused(lambda: complete([wanted[2], wanted[0]]), 400)
    done = complete(wanted)
    md5 = hashlib.md5(b"".join(hashlib.md5(parts[n]).digest() for n in (1, 2, 3))).hexdigest()
    assert done["ETag"] == f'"{md5}-3"', done
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == b"".join(parts.values()) and got["Metadata"] == {"a": "b"}
    refused(lambda: s3.list_parts(**common), 404, "NoSuchUpload")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="aborted")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="aborted", UploadId=upload, PartNumber=1, Body=parts[1])
    s3.abort_multipart_upload(Bucket=bucket, Key="aborted", UploadId=upload)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    refused(lambda: s3.head_object(Bucket=bucket, Key="aborted"), 404)
    s3.copy({"Bucket": bucket, "Key": "k"}, bucket, "copied", Config=TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB))
    assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == b"".join(parts.values())


class Repeated:
    """A readable of `size` bytes that never stands in memory as a whole: block n begins with its number."""

    def __init__(self, size):
        self.size, self.at = size, 0
        self.block = body(MIB, 42)

    def read(self, wanted=-1):
        left = self.size - self.at
        wanted = left if wanted is None or wanted < 0 else min(wanted, left)
        out = bytearray()
        while wanted:
            number, offset = divmod(self.at, MIB)
            block = number.to_bytes(8, "little") + self.block[8:]
            piece = block[offset : offset + wanted]
            out += piece
            self.at += len(piece)
            wanted -= len(piece)
        return bytes(out)


def case_crowd(s3, bucket):
    """32 clients at once, each with an object of 64 MiB in one piece, up and then down."""
    body = os.urandom(MIB) * 64

    def up(number):
        s3.put_object(Bucket=bucket, Key=str(number), Body=body)

    def down(number):
        read = 0
        for piece in s3.get_object(Bucket=bucket, Key=str(number))["Body"].iter_chunks(MIB):
            assert piece == body[read:read + len(piece)], f"{number} differs in the {len(piece)} bytes from {read}"
            read += len(piece)
        assert read == len(body), read

    for way in (up, down):
        began = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(way, range(32)))
        print(f"{way.__name__} {32 * 64 / (time.monotonic() - began):.0f} MiB/s")
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": str(number)} for number in range(32)]})


def case_large(s3, bucket):
    """One object of LARGE_BYTES, more than 32 bits can count, in parts of 16 MiB, up and down, as a stream."""
    size = int(os.environ.get("LARGE_BYTES", (4 << 30) + 33 * MIB))
    transfer = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=16 * MIB, max_concurrency=4)
    began = time.monotonic()
    s3.upload_fileobj(Repeated(size), bucket, "large", Config=transfer)
    uploaded = time.monotonic()
    got = s3.get_object(Bucket=bucket, Key="large")
    assert got["ContentLength"] == size
    expected, read = Repeated(size), 0
    for piece in got["Body"].iter_chunks(4 * MIB):
        assert piece == expected.read(len(piece)), f"differs in the {len(piece)} bytes from {read}"
        read += len(piece)
    assert read == size, read
    done = time.monotonic()
    first = size - 3 * MIB - 11
    tail = s3.get_object(Bucket=bucket, Key="large", Range=f"bytes={first}-")["Body"].read()
    expected = Repeated(size)
    expected.at = first
    assert tail == expected.read()
    s3.delete_object(Bucket=bucket, Key="large")
    print(f"up {size / MIB / (uploaded - began):.0f} MiB/s, down {size / MIB / (done - uploaded):.0f} MiB/s")


def main():
    endpoint, names = sys.argv[1], sys.argv[2:]
    s3 = client(endpoint)
    for name in names:
        bucket = f"case-{name}"
        s3.create_bucket(Bucket=bucket)
        began = time.monotonic()
        globals()[f"case_{name}"](s3, bucket)
        print(f"{name}: passed in {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
