"""What boto3 users do, against the endpoint given as the only argument; credentials come from the environment."""

import datetime
import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

ENDPOINT = sys.argv[1]
BUCKET = "boto3-suite"
# Names of steps, where not all of them are to be done.
STEPS = os.environ.get("STEPS", "").split()
MIB = 1024 * 1024
PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=4)

# One attempt: a retry would hide a fault.
CONFIG = Config(retries={"total_max_attempts": 1})
s3 = boto3.client("s3", endpoint_url=ENDPOINT, config=CONFIG)


def refused(code, status, call, **arguments):
    """Asserts that the call fails in exactly this way."""
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        found = (error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"])
        assert found == (code, status), f"expected {(code, status)}, got {found}: {error}"
        return
    raise AssertionError(f"{call.__name__} was to be refused with {code}")


def content(key, **arguments):
    return s3.get_object(Bucket=BUCKET, Key=key, **arguments)["Body"].read()


def buckets():
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    refused("BucketAlreadyOwnedByYou", 409, s3.create_bucket, Bucket=BUCKET,
            CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    refused("IllegalLocationConstraintException", 400, s3.create_bucket, Bucket="elsewhere",
            CreateBucketConfiguration={"LocationConstraint": "ap-south-1"})
    assert BUCKET in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == s3.meta.region_name
    assert "Status" not in s3.get_bucket_versioning(Bucket=BUCKET)
    s3.head_bucket(Bucket=BUCKET)
    refused("404", 404, s3.head_bucket, Bucket="no-such-bucket")
    refused("NoSuchBucket", 404, s3.list_objects_v2, Bucket="no-such-bucket")


def objects():
    key, body = "dir/a b+c=ä/日本", os.urandom(3_000_000)
    put = s3.put_object(Bucket=BUCKET, Key=key, Body=body, ContentType="text/plain", CacheControl="no-cache",
                        ContentDisposition="attachment", ContentLanguage="de", Metadata={"who": "me", "case": "Kept"})
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=BUCKET, Key=key)
    assert got["Body"].read() == body
    assert (got["ContentType"], got["CacheControl"], got["ContentDisposition"], got["ContentLanguage"]) == (
        "text/plain", "no-cache", "attachment", "de")
    assert got["Metadata"] == {"who": "me", "case": "Kept"}
    head = s3.head_object(Bucket=BUCKET, Key=key)
    assert (head["ContentLength"], head["ETag"]) == (len(body), put["ETag"])
    for text, expected in [("bytes=100-199", body[100:200]), ("bytes=-5", body[-5:]), ("bytes=2999999-", body[-1:])]:
        part = s3.get_object(Bucket=BUCKET, Key=key, Range=text)
        assert part["Body"].read() == expected and part["ResponseMetadata"]["HTTPStatusCode"] == 206
    refused("InvalidRange", 416, s3.get_object, Bucket=BUCKET, Key=key, Range="bytes=3000000-")
    refused("304", 304, s3.get_object, Bucket=BUCKET, Key=key, IfNoneMatch=put["ETag"])
    refused("304", 304, s3.get_object, Bucket=BUCKET, Key=key, IfModifiedSince=head["LastModified"])
    refused("PreconditionFailed", 412, s3.get_object, Bucket=BUCKET, Key=key, IfMatch='"other"')
    refused("NoSuchKey", 404, s3.get_object, Bucket=BUCKET, Key="missing")
    for length in (0, 1, 1024, 1025, 4096, 262_144, 262_145, 524_288, 1_048_577):
        s3.put_object(Bucket=BUCKET, Key="lengths", Body=body[:length])
        assert content("lengths") == body[:length], length


def conditional_writes():
    s3.put_object(Bucket=BUCKET, Key="once", Body=b"1", IfNoneMatch="*")
    refused("PreconditionFailed", 412, s3.put_object, Bucket=BUCKET, Key="once", Body=b"2", IfNoneMatch="*")
    etag = s3.head_object(Bucket=BUCKET, Key="once")["ETag"]
    refused("PreconditionFailed", 412, s3.put_object, Bucket=BUCKET, Key="once", Body=b"2", IfMatch='"other"')
    refused("NoSuchKey", 404, s3.put_object, Bucket=BUCKET, Key="never", Body=b"2", IfMatch=etag)
    s3.put_object(Bucket=BUCKET, Key="once", Body=b"2", IfMatch=etag)
    assert content("once") == b"2"


def checksums():
    for algorithm in ("CRC32", "SHA1", "SHA256"):
        s3.put_object(Bucket=BUCKET, Key="sum", Body=b"hello" * 1000, ChecksumAlgorithm=algorithm)
        got = s3.get_object(Bucket=BUCKET, Key="sum", ChecksumMode="ENABLED")
        assert got["Body"].read() == b"hello" * 1000 and got["ChecksumType"] == "FULL_OBJECT"
        assert got[f"Checksum{algorithm}"]
    refused("BadDigest", 400, s3.put_object, Bucket=BUCKET, Key="sum", Body=b"x", ChecksumCRC32="AAAAAA==")
    refused("BadDigest", 400, s3.put_object, Bucket=BUCKET, Key="sum", Body=b"x",
            ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")
    refused("InvalidDigest", 400, s3.put_object, Bucket=BUCKET, Key="sum", Body=b"x", ContentMD5="nonsense")


def multipart():
    body = os.urandom(12 * MIB + 17)
    with tempfile.TemporaryDirectory() as directory:
        source, target = os.path.join(directory, "source"), os.path.join(directory, "target")
        with open(source, "wb") as file:
            file.write(body)
        s3.upload_file(source, BUCKET, "big", Config=PARTS, ExtraArgs={"Metadata": {"via": "transfer"}})
        s3.download_file(BUCKET, "big", target, Config=PARTS)
        with open(target, "rb") as file:
            assert file.read() == body
    head = s3.head_object(Bucket=BUCKET, Key="big", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-3"') and head["Metadata"] == {"via": "transfer"}
    assert head["ChecksumType"] == "COMPOSITE"
    part = s3.get_object(Bucket=BUCKET, Key="big", PartNumber=2)
    assert part["PartsCount"] == 3 and part["Body"].read() == body[5 * MIB:10 * MIB]
    assert part["ChecksumType"] == "COMPOSITE" and "-" not in part["ChecksumCRC32"]
    across = 5 * MIB - 3
    assert content("big", Range=f"bytes={across}-{across + 9}") == body[across:across + 10]
    s3.copy({"Bucket": BUCKET, "Key": "big"}, BUCKET, "big-copy", Config=PARTS)
    assert content("big-copy") == body

    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="m")["UploadId"]
    names = {"Bucket": BUCKET, "Key": "m", "UploadId": upload}
    small = s3.upload_part(**names, PartNumber=1, Body=b"small")
    last = s3.upload_part(**names, PartNumber=2, Body=b"last")
    listed = s3.list_parts(**names)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(1, 5), (2, 4)]
    assert "m" in [entry["Key"] for entry in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    parts = [{"PartNumber": 1, "ETag": small["ETag"]}, {"PartNumber": 2, "ETag": last["ETag"]}]
    refused("EntityTooSmall", 400, s3.complete_multipart_upload, **names, MultipartUpload={"Parts": parts})
    refused("InvalidPartOrder", 400, s3.complete_multipart_upload, **names, MultipartUpload={"Parts": parts[::-1]})
    wrong = [{"PartNumber": 1, "ETag": '"0"'}]
    refused("InvalidPart", 400, s3.complete_multipart_upload, **names, MultipartUpload={"Parts": wrong})
    s3.complete_multipart_upload(**names, MultipartUpload={"Parts": parts[1:]})
    assert content("m") == b"last"
    aborted = s3.create_multipart_upload(Bucket=BUCKET, Key="m")["UploadId"]
    s3.abort_multipart_upload(Bucket=BUCKET, Key="m", UploadId=aborted)
    refused("NoSuchUpload", 404, s3.list_parts, Bucket=BUCKET, Key="m", UploadId=aborted)


def copies():
    s3.put_object(Bucket=BUCKET, Key="from", Body=b"body" * 5000, ContentType="text/x", Metadata={"a": "1"})
    source = {"Bucket": BUCKET, "Key": "from"}
    s3.copy_object(Bucket=BUCKET, Key="to", CopySource=source)
    head = s3.head_object(Bucket=BUCKET, Key="to")
    assert (head["ContentType"], head["Metadata"]) == ("text/x", {"a": "1"}) and content("to") == b"body" * 5000
    refused("InvalidRequest", 400, s3.copy_object, Bucket=BUCKET, Key="from", CopySource=source)
    s3.copy_object(Bucket=BUCKET, Key="from", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"})
    assert s3.head_object(Bucket=BUCKET, Key="from")["Metadata"] == {"b": "2"} and content("from") == b"body" * 5000
    refused("PreconditionFailed", 412, s3.copy_object, Bucket=BUCKET, Key="x", CopySource=source,
            CopySourceIfNoneMatch=head["ETag"])


def listings():
    names = sorted([f"list/{n % 7}/{n:03}" for n in range(60)] + ["list/ä b", "list/&<>", "list/+%"],
                   key=lambda name: name.encode())
    for name in names:
        s3.put_object(Bucket=BUCKET, Key=name, Body=b"")
    for operation in ("list_objects", "list_objects_v2"):
        for size in (1, 7, 1000):
            pages = s3.get_paginator(operation).paginate(
                Bucket=BUCKET, Prefix="list/", PaginationConfig={"PageSize": size})
            assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == names, (operation, size)
            pages = list(s3.get_paginator(operation).paginate(
                Bucket=BUCKET, Prefix="list/", Delimiter="/", PaginationConfig={"PageSize": size}))
            groups = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
            assert groups == [f"list/{n}/" for n in range(7)] and len(keys) == 3, (operation, size)
    after = s3.list_objects_v2(Bucket=BUCKET, Prefix="list/", StartAfter=names[10], MaxKeys=2)
    assert [entry["Key"] for entry in after["Contents"]] == names[11:13]
    refused("InvalidArgument", 400, s3.list_objects_v2, Bucket=BUCKET, ContinuationToken="nonsense")


def fetch(url, **arguments):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **arguments)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def presigned():
    if not os.environ.get("SIGNATURE_V2"):
        old = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(signature_version="s3"))
        name = {"Bucket": BUCKET, "Key": "once"}
        status, text = fetch(old.generate_presigned_url("get_object", Params=name))
        assert status == 400 and b"sign with version 4" in text, text
    for version in ("s3", "s3v4") if os.environ.get("SIGNATURE_V2") else ("s3v4",):
        signer = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(signature_version=version))
        name = {"Bucket": BUCKET, "Key": f"presigned/{version} ä"}
        put = signer.generate_presigned_url("put_object", Params=name)
        assert fetch(put, data=b"by url", method="PUT", headers={"Content-Type": ""})[0] == 200, version
        get = signer.generate_presigned_url("get_object", Params=name)
        assert fetch(get) == (200, b"by url"), version
        assert fetch(get.replace("presigned", "presignee"))[0] == 403
        assert fetch(put, data=b"", method="PUT",
                     headers={"Content-Type": "", "x-amz-copy-source": f"/{BUCKET}/once"})[0] == 403
        longer = signer.generate_presigned_url("get_object", Params=name, ExpiresIn=8 * 24 * 3600)
        assert fetch(longer)[0] in (400, 403)
        expired = signer.generate_presigned_url("get_object", Params=name, ExpiresIn=-1)
        assert fetch(expired)[0] in (400, 403)
    assert fetch(f"{ENDPOINT}/{BUCKET}/once")[0] == 403


def versions():
    bucket = "boto3-versions"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    name = {"Bucket": bucket, "Key": "k"}
    assert "VersionId" not in s3.put_object(**name, Body=b"before")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    ids = [s3.put_object(**name, Body=body)["VersionId"] for body in (b"1", b"22", b"333")]
    for version, body in [("null", b"before"), (ids[0], b"1"), (ids[2], b"333")]:
        got = s3.get_object(**name, VersionId=version)
        assert got["Body"].read() == body and got["VersionId"] == version
    marker = s3.delete_object(**name)
    assert marker["DeleteMarker"] and marker["VersionId"] not in ids
    refused("NoSuchKey", 404, s3.get_object, **name)
    refused("405", 405, s3.head_object, **name, VersionId=marker["VersionId"])
    refused("MethodNotAllowed", 405, s3.get_object, **name, VersionId=marker["VersionId"])
    refused("InvalidRequest", 400, s3.copy_object, Bucket=bucket, Key="copy",
            CopySource={**name, "VersionId": marker["VersionId"]})
    refused("NoSuchKey", 404, s3.copy_object, Bucket=bucket, Key="copy", CopySource=name)
    refused("NoSuchVersion", 404, s3.get_object, **name, VersionId="f" * 32)
    refused("InvalidArgument", 400, s3.get_object, **name, VersionId="nonsense")
    listed = s3.list_object_versions(Bucket=bucket)
    assert [entry["VersionId"] for entry in listed["Versions"]] == [*reversed(ids), "null"]
    assert not any(entry["IsLatest"] for entry in listed["Versions"]) and listed["DeleteMarkers"][0]["IsLatest"]
    for size in (1, 2, 100):
        pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        found = [entry["VersionId"] for page in pages for entry in page.get("Versions", [])]
        assert found == [*reversed(ids), "null"], (size, found)
    copied = s3.copy_object(Bucket=bucket, Key="copy", CopySource={**name, "VersionId": ids[0]})
    assert copied["CopySourceVersionId"] == ids[0] and s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"1"
    assert s3.delete_object(**name, VersionId=marker["VersionId"])["DeleteMarker"]
    assert s3.get_object(**name)["VersionId"] == ids[2]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert s3.put_object(**name, Body=b"null again")["VersionId"] == "null"
    assert s3.get_object(**name, VersionId="null")["Body"].read() == b"null again"
    upload = s3.create_multipart_upload(**name)["UploadId"]
    part = s3.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"parts")
    done = s3.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={
        "Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert done["VersionId"] == "null" and s3.get_object(**name)["Body"].read() == b"parts"
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=bucket)
    everything = s3.list_object_versions(Bucket=bucket)
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [
        {"Key": entry["Key"], "VersionId": entry["VersionId"]}
        for entry in everything.get("Versions", []) + everything.get("DeleteMarkers", [])]})
    assert "Errors" not in answer
    s3.delete_bucket(Bucket=bucket)


def tags_and_locks():
    bucket = "boto3-locks"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True,
                     CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    name = {"Bucket": bucket, "Key": "k"}
    first = s3.put_object(**name, Body=b"1", Tagging="a=1&b=two%20words")["VersionId"]
    expected = [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}]
    assert s3.get_object_tagging(**name)["TagSet"] == expected and s3.get_object(**name)["TagCount"] == 2
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=name)
    assert s3.get_object_tagging(Bucket=bucket, Key="copy")["TagSet"] == expected
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=name, TaggingDirective="REPLACE", Tagging="c=3")
    assert s3.get_object_tagging(Bucket=bucket, Key="copy")["TagSet"] == [{"Key": "c", "Value": "3"}]
    s3.delete_object_tagging(**name)
    assert s3.get_object_tagging(**name)["TagSet"] == []
    refused("InvalidTag", 400, s3.put_object_tagging, **name, Tagging={"TagSet": [
        {"Key": str(number), "Value": ""} for number in range(11)]})
    refused("NoSuchTagSet", 404, s3.get_bucket_tagging, Bucket=bucket)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": expected})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == expected

    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    s3.put_object_retention(**name, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": later})
    refused("AccessDenied", 403, s3.delete_object, **name, VersionId=first)
    s3.put_object_legal_hold(**name, LegalHold={"Status": "ON"})
    head = s3.head_object(**name)
    assert (head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]) == ("GOVERNANCE", "ON")
    refused("AccessDenied", 403, s3.delete_object, **name, VersionId=first, BypassGovernanceRetention=True)
    s3.put_object_legal_hold(**name, LegalHold={"Status": "OFF"})
    s3.delete_object(**name, VersionId=first, BypassGovernanceRetention=True)
    refused("InvalidBucketState", 409, s3.put_bucket_versioning, Bucket=bucket,
            VersioningConfiguration={"Status": "Suspended"})
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={
        "ObjectLockEnabled": "Enabled", "Rule": rule})
    assert s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]["Rule"] == rule
    s3.put_object(**name, Body=b"2")
    assert s3.get_object_retention(**name)["Retention"]["Mode"] == "GOVERNANCE"
    refused("InvalidRequest", 400, s3.put_object, Bucket=BUCKET, Key="k", Body=b"", ObjectLockMode="GOVERNANCE",
            ObjectLockRetainUntilDate=later)
    attributes = s3.get_object_attributes(**name, ObjectAttributes=["ETag", "ObjectSize", "StorageClass"])
    assert (attributes["ObjectSize"], attributes["StorageClass"]) == (1, "STANDARD")


def deletes():
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=BUCKET)
    s3.delete_object(Bucket=BUCKET, Key="was never there")
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "once"}, {"Key": "was never there"}]})
    assert len(answer["Deleted"]) == 2 and "Errors" not in answer
    boto3.resource("s3", endpoint_url=ENDPOINT).Bucket(BUCKET).objects.all().delete()
    s3.delete_bucket(Bucket=BUCKET)
    refused("NoSuchBucket", 404, s3.delete_bucket, Bucket=BUCKET)


for step in (buckets, objects, conditional_writes, checksums, multipart, copies, listings, versions, tags_and_locks, presigned,
             deletes):
    if STEPS and step.__name__ not in STEPS:
        continue
    step()
    print(f"{step.__name__}: ok")
