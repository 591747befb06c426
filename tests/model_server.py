"""A small OpenAI-compatible server of a real model, for tests.

    python tests/model_server.py MODEL PORT

It answers one request at a time, with transformers; `temperature` is taken from the request.
"""

import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from r1nb.models import ModelChoice
from r1nb.sampling import SamplingConfig, TransformersSampler


def main(model: str, port: int) -> None:
    cfg = SamplingConfig(backend="transformers")
    sampler = TransformersSampler(ModelChoice(model, dtype="float32"), cfg)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, body: dict, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply({"data": [{"id": model}]}, 200 if self.path == "/v1/models" else 404)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                sampler.cfg = replace(
                    sampler.cfg,
                    max_new_tokens=asked["max_tokens"],
                    temperature=asked["temperature"],
                    num_generations=1,
                )
                ((said,),) = sampler([asked["messages"]], 1, asked.get("seed") or 0)
            message = {"role": "assistant", "content": said.text}
            self.reply(
                {
                    "choices": [
                        {"index": 0, "message": message, "finish_reason": said.finish_reason}
                    ],
                    "usage": {"completion_tokens": said.num_tokens},
                }
            )

        def log_message(self, *args) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
