"""A hub on the loopback address: those endpoints that its library asks when it reads and writes."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_good"


class Repository:
    """Commits of a repository, by id, and branches and tags that point to them."""

    def __init__(self, files=None, *, private=False, gated=False):
        self.private, self.gated = private, gated
        self.commits, self.refs = {}, {}
        self.commit("main", files or {})

    def commit(self, branch, files):
        before = self.commits.get(self.refs.get(branch), {})
        commit = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = before | files
        self.refs[branch] = commit
        return commit


class Hub(http.server.ThreadingHTTPServer):
    """What it holds, what it was asked, and which faults it is to have."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.received = {}, {}
        self.requests = []
        # Bytes after which connections end, one after the other; files that are sent damaged.
        self.cuts, self.damaged = [], set()
        # What the metadata of a model card is refused for.
        self.yaml_errors = []


@contextlib.contextmanager
def running():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def stop(hub):
    hub.shutdown()
    hub.server_close()


def _is_large(path):
    return not path.endswith((".json", ".md", ".yml"))


def _file_info(path, content):
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    info = {"type": "file", "path": path, "size": len(content), "oid": git}
    if _is_large(path):
        sha = hashlib.sha256(content).hexdigest()
        info["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
    return info


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _json(self, value, status=200, headers=()):
        self._send(json.dumps(value).encode(), status, dict(headers))

    def _send(self, content, status=200, headers=None, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status, code="", said=""):
        self._json({"error": said}, status, {"X-Error-Code": code, "X-Error-Message": said})

    def _path(self):
        path = urllib.parse.urlsplit(self.path).path
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        return path

    def _user(self):
        """Whether the token is one that exists; None without a token."""
        sent = self.headers.get("Authorization")
        return None if sent is None else sent == f"Bearer {TOKEN}"

    def _repo(self, name):
        repo, user = self.server.repos.get(name), self._user()
        if user is False:
            self._refuse(401, said="Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not user):
            self._refuse(404 if user else 401, "RepoNotFound", "Repository not found")
        else:
            return repo
        return None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._path()
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None:
            return self._refuse(404)
        if (repo := self._repo(found[1])) is None:
            return None
        revision = urllib.parse.unquote((api[3] if api else file[2]) or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        files = repo.commits[commit]
        if file:
            return self._file(repo, commit, files, urllib.parse.unquote(file[3]))
        if api[2] == "tree":
            return self._json([_file_info(*item) for item in files.items()])
        siblings = [{"rfilename": name} for name in files]
        about = {"id": found[1], "sha": commit, "private": repo.private, "siblings": siblings}
        return self._json(about)

    def _file(self, repo, commit, files, name):
        if repo.gated:
            return self._refuse(403 if self._user() else 401, "GatedRepo", "Access is restricted")
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content, info = files[name], _file_info(name, files[name])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{info.get("lfs", info)["oid"]}"'}
        if name in self.server.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, status = 0, 200
        if asked := self.headers.get("Range"):
            start, status = int(re.match(r"bytes=(\d+)-", asked)[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = content[start:]
        if self.command == "GET" and _is_large(name) and self.server.cuts:
            return self._send(sent[: self.server.cuts.pop(0)], status, headers, len(sent))
        return self._send(sent, status, headers)

    def do_PUT(self):
        oid = self._path().rpartition("/")[2]
        self.server.received[oid] = self._body()
        self._json({})

    def do_POST(self):
        path, body = self._path(), self._body()
        if path == "/api/validate-yaml":
            errors = [{"message": text} for text in self.server.yaml_errors]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if not self._user():
            return self._refuse(401, said="Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._large_files(json.loads(body)["objects"])
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|branch|commit)/([^/]+)", path)
        repo, branch = self.server.repos[found[1]], urllib.parse.unquote(found[3])
        if found[2] == "branch":
            repo.refs.setdefault(branch, repo.refs["main"])
            return self._json({}, 201)
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if _is_large(n) else "regular"} for n in names]
            return self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        commit = repo.commit(branch, self._committed(body))
        return self._json({"commitOid": commit, "commitUrl": f"{self.server.url}/{found[1]}"})

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repos:
            return self._json(url, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repos[name] = Repository(private=bool(private))
        return self._json(url)

    def _large_files(self, objects):
        described = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}}}
            for item in objects
        ]
        self._json({"transfer": "basic", "objects": described})

    def _committed(self, body):
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.received[value["oid"]]
        return files
