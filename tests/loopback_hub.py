"""A Hub on this machine: as much of its HTTP interface as `huggingface_hub` uses to upload and download models.

Uploading data sets works as well. Files of any size go over LFS if their name says weights or rows, and into the
commit otherwise, as on the real one. It keeps everything in memory, and refuses whatever it does not know, so that a
test never passes by a request that got lost.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
LARGE = (".safetensors", ".parquet")


class LoopbackHub(ThreadingHTTPServer):
    """`repositories`: name -> path -> content, as of the last commit; `stored`: the LFS objects by sha256."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.over_lfs: set[str] = set()
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that make `huggingface_hub` in another process use this Hub; xet storage has no stand-in here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def lay_out(self, repo_id: str, folder: Path) -> None:
        """Write a repository's files into a folder, as a clone of it would."""
        for name, content in self.repositories[repo_id].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def commit_hash(self, repo_id: str) -> str:
        files = sorted((name, sha256(content)) for name, content in self.repositories[repo_id].items())
        return sha256(json.dumps(files).encode())[:40]


@contextlib.contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *args) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        path, body = self.start()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "who are you?")
        match path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets").strip("/").split("/"):
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.validate_card(json.loads(body)["content"])
            case ["api", "models", owner, name, "preupload", "main"] if f"{owner}/{name}" in self.server.repositories:
                self.choose_upload_modes(json.loads(body)["files"])
            case [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self.tell_where_to_put(json.loads(body)["objects"])
            case ["lfs", oid, "verify"]:
                self.answer({}) if len(self.server.stored[oid]) == json.loads(body)["size"] else self.refuse(422, oid)
            case ["api", "models", owner, name, "commit", "main"]:
                self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.refuse(404, path)

    def do_PUT(self) -> None:
        path, body = self.start()
        oid = path.removeprefix("/lfs/")
        if sha256(body) != oid:
            return self.refuse(422, f"{oid} is not the hash of what came")
        self.server.stored[oid] = body
        self.answer({})

    def do_GET(self) -> None:
        path, _ = self.start()
        match path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets").strip("/").split("/"):
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.server.repositories:
                self.describe(f"{owner}/{name}", rest)
            case [owner, name, "resolve", _, *file] if f"{owner}/{name}" in self.server.repositories:
                self.send(f"{owner}/{name}", "/".join(file))
            case _:
                self.refuse(404, path, "RepoNotFound")

    do_HEAD = do_GET

    def start(self) -> tuple[str, bytes]:
        self.query = parse_qs(urlsplit(self.path).query)
        self.server.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return unquote(urlsplit(self.path).path), body

    def create(self, wanted: dict) -> None:
        repo_id = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        exists = repo_id in self.server.repositories
        # Data sets start with a file there, and what lists their folders relies on it.
        first = {".gitattributes": b""} if wanted.get("type") == "dataset" else {}
        self.server.repositories.setdefault(repo_id, first)
        self.answer({"url": f"{self.server.url}/{repo_id}"}, status=409 if exists else 200)

    def validate_card(self, content: str) -> None:
        metadata = yaml.safe_load(content.split("---\n")[1])
        known = isinstance(metadata.get("tags"), list) and "library_name" in metadata or "dataset_info" in metadata
        self.answer({}) if known else self.answer({"errors": [{"message": "bad metadata"}]}, status=400)

    def choose_upload_modes(self, files: list[dict]) -> None:
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        self.answer({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def tell_where_to_put(self, wanted: list[dict]) -> None:
        objects = []
        for item in wanted:
            place = f"{self.server.url}/lfs/{item['oid']}"
            objects.append({**item, "actions": {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}})
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, lines: list[dict]) -> None:
        files = self.server.repositories[repo_id]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
                self.server.over_lfs.add(value["path"])
            elif line["key"] != "header":
                return self.refuse(400, line["key"])
        commit = self.server.commit_hash(repo_id)
        self.answer({"commitUrl": f"{self.server.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def describe(self, repo_id: str, rest: list[str]) -> None:
        files = self.server.repositories[repo_id]
        if rest[:1] == ["tree"]:
            self.list_folder(files, "/".join(rest[2:]), self.query.get("recursive") != ["false"])
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": repo_id, "sha": self.server.commit_hash(repo_id), "siblings": siblings})

    def list_folder(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        inside = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            return self.refuse(404, folder, "EntryNotFound")
        depth = folder.count("/") + 2 if folder else 1
        shown = {p: c for p, c in inside.items() if recursive or p.count("/") < depth}
        entries = [{"type": "file", "path": p, "size": len(c), "oid": sha256(c)[:40]} for p, c in shown.items()]
        folders = {"/".join(p.split("/")[:depth]) for p in inside if p not in shown}
        self.answer(entries + [{"type": "directory", "path": p, "oid": sha256(p.encode())[:40]} for p in folders])

    def send(self, repo_id: str, name: str) -> None:
        content = self.server.repositories[repo_id].get(name)
        if content is None:
            return self.refuse(404, name, "EntryNotFound")
        headers = {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": self.server.commit_hash(repo_id)}
        self.answer(content, headers=headers)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def answer(self, content, status: int = 200, headers: dict | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
