"""Who may do what: two users and nobody, against the endpoint given as the only argument.

The first user's credentials come from the environment, the second's from OTHER_ACCESS_KEY and OTHER_SECRET_KEY.
"""

import json
import os
import sys
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
from botocore import UNSIGNED
from botocore.config import Config

ENDPOINT = sys.argv[1]
BUCKET = "boto3-access"
ONCE = {"total_max_attempts": 1}

mine = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(retries=ONCE))
other = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(retries=ONCE),
                     aws_access_key_id=os.environ["OTHER_ACCESS_KEY"],
                     aws_secret_access_key=os.environ["OTHER_SECRET_KEY"])
nobody = boto3.client("s3", endpoint_url=ENDPOINT, config=Config(retries=ONCE, signature_version=UNSIGNED))
OBJECT = {"Bucket": BUCKET, "Key": "k"}


def code(call, **arguments):
    """The code that a call fails with, or None."""
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return None


def refused(call, **arguments):
    found = code(call, **arguments)
    assert found in ("AccessDenied", "403"), f"{call.__name__}: {found}"


def policy(*statements):
    mine.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))


def private():
    region = {"LocationConstraint": mine.meta.region_name}
    mine.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=region)
    mine.put_object(**OBJECT, Body=b"mine")
    assert BUCKET not in [bucket["Name"] for bucket in other.list_buckets()["Buckets"]]
    assert code(other.create_bucket, Bucket=BUCKET, CreateBucketConfiguration=region) == "BucketAlreadyExists"
    upload = mine.create_multipart_upload(**OBJECT)["UploadId"]
    part = {**OBJECT, "UploadId": upload}
    lock = {"ObjectLockEnabled": "Enabled"}
    for stranger in (other, nobody):
        for call, arguments in [
            (stranger.head_bucket, {"Bucket": BUCKET}),
            (stranger.list_objects, {"Bucket": BUCKET}),
            (stranger.list_objects_v2, {"Bucket": BUCKET}),
            (stranger.list_object_versions, {"Bucket": BUCKET}),
            (stranger.list_multipart_uploads, {"Bucket": BUCKET}),
            (stranger.delete_bucket, {"Bucket": BUCKET}),
            (stranger.get_bucket_acl, {"Bucket": BUCKET}),
            (stranger.put_bucket_acl, {"Bucket": BUCKET, "ACL": "public-read"}),
            (stranger.get_bucket_policy, {"Bucket": BUCKET}),
            (stranger.put_bucket_policy, {"Bucket": BUCKET, "Policy": "{}"}),
            (stranger.delete_bucket_policy, {"Bucket": BUCKET}),
            (stranger.get_bucket_versioning, {"Bucket": BUCKET}),
            (stranger.put_bucket_versioning, {"Bucket": BUCKET, "VersioningConfiguration": {"Status": "Enabled"}}),
            (stranger.get_bucket_tagging, {"Bucket": BUCKET}),
            (stranger.put_bucket_tagging, {"Bucket": BUCKET, "Tagging": {"TagSet": []}}),
            (stranger.get_bucket_cors, {"Bucket": BUCKET}),
            (stranger.delete_bucket_cors, {"Bucket": BUCKET}),
            (stranger.get_bucket_lifecycle_configuration, {"Bucket": BUCKET}),
            (stranger.delete_bucket_lifecycle, {"Bucket": BUCKET}),
            (stranger.get_bucket_encryption, {"Bucket": BUCKET}),
            (stranger.get_public_access_block, {"Bucket": BUCKET}),
            (stranger.delete_public_access_block, {"Bucket": BUCKET}),
            (stranger.get_bucket_ownership_controls, {"Bucket": BUCKET}),
            (stranger.get_object_lock_configuration, {"Bucket": BUCKET}),
            (stranger.put_object_lock_configuration, {"Bucket": BUCKET, "ObjectLockConfiguration": lock}),
            (stranger.get_object, OBJECT),
            (stranger.head_object, OBJECT),
            (stranger.get_object, {"Bucket": BUCKET, "Key": "was never there"}),
            (stranger.put_object, {**OBJECT, "Body": b"theirs"}),
            (stranger.delete_object, OBJECT),
            (stranger.get_object_acl, OBJECT),
            (stranger.put_object_acl, {**OBJECT, "ACL": "public-read"}),
            (stranger.get_object_tagging, OBJECT),
            (stranger.put_object_tagging, {**OBJECT, "Tagging": {"TagSet": []}}),
            (stranger.delete_object_tagging, OBJECT),
            (stranger.get_object_attributes, {**OBJECT, "ObjectAttributes": ["ETag"]}),
            (stranger.get_object_retention, OBJECT),
            (stranger.put_object_legal_hold, {**OBJECT, "LegalHold": {"Status": "ON"}}),
            (stranger.create_multipart_upload, OBJECT),
            (stranger.upload_part, {**part, "PartNumber": 1, "Body": b""}),
            (stranger.list_parts, part),
            (stranger.complete_multipart_upload, {**part, "MultipartUpload": {"Parts": [
                {"PartNumber": 1, "ETag": "x"}]}}),
            (stranger.abort_multipart_upload, part),
            (stranger.copy_object, {"Bucket": BUCKET, "Key": "copy", "CopySource": OBJECT}),
        ]:
            refused(call, **arguments)
        answer = code(stranger.delete_objects, Bucket=BUCKET, Delete={"Objects": [{"Key": "k"}]})
        assert answer is None or answer == "AccessDenied"
    other.create_bucket(Bucket="boto3-others", CreateBucketConfiguration=region)
    refused(other.copy_object, Bucket="boto3-others", Key="stolen", CopySource=OBJECT)
    assert code(nobody.list_buckets) == "AccessDenied"
    assert mine.get_object(**OBJECT)["Body"].read() == b"mine"
    mine.abort_multipart_upload(**part)


def policies():
    arn = f"arn:aws:s3:::{BUCKET}"
    policy({"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{arn}/*"})
    assert nobody.get_object(**OBJECT)["Body"].read() == b"mine"
    refused(nobody.list_objects_v2, Bucket=BUCKET)
    assert mine.get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"]["IsPublic"]
    policy({"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam:::user/other"}, "Action": ["s3:ListBucket"],
            "Resource": arn, "Condition": {"StringEquals": {"s3:prefix": "allowed/"}}})
    other.list_objects_v2(Bucket=BUCKET, Prefix="allowed/")
    refused(other.list_objects_v2, Bucket=BUCKET, Prefix="other/")
    assert not mine.get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"]["IsPublic"]
    policy({"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"{arn}/k"})
    refused(mine.delete_object, **OBJECT)
    failed = mine.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k"}]})["Errors"]
    assert failed[0]["Code"] == "AccessDenied"
    policy({"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{arn}/*",
            "Condition": {"StringEquals": {"s3:ExistingObjectTag/open": "yes"}}})
    refused(nobody.get_object, **OBJECT)
    mine.put_object_tagging(**OBJECT, Tagging={"TagSet": [{"Key": "open", "Value": "yes"}]})
    nobody.get_object(**OBJECT)
    for bad in ("", "{", "{}", '{"Statement":[{"Effect":"Allow"}]}'):
        assert code(mine.put_bucket_policy, Bucket=BUCKET, Policy=bad) == "MalformedPolicy", bad
    mine.delete_bucket_policy(Bucket=BUCKET)
    assert code(mine.get_bucket_policy, Bucket=BUCKET) == "NoSuchBucketPolicy"


def lists():
    mine.put_object(**OBJECT, Body=b"mine", ACL="public-read")
    assert nobody.get_object(**OBJECT)["Body"].read() == b"mine"
    refused(nobody.get_object_acl, **OBJECT)
    grants = mine.get_object_acl(**OBJECT)["Grants"]
    assert sorted(grant["Permission"] for grant in grants) == ["FULL_CONTROL", "READ"]
    mine.put_object_acl(**OBJECT, GrantRead="id=other")
    assert other.get_object(**OBJECT)["Body"].read() == b"mine"
    refused(nobody.get_object, **OBJECT)
    assert code(mine.put_object_acl, **OBJECT, GrantRead="id=unknown") == "InvalidArgument"
    mine.put_bucket_acl(Bucket=BUCKET, ACL="public-read-write")
    other.put_object(Bucket=BUCKET, Key="theirs", Body=b"theirs")
    refused(mine.get_object, Bucket=BUCKET, Key="theirs")
    mine.delete_object(Bucket=BUCKET, Key="theirs")
    block = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True,
             "RestrictPublicBuckets": True}
    mine.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=block)
    assert mine.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"] == block
    refused(other.list_objects_v2, Bucket=BUCKET)
    refused(mine.put_bucket_acl, Bucket=BUCKET, ACL="public-read")
    refused(mine.put_bucket_policy, Bucket=BUCKET, Policy=json.dumps({"Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}]}))
    mine.delete_public_access_block(Bucket=BUCKET)
    mine.put_bucket_acl(Bucket=BUCKET, ACL="private")
    enforced = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    mine.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls=enforced)
    assert mine.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"] == enforced
    assert code(mine.put_object, **OBJECT, ACL="public-read") == "AccessControlListNotSupported"
    mine.delete_bucket_ownership_controls(Bucket=BUCKET)


def ask(method, path, headers):
    request = urllib.request.Request(f"{ENDPOINT}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def cross_origin():
    mine.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [{
        "AllowedOrigins": ["https://*.example.com"], "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["x-amz-*"],
        "ExposeHeaders": ["etag"], "MaxAgeSeconds": 60}]})
    origin = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}
    status, headers = ask("OPTIONS", f"/{BUCKET}/k", {**origin, "Access-Control-Request-Headers": "x-amz-date"})
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://app.example.com")
    assert (headers["Access-Control-Max-Age"], headers["Access-Control-Allow-Headers"]) == ("60", "x-amz-date")
    assert ask("OPTIONS", f"/{BUCKET}/k", {**origin, "Access-Control-Request-Headers": "cookie"})[0] == 403
    assert ask("OPTIONS", f"/{BUCKET}/k", {**origin, "Origin": "https://example.org"})[0] == 403
    assert ask("OPTIONS", f"/{BUCKET}/k", {})[0] == 400
    status, headers = ask("GET", f"/{BUCKET}/k", {"Origin": "https://app.example.com"})
    assert (status, headers["Access-Control-Allow-Origin"]) == (403, "https://app.example.com")
    mine.delete_bucket_cors(Bucket=BUCKET)
    assert code(mine.get_bucket_cors, Bucket=BUCKET) == "NoSuchCORSConfiguration"


for step in (private, policies, lists, cross_origin):
    step()
    print(f"{step.__name__}: ok")
