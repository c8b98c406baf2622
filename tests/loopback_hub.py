"""A loopback stand-in for the Hugging Face Hub, for tests only. It is not the Hub.

It serves, on 127.0.0.1, the endpoints that huggingface_hub and datasets use for dataset
repositories and Spaces (whose ids begin with `spaces/` here), and the files of model repositories
(under the ids of data sets). It keeps what it gets:
commits with parents and trees, LFS objects, tags, pull requests. The real clients run against it
unchanged (`HF_ENDPOINT=hub.url`, `HF_HUB_DISABLE_XET=1`). Known differences: no Xet, no multipart
upload, no pagination, no web pages; tokens are the ones a test declares.

Failures are injected with `hub.fail(Fault(...))`; `hub.log` holds every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong, and when: the request must match `method`, `pattern` and `nth`.

    Args:
        status: answer with this status instead of the real answer; None: no such answer.
        times: how many requests fail; a large number means a server that stays broken.
        pattern: regular expression searched in the path.
        nth: fail only from this request on (1 = the first since the log was cleared).
        headers: headers of the failing answer, e.g. Retry-After.
        drop: cut the connection; after=True does so once the work is done (a lost answer).
        slow: seconds to wait between two parts of an answer's body.
        action: called with the hub before the request is served (a rival's push, say).
    """

    status: int | None = None
    times: int = 1
    method: str = ""
    pattern: str = ""
    nth: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    after: bool = False
    slow: float = 0.0
    action: Callable[[Hub], None] | None = None

    def matches(self, request: Request) -> bool:
        return (
            self.times > 0
            and request.index >= self.nth
            and self.method in ("", request.method)
            and re.search(self.pattern, request.path) is not None
        )


@dataclass(frozen=True)
class Request:
    """One line of the log. `size` is the length of the request's body, `range` its Range header."""

    index: int
    method: str
    path: str
    token: str | None
    size: int
    range: str | None = None


@dataclass(frozen=True)
class Blob:
    """One file of a tree: git object id, content, and whether it is stored with LFS."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        body = self.data
        if self.lfs:
            body = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {len(self.data)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    tree: dict[str, Blob]
    title: str
    message: str = ""
    author: str = "someone"


@dataclass
class Repo:
    private: bool
    gated: bool = False
    sdk: str | None = None  # of a Space
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    prs: dict[int, dict[str, Any]] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    def add(self, ref: str, tree: dict[str, Blob], title: str, message: str, author: str) -> Commit:
        """Append a commit to a branch; refuses nothing."""
        parent = self.branches.get(ref)
        seed = json.dumps([parent, title, message, {p: b.oid for p, b in sorted(tree.items())}])
        oid = hashlib.sha1(f"{len(self.commits)}{seed}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, tree, title, message, author)
        self.branches[ref] = oid
        return self.commits[oid]

    def resolve(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, revision: str) -> Iterator[Commit]:
        commit = self.resolve(revision)
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent or "")


class Refused(Exception):
    """An answer other than 200, with the Hub's error headers."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """State of the stand-in: repositories, tokens, faults, log."""

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        with self.lock:
            self.repos: dict[str, Repo] = {}
            self.tokens = {
                "hf_writer": {"name": "alice", "orgs": ["lens"], "role": "write"},
                "hf_reader": {"name": "alice", "orgs": ["lens"], "role": "read"},
                "hf_stranger": {"name": "mallory", "orgs": [], "role": "write"},
            }
            self.faults: list[Fault] = []
            self.log: list[Request] = []
            self.stored: list[str] = []  # digest of every LFS object received, each time

    def fail(self, *faults: Fault) -> None:
        self.faults.extend(faults)

    def clear_log(self) -> None:
        with self.lock:
            self.log.clear()

    def sent(self, method: str, pattern: str = "") -> list[Request]:
        """The logged requests of a method whose path matches."""
        return [r for r in self.log if r.method == method and re.search(pattern, r.path)]

    def push(
        self,
        repo_id: str,
        path: str,
        data: bytes,
        title: str = "Edit by hand",
        *,
        branch: str = "main",
    ) -> str:
        """A commit by somebody else, past all our clients; makes the repository if need be."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(private=False))
            head = repo.resolve(branch)
            blob = Blob(data, path.endswith((".parquet", ".safetensors")))
            repo.lfs |= {blob.sha256: data} if blob.lfs else {}
            tree = {**(head.tree if head else {}), path: blob}
            return repo.add(branch, tree, title, "", "bob").oid

    def page(self, repo: str) -> str:
        """The address of a repository's page."""
        return f"{self.url}/{repo if repo.startswith('spaces/') else f'datasets/{repo}'}"

    # -- routes -------------------------------------------------------------------------

    def serve(self, request: Request, body: bytes, headers: Any) -> Answer:
        url = urlsplit(request.path)
        query = parse_qs(url.query)
        for method, pattern, handler in ROUTES:
            if match := re.fullmatch(pattern, url.path):
                if request.method != method and not (method == "GET" and request.method == "HEAD"):
                    continue
                parts = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                with self.lock:
                    return handler(self, request, body, query, headers, **parts)
        raise Refused(404, "", f"no such endpoint: {request.path}")

    def _user(self, request: Request) -> dict[str, Any]:
        user = self.tokens.get(request.token or "")
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        return user

    def _repo(self, request: Request, repo: str, write: bool = False) -> Repo:
        found = self.repos.get(repo)
        user = self.tokens.get(request.token or "")
        owner = repo.removeprefix("spaces/").split("/")[0]
        member = user is not None and owner in (user["name"], *user["orgs"])
        if found is None or (found.private and not member):
            raise Refused(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if found.gated and not member:
            said = (
                f"Access to model {repo} is restricted. Visit {self.url}/{repo} to ask for access."
            )
            raise Refused(401 if user is None else 403, "GatedRepo", said)
        if write and not (member and user is not None and user["role"] == "write"):
            raise Refused(
                403 if user else 401, "", "You don't have the rights to write to this repository"
            )
        return found

    def _commit(self, repo: Repo, rev: str) -> Commit:
        commit = repo.resolve(rev)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return commit

    def whoami(self, request: Request, *_: Any) -> Answer:
        user = self._user(request)
        return _json(
            {
                "type": "user",
                "name": user["name"],
                "orgs": [{"name": o} for o in user["orgs"]],
                "auth": {"type": "access_token", "accessToken": {"role": user["role"]}},
            }
        )

    def create_repo(self, request: Request, body: bytes, *_: Any) -> Answer:
        user, asked = self._user(request), json.loads(body)
        owner = asked.get("organization") or user["name"]
        if owner not in (user["name"], *user["orgs"]) or user["role"] != "write":
            raise Refused(403, "", f"You don't have the rights to create a dataset under {owner}")
        name = f"{owner}/{asked['name']}"
        space = asked.get("type") == "space"
        repo_id = f"spaces/{name}" if space else name
        if repo_id in self.repos:
            there = {"error": "You already created this repo", "url": self.page(repo_id)}
            return Answer(json.dumps(there).encode(), 409)
        repo = self.repos[repo_id] = Repo(
            asked.get("private") is True or asked.get("visibility") == "private",
            sdk=asked["sdk"] if space else None,
        )
        files = {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}
        if repo.sdk == "static":  # the example that the Hub begins a static Space with
            files |= {"README.md": b"---\nsdk: static\n---\n", "index.html": b"", "style.css": b""}
        first = {path: Blob(data, False) for path, data in files.items()}
        repo.add("main", first, "initial commit", "", user["name"])
        return _json(
            {"url": f"{self.url}/{'spaces' if space else 'datasets'}/{name}", "name": name}
        )

    def validate_yaml(self, request: Request, body: bytes, *_: Any) -> Answer:
        good = json.loads(body)["content"].startswith("---\n")
        return _json({"errors": [] if good else [{"message": "no metadata"}], "warnings": []})

    def info(self, request: Request, *_: Any, repo: str, rev: str = "main") -> Answer:
        found = self._repo(request, repo)
        commit = self._commit(found, rev)
        return _json(
            {
                "_id": "0" * 24,
                "id": repo.removeprefix("spaces/"),
                "author": repo.removeprefix("spaces/").split("/")[0],
                "sha": commit.oid,
                "private": found.private,
                "gated": "auto" if found.gated else False,
                "sdk": found.sdk,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": p} for p in sorted(commit.tree)],
            }
        )

    def refs(
        self, request: Request, _: bytes, query: dict[str, list[str]], *__: Any, repo: str
    ) -> Answer:
        found = self._repo(request, repo)
        one = lambda n, ref, oid: {"name": n, "ref": ref, "targetCommit": oid}  # noqa: E731
        plain = {n: o for n, o in found.branches.items() if not n.startswith("refs/pr/")}
        return _json(
            {
                "branches": [one(n, f"refs/heads/{n}", o) for n, o in plain.items()],
                "converts": [],
                "tags": [one(n, f"refs/tags/{n}", o) for n, o in found.tags.items()],
                "pullRequests": [one(n, n, o) for n, o in found.branches.items() if n not in plain],
            }
        )

    def commits(self, request: Request, *_: Any, repo: str, rev: str) -> Answer:
        found = self._repo(request, repo)
        self._commit(found, rev)
        return _json(
            [
                {
                    "id": c.oid,
                    "title": c.title,
                    "message": c.message,
                    "authors": [{"user": c.author}],
                    "date": "2026-01-01T00:00:00.000Z",
                }
                for c in found.history(rev)
            ]
        )

    def tree(
        self,
        request: Request,
        _: bytes,
        query: dict[str, list[str]],
        *__: Any,
        repo: str,
        rev: str,
        path: str = "",
    ) -> Answer:
        files = self._commit(self._repo(request, repo), rev).tree
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            depth = len(parts) if recursive else min(2, len(parts))
            for i in range(1, depth):
                folder = prefix + "/".join(parts[:i])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                entries[name] = blob.describe(name)
        if path and not entries:
            raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}")
        return _json(list(entries.values()))

    def paths_info(self, request: Request, body: bytes, *_: Any, repo: str, rev: str) -> Answer:
        files = self._commit(self._repo(request, repo), rev).tree
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        found: list[dict[str, Any]] = []
        for path in [paths] if isinstance(paths, str) else paths:
            if path in files:
                found.append(files[path].describe(path))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return _json(found)

    def preupload(self, request: Request, body: bytes, *_: Any, repo: str, rev: str) -> Answer:
        files = self._commit(self._repo(request, repo, write=True), rev).tree
        answer = []
        for f in json.loads(body)["files"]:
            old = files.get(f["path"])
            mode = "lfs" if f["path"].endswith(".parquet") or f["size"] > 10 << 20 else "regular"
            oid = (old.sha256 if old.lfs else old.oid) if old else None
            answer.append(
                {"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return _json({"files": answer})

    def lfs_batch(self, request: Request, body: bytes, *_: Any, repo: str) -> Answer:
        found = self._repo(request, repo, write=True)
        objects = []
        for o in json.loads(body)["objects"]:
            entry = {"oid": o["oid"], "size": o["size"]}
            if o["oid"] not in found.lfs:
                href = f"{self.url}/lfs/{repo}/{o['oid']}"
                entry["actions"] = {
                    "upload": {"href": f"{href}?X-Amz-Signature=secret"},
                    "verify": {"href": f"{href}/verify"},
                }
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def lfs_put(self, request: Request, body: bytes, *_: Any, repo: str, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "", "content does not match its digest")
        self.repos[repo].lfs[oid] = body
        self.stored.append(oid)
        return Answer()

    def lfs_verify(self, request: Request, body: bytes, *_: Any, repo: str, oid: str) -> Answer:
        if len(self.repos[repo].lfs.get(oid, b"")) != json.loads(body)["size"]:
            raise Refused(404, "", "no such object")
        return _json({})

    def commit(
        self,
        request: Request,
        body: bytes,
        query: dict[str, list[str]],
        *_: Any,
        repo: str,
        rev: str,
    ) -> Answer:
        found, user = self._repo(request, repo, write=True), self._user(request)
        head = self._commit(found, rev)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head.oid):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                tree[path] = Blob(base64.b64decode(line["value"]["content"]), False)
            elif line["key"] == "lfsFile":
                if line["value"]["oid"] not in found.lfs:
                    raise Refused(400, "", f"LFS object of {path} was never uploaded")
                tree[path] = Blob(found.lfs[line["value"]["oid"]], True)
            elif line["key"] == "deletedFile":
                del tree[path]
            elif line["key"] == "deletedFolder":
                tree = {p: b for p, b in tree.items() if not p.startswith(path.rstrip("/") + "/")}
        answer = {}
        if query.get("create_pr") == ["1"]:
            number = len(found.prs) + 1
            rev = f"refs/pr/{number}"
            found.branches[rev] = head.oid
            found.prs[number] = {"title": header["summary"], "status": "open"}
            answer["pullRequestUrl"] = f"{self.page(repo)}/discussions/{number}"
        made = found.add(rev, tree, header["summary"], header["description"], user["name"])
        url = f"{self.page(repo)}/commit/{made.oid}"
        return _json({"success": True, "commitOid": made.oid, "commitUrl": url, **answer})

    def discussions(self, request: Request, *_: Any, repo: str) -> Answer:
        found = self._repo(request, repo)
        listed = [
            {
                "num": number,
                "title": pr["title"],
                "status": pr["status"],
                "isPullRequest": True,
                "author": {"name": "alice"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "repo": {"name": repo, "type": "dataset"},
            }
            for number, pr in found.prs.items()
        ]
        return _json({"discussions": listed, "count": len(listed), "start": 0})

    def merge(self, repo_id: str, number: int) -> None:
        """What the Hub's merge button does, as one squashed commit."""
        with self.lock:
            repo = self.repos[repo_id]
            tree = self._commit(repo, f"refs/pr/{number}").tree
            title = repo.prs[number]["title"]
            repo.add("main", tree, f"{title} (#{number})", "", "alice")
            repo.prs[number]["status"] = "merged"

    def tag(self, request: Request, body: bytes, *_: Any, repo: str, rev: str) -> Answer:
        found = self._repo(request, repo, write=True)
        name = json.loads(body)["tag"]
        if name in found.tags:
            raise Refused(409, "", f"Tag {name} already exists")
        found.tags[name] = self._commit(found, rev).oid
        return _json({})

    def settings(self, request: Request, body: bytes, *_: Any, repo: str) -> Answer:
        asked = json.loads(body)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self._repo(request, repo, write=True).private = private
        return _json({})

    def resolve(
        self, request: Request, _: bytes, __: Any, headers: Any, repo: str, rev: str, path: str
    ) -> Answer:
        found = self._repo(request, repo)
        commit = self._commit(found, rev)
        blob = commit.tree.get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        about = {"ETag": f'"{blob.oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return _part(blob.data, headers, about)
        # Large files live elsewhere on the real Hub: another host name plays that part.
        about |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        about["Location"] = f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{repo}/{blob.sha256}"
        return Answer(b"", 302, about)

    def cdn(self, request: Request, _: bytes, __: Any, headers: Any, repo: str, oid: str) -> Answer:
        return _part(self.repos[repo].lfs[oid], headers, {"ETag": f'"{oid}"'})


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _part(data: bytes, headers: Any, about: dict[str, str]) -> Answer:
    """The whole body, or the range asked for."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
    if not asked:
        return Answer(data, 200, about)
    first, last = asked.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        return Answer(b"", 416, {**about, "Content-Range": f"bytes */{len(data)}"})
    about = {**about, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return Answer(data[start:stop], 206, about)


_ID = r"(?P<repo>(?:spaces/)?[^/]+/[^/]+)"
_REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", "/api/whoami-v2", Hub.whoami),
    ("POST", "/api/repos/create", Hub.create_repo),
    ("POST", "/api/validate-yaml", Hub.validate_yaml),
    ("GET", f"/api/(?:datasets/)?{_ID}", Hub.info),
    ("GET", f"/api/(?:datasets/)?{_ID}/revision/{_REV}", Hub.info),
    ("GET", f"/api/(?:datasets/)?{_ID}/refs", Hub.refs),
    ("GET", f"/api/(?:datasets/)?{_ID}/commits/{_REV}", Hub.commits),
    ("GET", f"/api/(?:datasets/)?{_ID}/discussions", Hub.discussions),
    ("GET", f"/api/(?:datasets/)?{_ID}/tree/{_REV}(?:/(?P<path>.+))?", Hub.tree),
    ("POST", f"/api/(?:datasets/)?{_ID}/paths-info/{_REV}", Hub.paths_info),
    ("POST", f"/api/(?:datasets/)?{_ID}/preupload/{_REV}", Hub.preupload),
    ("POST", f"/api/(?:datasets/)?{_ID}/commit/{_REV}", Hub.commit),
    ("POST", f"/api/(?:datasets/)?{_ID}/tag/{_REV}", Hub.tag),
    ("PUT", f"/api/(?:datasets/)?{_ID}/settings", Hub.settings),
    (
        "POST",
        r"/(?:datasets/)?(?P<repo>(?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        Hub.lfs_batch,
    ),
    ("PUT", f"/lfs/{_ID}/(?P<oid>[0-9a-f]+)", Hub.lfs_put),
    ("POST", f"/lfs/{_ID}/(?P<oid>[0-9a-f]+)/verify", Hub.lfs_verify),
    ("GET", f"(?:/datasets)?/{_ID}/resolve/{_REV}/(?P<path>.+)", Hub.resolve),
    ("GET", f"/cdn/{_ID}/(?P<oid>[0-9a-f]+)", Hub.cdn),
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """The log is `hub.log`."""

    def _body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        hub, body = self.hub, self._body()
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        with hub.lock:
            request = Request(
                len(hub.log) + 1, self.command, self.path, sent, len(body), self.headers["Range"]
            )
            hub.log.append(request)
            fault = next((f for f in hub.faults if f.matches(request)), None)
            if fault:
                fault.times -= 1
        if fault and fault.action:
            fault.action(hub)
        if fault and fault.drop and not fault.after:
            return self._cut()
        if fault and fault.status:
            return self._send(Answer(b"injected failure", fault.status, fault.headers))
        try:
            answer = hub.serve(request, body, self.headers)
        except Refused as e:
            answer = Answer(json.dumps({"error": str(e)}).encode(), e.status, e.headers)
        if fault and fault.drop:
            return self._cut()
        return self._send(answer, slow=fault.slow if fault else 0.0)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, answer: Answer, slow: float = 0.0) -> None:
        try:
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            step = max(1, len(answer.body) // 4) if slow else max(1, len(answer.body))
            for i in range(0, len(answer.body), step):
                time.sleep(slow)
                self.wfile.write(answer.body[i : i + step])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A connection that a client or a fault cut is no news."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that serves on a free port of 127.0.0.1 until the block ends."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
