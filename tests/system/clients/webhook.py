"""A receiver of webhooks that knows the Standard Webhooks specification and nothing of Nightlatch.

    webhook.py PORT SECRET_FILE LOG [CERT KEY]

Each request becomes a line of JSON in LOG: its headers that matter, its body, and whether its signature holds. The answer's status stands
in the file LOG.status, 200 where there is none.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, secret_file, log = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
secret = base64.b64decode(pathlib.Path(secret_file).read_text().split()[0].removeprefix("whsec_"))


def holds(identity, timestamp, body, signatures):
    if abs(time.time() - int(timestamp)) > 300:
        return False
    signed = f"{identity}.{timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(expected, signature) for signature in signatures.split())


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        named = [self.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature")]
        status = log.with_name(log.name + ".status")
        answer = int(status.read_text()) if status.exists() else 200
        line = {
            "id": named[0],
            "path": self.path,
            "answer": answer,
            "holds": holds(named[0], named[1], body, named[2]),
            "altered_holds": holds(named[0], named[1], body + b" ", named[2]),
            "body": json.loads(body),
        }
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.send_response(answer)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
if len(sys.argv) > 4:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[4], sys.argv[5])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
