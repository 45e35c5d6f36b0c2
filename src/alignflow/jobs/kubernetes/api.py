"""The API server's answers, by Kubernetes' own client: its ways of signing in are many."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignflow.errors import AlignflowError, ConfigError
from alignflow.jobs.kubernetes.config import Template
from alignflow.jobs.kubernetes.names import JOB_LABEL

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Manifest = dict[str, Any]

_TIMEOUT_S = 20.0
_PATHS: dict[Template, str] = {
    "job": "/apis/batch/v1/namespaces/{}/jobs",
    "train_job": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
}
_SERVICES = "/api/v1/namespaces/{}/services"
_PODS = "/api/v1/namespaces/{}/pods"
_LOG_LINES = 20


class ApiAwayError(AlignflowError, RuntimeError):
    """The API server doesn't answer, which says nothing about its jobs."""


class _ConflictError(AlignflowError, RuntimeError):
    """There is an object of that name."""


class _NotFoundError(AlignflowError, RuntimeError):
    """There is no such object."""


@dataclass(frozen=True)
class Api:
    """The objects of one namespace. Every method raises ApiAwayError if there is no answer."""

    context: str | None
    namespace: str

    def create_job(self, template: Template, manifest: Manifest) -> Manifest | None:
        """Return the object as it was made, None where there is one of that name.

        Raises:
            ConfigError: The server refuses it.
        """
        try:
            return self._ask("POST", _PATHS[template], body=manifest)
        except _ConflictError:
            return None
        except _NotFoundError as error:
            raise ConfigError(
                f"Kubernetes knows no {manifest['kind']}s in namespace {self.namespace}: {error}; "
                "see cluster.kubernetes."
            ) from None

    def job(self, template: Template, name: str) -> Manifest | None:
        """Return the object of that name, None where there is none."""
        try:
            return self._ask("GET", f"{_PATHS[template]}/{name}")
        except _NotFoundError:
            return None

    def delete_job(self, template: Template, name: str) -> None:
        """Delete an object and all that it owns; it stays until its pods are gone."""
        options = {"propagationPolicy": "Foreground"}
        try:
            self._ask("DELETE", f"{_PATHS[template]}/{name}", body=options)
        except _NotFoundError:
            return

    def create_service(self, manifest: Manifest) -> None:
        """Make a Service where there is none of that name."""
        try:
            self._ask("POST", _SERVICES, body=manifest)
        except _ConflictError:
            return

    def pods(self, name: str) -> list[Manifest]:
        """Return the pods of a job, those that have failed among them."""
        answer = self._ask("GET", _PODS, query={"labelSelector": f"{JOB_LABEL}={name}"})
        items: list[Manifest] = answer["items"]
        return items

    def kill_pod(self, pod: str) -> None:
        """Have a pod killed by its node, without further delay."""
        try:
            # Not 0, which forgets the pod and leaves its processes to themselves.
            self._ask("DELETE", f"{_PODS}/{pod}", body={"gracePeriodSeconds": 1})
        except _NotFoundError:
            return

    def log_tail(self, pod: str) -> str:
        """Return the last lines that a pod has printed; empty where it has no log."""
        try:
            query = {"tailLines": str(_LOG_LINES)}
            return self._ask_text("GET", f"{_PODS}/{pod}/log", query=query)
        except (_NotFoundError, ConfigError):  # 400: the container waits to start
            return ""

    def _ask(self, method: str, path: str, **request: Any) -> Manifest:
        answer: Manifest = json.loads(self._ask_text(method, path, **request))
        return answer

    def _ask_text(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
    ) -> str:
        from urllib3.exceptions import HTTPError

        refused = _library().client.ApiException
        try:
            response = _client(self.context, os.environ.get("KUBECONFIG")).call_api(
                path.format(self.namespace),
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=_TIMEOUT_S,
            )
            text: str = response.data.decode()
        except refused as error:
            raise _error_of(error.status, error.body, error.reason) from None
        except HTTPError as error:
            raise ApiAwayError(f"{type(error).__name__}: {error}") from None
        return text


def _error_of(status: int, body: str | None, reason: str | None) -> Exception:
    try:
        said = json.loads(body or "")["message"]
    except (ValueError, KeyError, TypeError):
        said = reason or ""
    if status == 404:
        return _NotFoundError(said)
    if status == 409:
        return _ConflictError(said)
    if status == 401:
        return ConfigError(f"Kubernetes doesn't know who asks ({said}); sign in to the cluster.")
    if status == 403:
        return ConfigError(
            f"Kubernetes refuses: {said}; the rights that are needed are in "
            "deployments/kubernetes/rbac.yaml."
        )
    if status == 429 or status >= 500:
        return ApiAwayError(f"HTTP {status}: {said}")
    return ConfigError(f"Kubernetes refuses the job: {said}; see cluster.kubernetes.")


def current_context(named: str | None) -> str | None:
    """Return the context that is named, else the kubeconfig's current one; None inside of a pod.

    To be kept with a job: somebody may switch to another cluster while it runs.

    Raises:
        ConfigError: There is no such context, or no kubeconfig.
    """
    kubeconfig = os.environ.get("KUBECONFIG")
    if _is_in_cluster(named, kubeconfig):
        return None
    with _no_way():
        contexts, current = _library().config.list_kube_config_contexts(kubeconfig)
    if named is None:
        return str(current["name"])
    known = [str(each["name"]) for each in contexts]
    if named not in known:
        raise ConfigError(
            f"cluster.kubernetes.context: the kubeconfig has no {named}, but {', '.join(known)}."
        )
    return named


@lru_cache(maxsize=8)
def _client(context: str | None, kubeconfig: str | None) -> "ApiClient":
    """Return a client, signed in as the kubeconfig or the pod of this process says."""
    library = _library()
    configuration = library.client.Configuration()
    with _no_way():
        if _is_in_cluster(context, kubeconfig):
            library.config.load_incluster_config(client_configuration=configuration)
        else:
            library.config.load_kube_config(kubeconfig, context, client_configuration=configuration)
    configuration.retries = False  # a wait asks again by itself, and a person wants to know
    return library.client.ApiClient(configuration)


def _is_in_cluster(context: str | None, kubeconfig: str | None) -> bool:
    return context is None and kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ


@contextmanager
def _no_way() -> Iterator[None]:
    config = _library().config
    try:
        yield
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"There is no way to the cluster ({error}); set KUBECONFIG, or "
            "cluster.kubernetes.context to one of its contexts."
        ) from None


def _library() -> Any:
    """Return the client's package; importing it takes seconds."""
    try:
        import kubernetes.client
        import kubernetes.config
    except ImportError:
        raise ConfigError(
            "Kubernetes' client isn't installed; run pip install 'alignflow[kubernetes]'."
        ) from None
    return kubernetes
