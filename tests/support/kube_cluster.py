"""A stub of a Kubernetes cluster that speaks the API server's protocol, on the loopback address.

It stores objects, checks them against the API's schemas and who asks against the Role that is
shipped, and really runs what pods are to run. It is no Kubernetes: no scheduler, no names, no
volumes, no limits of resources.
"""

import json
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml
from kube_jobs import JobController, TrainJobController
from kube_node import Node
from kube_objects import Object, Store, delete, set_condition

from alignflow.jobs.kubernetes.config import KubernetesConfig, Volume

VERSION = "1.34"
NAMESPACE = "training"
RBAC = Path(__file__).parents[2] / "deployments/kubernetes/rbac.yaml"

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<kind>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>log))?)?"
)
_VERBS = {"POST": "create", "DELETE": "delete", "GET": "get"}
_KINDS = {
    ("batch", "jobs"),
    ("", "pods"),
    ("", "services"),
    ("trainer.kubeflow.org", "trainjobs"),
}
_SYNC_S = 0.03

Right = tuple[str, str, str]
"""Group, kind, verb."""


class KubeCluster:
    """The cluster, and what may happen to it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="alignflow-kube-", dir="/tmp"))
        self.kubeconfig = self.root / "kubeconfig"
        self.token = secrets.token_hex(16)
        self.store = Store()
        self.secrets: dict[str, dict[str, str]] = {}
        self.rights = _rights()
        self.used: set[Right] = set()
        self.is_away = False
        self.node = Node(self.store, self.root, self.secrets)
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator["KubeCluster"]:
        """Answer requests and run pods until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        server.daemon_threads = True
        threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}),
            threading.Thread(target=self._control),
        ]
        self._write_kubeconfig(server.server_port)
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            self._stop.set()
            for thread in threads:
                thread.join()
            self.node.kill_everything()
            shutil.rmtree(self.root)

    def pods(self) -> list[Object]:
        """Return the pods that run."""
        with self.store.lock:
            pods = self.store.all("pods")
            return [pod for pod in pods if pod["status"].get("phase") == "Running"]

    def pod(self, index: int = 0) -> Object:
        """Return the running pod of an index."""
        label = "batch.kubernetes.io/job-completion-index"
        return next(pod for pod in self.pods() if pod["metadata"]["labels"][label] == str(index))

    def jobs(self) -> list[Object]:
        """Return the Jobs, those that have ended among them."""
        with self.store.lock:
            return self.store.all("jobs")

    def evict(self, pod: Object, reason: str = "EvictionByEvictionAPI") -> None:
        """Disturb a pod, which may use its grace period."""
        with self.store.lock:
            set_condition(pod, "DisruptionTarget", reason, "Eviction API: evicting")
            delete(pod)

    def lose(self, pod: Object) -> None:
        """Have the node of a pod vanish."""
        with self.store.lock:
            self.node.lose(pod)

    def pass_memory(self, pod: Object) -> None:
        """Have the kernel kill a pod that passed its limit of memory."""
        with self.store.lock:
            self.node.pass_memory(pod)

    def delete_job(self, name: str) -> None:
        """Delete a Job as somebody else would."""
        with self.store.lock:
            job = self.store.get("jobs", NAMESPACE, name)
            assert job is not None
            delete(job)

    def _control(self) -> None:
        jobs, train_jobs = JobController(self.store), TrainJobController(self.store)
        while not self._stop.wait(_SYNC_S):
            with self.store.lock:
                for train_job in self.store.all("trainjobs"):
                    train_jobs.sync(train_job)
                for pod in self.store.all("pods"):
                    self.node.sync(pod)
                for job in self.store.all("jobs"):
                    jobs.sync(job)

    def _write_kubeconfig(self, port: int) -> None:
        named = {
            "clusters": ("cluster", {"server": f"http://127.0.0.1:{port}"}),
            "users": ("user", {"token": self.token}),
            "contexts": ("context", {"cluster": "stub", "user": "stub"}),
        }
        config: Object = {
            part: [{"name": "stub", key: value}] for part, (key, value) in named.items()
        }
        config |= {"apiVersion": "v1", "kind": "Config", "current-context": "stub"}
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(yaml.safe_dump(config))


def config_for(workspace: Path, **changes: Any) -> KubernetesConfig:
    """Return how jobs are submitted whose run folders lie in a workspace."""
    config = KubernetesConfig(
        namespace=NAMESPACE,
        image="registry.example/alignflow:1",
        python=sys.executable,
        volumes=[Volume(claim="workspace", mount_path=str(workspace))],
    )
    return config.replaced(**changes)


def _rights() -> set[Right]:
    """Return what the shipped Role allows."""
    objects = list(yaml.safe_load_all(RBAC.read_text()))
    (role,) = [each for each in objects if each["kind"] == "Role"]
    return {
        (group, kind, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for kind in rule["resources"]
        for verb in rule["verbs"]
    }


class _Refusal(Exception):  # noqa: N818 (an answer)
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        self.code = code


def _handler_of(cluster: KubeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self) -> None:
            if cluster.is_away:
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                with cluster.store.lock:
                    code, answer = _Request(
                        cluster, self.command, self.path, self.headers.get("Authorization", "")
                    ).answer(json.loads(body or b"{}"))
                    text = answer if isinstance(answer, str) else json.dumps(answer)
            except _Refusal as refusal:
                code, text = refusal.code, json.dumps(refusal.status)
            data = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


class _Request:
    def __init__(self, cluster: KubeCluster, method: str, path: str, authorization: str) -> None:
        if authorization != f"Bearer {cluster.token}":
            raise _Refusal(401, "Unauthorized", "Unauthorized")
        parts = urlsplit(path)
        found = _PATH.fullmatch(parts.path)
        if found is None or ((found["group"] or ""), found["kind"]) not in _KINDS:
            raise _Refusal(404, "NotFound", "the server could not find the requested resource")
        self._cluster = cluster
        self._at = found
        self._query = parse_qs(parts.query)
        self._verb = "list" if method == "GET" and found["name"] is None else _VERBS[method]

    def answer(self, body: Object) -> tuple[int, Object | str]:
        """Return the status and the content of the answer."""
        kind, name = self._at["kind"], self._at["name"]
        self._check_right("/".join(filter(None, (kind, self._at["sub"]))))
        if self._at["namespace"] != NAMESPACE and self._verb == "create":
            raise _Refusal(404, "NotFound", f'namespaces "{self._at["namespace"]}" not found')
        if self._verb == "create":
            return 201, self._create(body)
        if self._verb == "list":
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": self._list()}
        found = self._cluster.store.get(kind, self._at["namespace"], name)
        if found is None:
            raise _Refusal(404, "NotFound", f'{kind} "{name}" not found')
        if self._verb == "delete":
            delete(found, body.get("gracePeriodSeconds"))
            return 200, found
        return 200, self._log(found) if self._at["sub"] else found

    def _check_right(self, resource: str) -> None:
        right = (self._at["group"] or "", resource, self._verb)
        self._cluster.used.add(right)
        if right not in self._cluster.rights:
            who = f'User "stub" cannot {self._verb} resource "{resource}"'
            raise _Refusal(403, "Forbidden", f"{resource} is forbidden: {who}")

    def _create(self, made: Object) -> Object:
        kind, namespace, name = self._at["kind"], self._at["namespace"], made["metadata"]["name"]
        if self._cluster.store.get(kind, namespace, name) is not None:
            raise _Refusal(409, "AlreadyExists", f'{kind} "{name}" already exists')
        if kind != "trainjobs":
            try:
                kubernetes_validate.validate(made, VERSION, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise _Refusal(422, "Invalid", f'{kind} "{name}" is invalid: {error}') from None
        return self._cluster.store.add(kind, made)

    def _list(self) -> list[Object]:
        wanted = dict(
            each.split("=", 1)
            for each in self._query.get("labelSelector", [""])[0].split(",")
            if each
        )
        return [
            each
            for each in self._cluster.store.all(self._at["kind"], self._at["namespace"])
            if wanted.items() <= each["metadata"].get("labels", {}).items()
        ]

    def _log(self, pod: Object) -> str:
        log = self._cluster.node.log(pod)
        if log is None:
            name = pod["metadata"]["name"]
            message = f'container "main" in pod "{name}" is waiting to start: ContainerCreating'
            raise _Refusal(400, "BadRequest", message)
        lines = log.read_text().splitlines(keepends=True)
        return "".join(lines[-int(self._query.get("tailLines", ["0"])[0]) :])
