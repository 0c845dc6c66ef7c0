"""A stand-in for Hugging Face on loopback that takes uploads; `HubServer` serves what it has taken."""

import base64
import json
from urllib.parse import unquote, urlsplit

from hub_server import Handler, HubServer


class UploadServer(HubServer):
    """Keep repositories as folders below `folder`.

    Attributes:
        token: token that requests need.
        private: whether each repository is private.
        commit_messages: message of each commit, by repository.
        sent: names of the objects and files that were sent, in order.
    """

    def __init__(self, folder, token):
        super().__init__({})
        self.folder, self.token = folder, token
        self.private, self.commit_messages, self.sent = {}, {}, []

    def __enter__(self):
        super().__enter__()
        self.server.RequestHandlerClass = type("Uploads", (Uploads,), {"hub": self})
        return self

    def environment(self):
        """Return the variables of `HubServer`; uploads by the Xet protocol need another server."""
        return super().environment() | {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": self.token}

    def create(self, name, private):
        """Make an empty repository."""
        self.private[name], self.commit_messages[name] = private, []
        self.models[name] = self.folder / name
        self.models[name].mkdir(parents=True)


class Uploads(Handler):
    """Answer the requests of `HfApi.create_repo` and `upload_folder`."""

    def answer_hugging_face(self, *arguments):
        *_, parts = arguments
        name = "/".join(parts[:2])
        if len(parts) == 2 and name in self.hub.models:
            known = {"id": name, "sha": "0" * 40, "private": self.hub.private[name], "siblings": []}
            self.send(200, known)
        else:
            super().answer_hugging_face(*arguments)

    def do_POST(self):  # noqa: N802
        hub, parts = self.hub, unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name = "/".join(parts[2:4])
        if hub.token not in (self.headers.get("Authorization") or "") and parts[0] != "verify":
            self.send(403, {"error": "Forbidden: you don't have the rights"})
        elif parts == ["api", "repos", "create"]:
            options = json.loads(body)
            name = f"{options['organization']}/{options['name']}"
            hub.create(name, options.get("private") or options.get("visibility") == "private")
            self.send(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif parts == ["api", "validate-yaml"]:
            self.send(200, {"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            modes = [self.choose_mode(one["path"]) for one in json.loads(body)["files"]]
            self.send(200, {"files": modes})
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [self.plan_upload(one) for one in json.loads(body)["objects"]]
            self.send(200, {"transfer": "basic", "objects": objects})
        elif parts[4:5] == ["commit"]:
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.send(200, {})

    def choose_mode(self, path):
        mode = "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def plan_upload(self, one):
        has = (self.hub.folder / "objects" / one["oid"]).exists()
        place = {"href": f"{self.hub.url}/objects/{one['oid']}"}
        return one | ({} if has else {"actions": {"upload": place}})

    def do_PUT(self):  # noqa: N802
        path = self.hub.folder / self.path.strip("/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.hub.sent.append(path.name)
        self.send(200, {})

    def commit(self, name, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commit_messages[name].append(value["summary"])
            elif line["key"] == "file":
                self.hub.sent.append(value["path"])
                (self.hub.models[name] / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                data = (self.hub.folder / "objects" / value["oid"]).read_bytes()
                (self.hub.models[name] / value["path"]).write_bytes(data)
        oid = f"{len(self.hub.commit_messages[name]):040x}"
        self.send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})
