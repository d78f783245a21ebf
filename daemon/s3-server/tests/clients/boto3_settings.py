"""Customers' keys, encryption, lifecycles and forms, against the endpoint given as the only argument.

The server's days last a second.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
from botocore.config import Config

ENDPOINT = sys.argv[1]
BUCKET = "boto3-settings"
MIB = 1024 * 1024

s3 = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(retries={"total_max_attempts": 1}))
KEY = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b"k" * 32}


def refused(codes, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] in codes, error
        return
    raise AssertionError(f"{call.__name__} was to be refused with {codes}")


def customer_keys():
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    body = os.urandom(700_001)
    name = {"Bucket": BUCKET, "Key": "sealed"}
    put = s3.put_object(**name, Body=body, **KEY)
    assert put["SSECustomerAlgorithm"] == "AES256" and "ServerSideEncryption" not in put
    assert s3.get_object(**name, **KEY)["Body"].read() == body
    assert s3.get_object(**name, **KEY, Range="bytes=65530-65549")["Body"].read() == body[65530:65550]
    assert s3.head_object(**name, **KEY)["ContentLength"] == len(body)
    refused(["InvalidRequest"], s3.get_object, **name)
    refused(["400"], s3.head_object, **name)
    wrong = {**KEY, "SSECustomerKey": b"x" * 32}
    refused(["InvalidRequest"], s3.get_object, **name, **wrong)
    refused(["InvalidArgument"], s3.put_object, **name, Body=b"", SSECustomerAlgorithm="AES256", SSECustomerKey=b"short")
    refused(["InvalidRequest"], s3.copy_object, Bucket=BUCKET, Key="copy", CopySource=name)
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=name, CopySourceSSECustomerAlgorithm="AES256",
                   CopySourceSSECustomerKey=b"k" * 32)
    assert s3.get_object(Bucket=BUCKET, Key="copy")["Body"].read() == body
    parts = {"Bucket": BUCKET, "Key": "parts"}
    upload = s3.create_multipart_upload(**parts, **KEY)["UploadId"]
    pieces = [os.urandom(5 * MIB), os.urandom(1000)]
    refused(["InvalidRequest"], s3.upload_part, **parts, UploadId=upload, PartNumber=1, Body=pieces[0])
    listed = []
    for number, piece in enumerate(pieces, 1):
        etag = s3.upload_part(**parts, UploadId=upload, PartNumber=number, Body=piece, **KEY)["ETag"]
        listed.append({"PartNumber": number, "ETag": etag})
    whole = {**parts, "UploadId": upload, "MultipartUpload": {"Parts": listed}}
    refused(["InvalidRequest"], s3.complete_multipart_upload, **whole)
    refused(["InvalidRequest"], s3.complete_multipart_upload, **whole, **wrong)
    s3.complete_multipart_upload(**whole, **KEY)
    assert s3.get_object(**parts, **KEY)["Body"].read() == b"".join(pieces)


def encryption():
    put = s3.put_object(Bucket=BUCKET, Key="plain", Body=b"x")
    assert put["ServerSideEncryption"] == "AES256"
    assert s3.head_object(Bucket=BUCKET, Key="plain")["ServerSideEncryption"] == "AES256"
    rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    s3.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=rules)
    found = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert found[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    s3.delete_bucket_encryption(Bucket=BUCKET)
    refused(["ServerSideEncryptionConfigurationNotFoundError"], s3.get_bucket_encryption, Bucket=BUCKET)


def keys(bucket):
    return sorted(entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", []))


def until(condition, what):
    for _ in range(120):
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError(f"it did not happen within 30 seconds: {what}")


def lifecycle():
    bucket = "boto3-lifecycle"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    for key in ("old/1", "old/2", "kept/1"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    s3.put_object(Bucket=bucket, Key="tagged", Body=b"x", Tagging="go=yes")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="old/upload")["UploadId"]
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "old/"}, "Expiration": {"Days": 1}}
    tagged = {"ID": "tagged", "Status": "Enabled", "Filter": {"Tag": {"Key": "go", "Value": "yes"}},
              "Expiration": {"Days": 1}}
    disabled = {"ID": "off", "Status": "Disabled", "Filter": {"Prefix": "kept/"}, "Expiration": {"Days": 1}}
    uploads = {"ID": "uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
               "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={
        "Rules": [rule, tagged, disabled, uploads]})
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]) == 4
    until(lambda: keys(bucket) == ["kept/1"], "objects expire by prefix and tag, and no others")
    until(lambda: "Uploads" not in s3.list_multipart_uploads(Bucket=bucket), "unfinished uploads are aborted")
    refused(["NoSuchUpload"], s3.list_parts, Bucket=bucket, Key="old/upload", UploadId=upload)

    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for number in range(4):
        s3.put_object(Bucket=bucket, Key="versions", Body=str(number).encode())
    s3.put_object(Bucket=bucket, Key="gone", Body=b"x")
    s3.delete_object(Bucket=bucket, Key="gone")
    noncurrent = {"ID": "noncurrent", "Status": "Enabled", "Filter": {"Prefix": ""},
                  "NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 1}}
    markers = {"ID": "markers", "Status": "Enabled", "Filter": {"Prefix": ""},
               "Expiration": {"ExpiredObjectDeleteMarker": True}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [noncurrent, markers]})

    def versions(key):
        answer = s3.list_object_versions(Bucket=bucket, Prefix=key)
        return len(answer.get("Versions", [])), len(answer.get("DeleteMarkers", []))

    until(lambda: versions("versions") == (2, 0), "one noncurrent version stays beside the current one")
    assert s3.get_object(Bucket=bucket, Key="versions")["Body"].read() == b"3"
    assert versions("gone") == (1, 1), "its one noncurrent version is the one that stays"
    late = {**rule, "ID": "later", "Expiration": {"Days": 1000}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [late]})
    assert 'rule-id="later"' in s3.put_object(Bucket=bucket, Key="old/3", Body=b"x")["Expiration"]
    for bad in ({**rule, "Status": "enabled"}, {**rule, "Expiration": {"Days": 0}}, {**rule, "ID": "x" * 256}):
        refused(["MalformedXML", "InvalidArgument"], s3.put_bucket_lifecycle_configuration, Bucket=bucket,
                LifecycleConfiguration={"Rules": [bad]})
    s3.delete_bucket_lifecycle(Bucket=bucket)
    refused(["NoSuchLifecycleConfiguration"], s3.get_bucket_lifecycle_configuration, Bucket=bucket)


def form(fields, content=b"by form"):
    boundary = "boundary7"
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    body += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
    body += content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{ENDPOINT}/{BUCKET}", data=body, method="POST", headers={
        "Content-Type": f"multipart/form-data; boundary={boundary}"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def forms():
    fields = s3.generate_presigned_post(BUCKET, "form/f", Conditions=[["content-length-range", 0, 100]])
    fields = fields["fields"]
    assert form(fields) == 204
    assert s3.get_object(Bucket=BUCKET, Key="form/f")["Body"].read() == b"by form"
    assert form(fields, b"x" * 101) == 400
    assert form({**fields, "key": "elsewhere"}) == 403
    assert form({**fields, "policy": base64.b64encode(b"{}").decode()}) in (400, 403)
    assert form({"key": "anonymous"}) == 403


for step in (customer_keys, encryption, lifecycle, forms):
    step()
    print(f"{step.__name__}: ok")
