"""Stand-ins for Hugging Face and ModelScope on loopback that can cut connections and corrupt files."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class HubServer:
    """Serve folders of models, and of datasets on Hugging Face, by their names `owner/name`.

    Attributes:
        breaks: for each file, the list of its next responses: the bytes after which to cut the connection, or None.
        spoiled: for each file, the number of next responses that end in a wrong byte.
        token: token that requests need; None accepts all.
        denial: Hugging Face's code of the error for requests without the token: `GatedRepo`, or `RepoNotFound` as for
            private repositories.
        commits: commit of each branch, tag and commit on Hugging Face.
        delay: seconds to wait before each block of a file.
        requests: (file, Range header or None) of each request, in order.
        served: bytes sent, for each file.
    """

    def __init__(self, models, datasets=()):
        self.models = {name: Path(folder) for name, folder in models.items()}
        self.datasets = {name: Path(folder) for name, folder in dict(datasets).items()}
        self.denial, self.commits = "GatedRepo", {"main": COMMIT}
        self.breaks, self.spoiled, self.token, self.delay = {}, {}, None, 0.0
        self.requests, self.served, self.lock = [], {}, threading.Lock()

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self):
        """Return the variables that direct both clients to this server."""
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}

    def use(self, monkeypatch, home):
        """Direct the clients in this process to this server; `home` is the folder of their caches and tokens."""
        homes = dict.fromkeys(("HF_HOME", "MODELSCOPE_HOME", "MODELSCOPE_CACHE"), str(home))
        for name, value in (self.environment() | homes).items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", self.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    def ranges(self, name):
        """Return the Range header (or None) of each request for a file, in order."""
        return [header for file, header in self.requests if file == name]

    def take(self, which, name):
        """Return and remove a file's next failure of a kind, `breaks` or `spoiled`."""
        with self.lock:
            if which == "breaks":
                return self.breaks.get(name, []).pop(0) if self.breaks.get(name) else None
            self.spoiled[name] = self.spoiled.get(name, 0) - 1
            return self.spoiled[name] >= 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, has_body):
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        hub, parts = self.hub, unquote(path).strip("/").split("/")
        if hub.token and hub.token not in (self.headers.get("Authorization") or "") + (
            self.headers.get("Cookie") or ""
        ):
            self.send(401, {"error": "Unauthorized"}, {"X-Error-Code": hub.denial})
        elif parts[:2] in (["api", "models"], ["api", "datasets"]):
            self.answer_hugging_face(hub.models if parts[1] == "models" else hub.datasets, parts[2:])
        elif parts[:3] == ["api", "v1", "models"]:
            folder = hub.models.get("/".join(parts[3:5]))
            if folder is None:
                self.send(404, {"Code": 10010205001, "Message": "no such model", "Success": False})
            elif parts[5:] == ["repo", "files"]:
                files = [
                    {"Path": file.name, "Size": file.stat().st_size, "Sha256": sha256(file), "Type": "blob"}
                    for file in sorted(folder.iterdir())
                ]
                self.send(200, {"Code": 200, "Data": {"Files": files}, "Success": True})
            else:
                self.send_file(folder / query["FilePath"][0], has_body)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.send_file(hub.datasets["/".join(parts[1:3])].joinpath(*parts[5:]), has_body)
        elif parts[2:3] == ["resolve"]:
            self.send_file(hub.models["/".join(parts[:2])] / parts[4], has_body)
        else:
            self.send(404, {"error": "not found"})

    def answer_hugging_face(self, folders, parts):
        folder, commits = folders.get("/".join(parts[:2])), self.hub.commits
        if folder is None:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif parts[2] == "revision" and parts[3] not in (*commits, *commits.values()):
            self.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif parts[2] == "revision":
            self.send(200, {"id": "/".join(parts[:2]), "sha": commits.get(parts[3], parts[3]), "siblings": []})
        else:
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            self.send(200, [describe(file, file.relative_to(folder).as_posix()) for file in files])

    def send(self, status, value, headers=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, path, has_body):
        hub, name = self.hub, path.name
        data, header = path.read_bytes(), self.headers.get("Range")
        hub.requests.append((name, header))
        if hub.take("spoiled", name):
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, end = 0, len(data)
        if header:
            first, last = header.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) + 1 if last else len(data)
        self.send_response(206 if header else 200)
        if header:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{sha256(path)}"')
        self.end_headers()
        if has_body:
            self.send_bytes(name, data[start:end])

    def send_bytes(self, name, data):
        hub, limit = self.hub, self.hub.take("breaks", name)
        for at in range(0, len(data), 2**16):
            block = data[at : at + 2**16]
            if limit is not None and at + len(block) > limit:
                self.wfile.write(block[: limit - at])
                self.count(name, limit - at)
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            threading.Event().wait(hub.delay)
            self.wfile.write(block)
            self.count(name, len(block))

    def count(self, name, size):
        with self.hub.lock:
            self.hub.served[name] = self.hub.served.get(name, 0) + size


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(path, name):
    """Describe a file as Hugging Face lists it: weights as LFS objects, other files as git objects."""
    data = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": git}
    lfs = {"oid": sha256(path), "size": len(data), "pointerSize": 134}
    return entry | ({"lfs": lfs} if path.suffix in (".safetensors", ".bin", ".parquet") else {})
