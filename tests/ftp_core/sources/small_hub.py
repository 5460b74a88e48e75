"""A small server that answers the Hugging Face client as the Hub does, for data sets of a few rows and for models."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
README = """---
configs:
- config_name: one
  data_files:
  - {split: train, path: one/train.jsonl}
  - {split: test, path: one/test.jsonl}
- config_name: two
  data_files:
  - {split: test, path: two/test.jsonl}
---
"""


# A description, a folder's files, or a file of a model.
_MODEL = re.compile(
    r"(?:/api/models)?/(?P<model>[^/]+/[^/]+)(?:/(?P<what>revision|tree|resolve)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?"
)


def lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt, "completion": " b"}) + "\n" for prompt in prompts).encode()


FILES = {
    "README.md": README.encode(),
    "one/train.jsonl": lines("a", "b"),
    "one/test.jsonl": lines("c"),
    "two/test.jsonl": lines("d"),
}


def name_of(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


# Files by their names, of each commit; the first is the main branch.
Model = Mapping[str, Mapping[str, bytes]]


class _Server(ThreadingHTTPServer):
    models: Mapping[str, Model]


def tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "oid": name_of(content), "size": len(content), "path": name} for name, content in files.items()
    ]


class _Hub(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/datasets/org/gated"):
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif path.startswith("/api/datasets/org/set/tree/"):
            folder = "/".join(path.split("/")[7:])
            files = {name: content for name, content in FILES.items() if name.startswith(folder)}
            self._answer(200, json.dumps(tree(files)).encode())
        elif path.startswith("/api/datasets/org/set"):
            files = [{"rfilename": name} for name in FILES]
            about = {"id": "org/set", "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": files}
            self._answer(200, json.dumps(about | {"disabled": False, "downloads": 0, "likes": 0}).encode())
        elif path.startswith("/datasets/org/set/resolve/"):
            content = FILES.get("/".join(path.split("/")[6:]))
            if content is None:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self._answer(200, content, {"ETag": f'"{name_of(content)}"', "X-Repo-Commit": COMMIT})
        elif (found := _MODEL.fullmatch(path)) and (model := self.server.models.get(found["model"])) is not None:
            self._answer_of_model(model, found)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer_of_model(self, model: Model, asked: re.Match[str]) -> None:
        revision, file = asked["revision"] or "main", asked["file"]
        commit = next(iter(model)) if revision == "main" else revision
        if commit not in model:
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif file is None and asked["what"] == "tree":
            self._answer(200, json.dumps(tree(model[commit])).encode())
        elif file is None:
            files = [{"rfilename": one} for one in model[commit]]
            about = {
                "id": asked["model"],
                "sha": commit,
                "private": False,
                "gated": False,
                "tags": [],
                "siblings": files,
            }
            about["config"] = json.loads(model[commit]["config.json"])
            self._answer(200, json.dumps(about | {"disabled": False, "downloads": 0, "likes": 0}).encode())
        elif asked["what"] == "resolve" and file in model[commit]:
            content = model[commit][file]
            self._answer(200, content, {"ETag": f'"{name_of(content)}"', "X-Repo-Commit": commit})
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def small_hub(models: Mapping[str, Model] | None = None) -> Iterator[str]:
    """The address of a hub that answers as long as the context lasts."""
    server = _Server(("127.0.0.1", 0), _Hub)
    server.models = models or {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
