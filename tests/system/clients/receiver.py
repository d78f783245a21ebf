"""A receiver of webhooks: takes what is signed as Standard Webhooks says, and nothing else.

`receiver.py SECRET OUT [CERT KEY]` listens on a port of its own choice, prints it, and writes each message that it took as a line of
JSON to OUT. While a file OUT.away is there it answers 503.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import ssl
import sys
import time


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.judge(body)
        if status == 200:
            with open(OUT, "a") as out:
                out.write(json.dumps({"id": self.headers["webhook-id"], "path": self.path, "body": json.loads(body)}) + "\n")
        answer = b"" if status == 200 else b"no"
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def judge(self, body):
        if os.path.exists(OUT + ".away"):
            return 503
        stamp = self.headers["webhook-timestamp"]
        if abs(time.time() - int(stamp)) > 300:
            return 400
        signed = b".".join([self.headers["webhook-id"].encode(), stamp.encode(), body])
        made = "v1," + base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        return 200 if hmac.compare_digest(made, self.headers["webhook-signature"]) else 401

    def log_message(self, *_):
        pass


SECRET, OUT = base64.b64decode(sys.argv[1].removeprefix("whsec_")), sys.argv[2]
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", 0))), Receiver)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
