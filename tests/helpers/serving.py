"""Servers with the OpenAI API on loopback: `transformers serve` in a child process, and a scripted one."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RealServer:
    """`transformers serve` with one local model, named by its path."""

    def __init__(self, model, folder):
        self.model, self.folder, self.port = str(model), Path(folder), free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = self.folder / "server.log"
        self.process = None

    def start(self):
        """Start the server without waiting until it is ready; see `wait`."""
        program = Path(sys.executable).parent / "transformers"
        home = {"HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        settings = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [program, "serve", self.model, *settings], env=os.environ | home, stdout=log, stderr=log
            )

    def wait(self):
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()  # noqa: PT018
                time.sleep(0.1)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def answered(self):
        """Return the number of chat completions sent, across restarts."""
        return len(re.findall(r'POST /v1/chat/completions HTTP/1\.1" 200', self.log.read_text()))


def completion(text="fine", finish_reason="stop", usage=(7, 3), **message):
    """Return the body of a chat completion; usage is (prompt tokens, completion tokens) or None."""
    tokens = {"usage": dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))} if usage else {}
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **tokens}


class FakeServer:
    """Answers each chat request with `answer(body, number)`, in one thread per request.

    Args:
        answer: returns the body of a completion or (status, headers, body); None closes the connection.
        served: names that /v1/models lists; None makes it return 404.
    """

    def __init__(self, answer=lambda body, number: completion(), served=("m",)):
        self.answer, self.served = answer, served
        self.bodies, self.keys = [], []
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.make_handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *details):
        self.http.shutdown()
        self.http.server_close()

    def prompts(self):
        """Return the user messages in the order of arrival."""
        return [body["messages"][1]["content"] for body in self.bodies]

    def take(self, body, key):
        with self.lock:
            self.bodies.append(body)
            self.keys.append(key)
            self.open += 1
            self.most_open = max(self.open, self.most_open)
            number = len(self.bodies)
        try:
            return self.answer(body, number)
        finally:
            with self.lock:
                self.open -= 1

    def make_handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments):
                pass

            def send(self, status, headers, body):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": len(raw), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self):
                if server.served is None:
                    self.send(404, {}, {"detail": "Not Found"})
                else:
                    self.send(200, {}, {"object": "list", "data": [{"id": name} for name in server.served]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = server.take(body, self.headers["Authorization"])
                if answer is None:
                    self.close_connection = True
                    return
                with contextlib.suppress(ConnectionError):  # the client has given up
                    self.send(*(answer if isinstance(answer, tuple) else (200, {}, answer)))

        return Handler
