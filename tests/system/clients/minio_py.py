"""What minio-py, with its defaults, must be able to do with the S3 head: `minio_py.py ENDPOINT`."""

import io
import os
import sys
from datetime import timedelta

import urllib3
from minio import Minio
from minio.commonconfig import CopySource, Tags
from minio.deleteobjects import DeleteObject

endpoint = sys.argv[1]
http = urllib3.PoolManager(ca_certs=os.environ.get("AWS_CA_BUNDLE"), cert_reqs="CERT_REQUIRED")
client = Minio(
    endpoint.split("://")[1],
    access_key=os.environ["AWS_ACCESS_KEY_ID"],
    secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    secure=endpoint.startswith("https"),
    region="us-east-1",
    http_client=http,
)
client.make_bucket("shelf")
assert client.bucket_exists("shelf") and not client.bucket_exists("missing")
small, large = os.urandom(1000), os.urandom(12 << 20)
client.put_object("shelf", "dir/small", io.BytesIO(small), len(small), metadata={"made": "here"})
# Of unknown length: in parts.
client.put_object("shelf", "dir/large", io.BytesIO(large), -1, part_size=5 << 20)
for name, body in [("dir/small", small), ("dir/large", large)]:
    answer = client.get_object("shelf", name)
    assert answer.read() == body, name
    answer.release_conn()
assert client.stat_object("shelf", "dir/small").metadata["x-amz-meta-made"] == "here"
client.copy_object("shelf", "copy", CopySource("shelf", "dir/large"))
tags = Tags.new_object_tags()
tags["colour"] = "blue"
client.set_object_tags("shelf", "copy", tags)
assert dict(client.get_object_tags("shelf", "copy")) == {"colour": "blue"}
listed = [entry.object_name for entry in client.list_objects("shelf", recursive=True)]
assert listed == ["copy", "dir/large", "dir/small"], listed
url = client.presigned_get_object("shelf", "dir/small", expires=timedelta(minutes=1))
assert http.request("GET", url).data == small
assert not list(client.remove_objects("shelf", [DeleteObject(name) for name in listed]))
client.remove_bucket("shelf")
print("passed")
