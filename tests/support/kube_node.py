"""The node of the stub cluster: it really runs the command of a pod, as a process of this machine.

A container is told from other processes by a variable in its environment; when its first process
ends, all others of it do. It sees the files of this machine, so volumes are not mounted.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kube_objects import Object, Store, is_deleted, now, set_condition

from alignflow.jobs.processes import all_processes

LABELS = {"kubernetes.io/os": "linux"}
POD_VARIABLE = "STUB_POD_UID"


@dataclass
class _Container:
    process: subprocess.Popen[bytes]
    log: Path
    kill_at: float | None = None
    has_passed_memory: bool = False
    is_lost: bool = False


class Node:
    """Runs pods; `sync` is called again and again, under the store's lock."""

    def __init__(self, store: Store, folder: Path, secrets: dict[str, dict[str, str]]) -> None:
        self._store = store
        self._folder = folder
        self._secrets = secrets
        self._containers: dict[str, _Container] = {}
        # What an image would bring.
        names = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH")
        self._image = {name: os.environ[name] for name in names if name in os.environ}

    def sync(self, pod: Object) -> None:
        """Take a pod a step further."""
        container = self._containers.get(pod["metadata"]["uid"])
        phase = pod["status"].get("phase", "Pending")
        if phase in ("Succeeded", "Failed"):
            return
        if container is None:
            if is_deleted(pod):
                pod["status"]["phase"] = "Failed"
            elif not self._what_is_missing(pod):
                self._start(pod)
            return
        if container.process.poll() is None:
            self._stop_if_deleted(pod, container)
            return
        self._kill_rest(pod)
        self._record_end(pod, container)

    def log(self, pod: Object) -> Path | None:
        """Return the file that a pod prints into."""
        container = self._containers.get(pod["metadata"]["uid"])
        return container.log if container is not None else None

    def pass_memory(self, pod: Object) -> None:
        """Have the kernel kill a container that passed its limit of memory."""
        self._containers[pod["metadata"]["uid"]].has_passed_memory = True
        self._kill_all(pod)

    def lose(self, pod: Object) -> None:
        """Have a node vanish with a pod on it; nobody will ever know how that ended."""
        self._containers[pod["metadata"]["uid"]].is_lost = True
        set_condition(pod, "DisruptionTarget", "DeletionByTaintManager", "Taint manager: deleting")
        self._kill_all(pod)

    def kill_everything(self) -> None:
        """End all processes of all pods."""
        for pod in self._store.all("pods"):
            if pod["metadata"]["uid"] in self._containers:
                self._kill_all(pod)

    def _what_is_missing(self, pod: Object) -> bool:
        spec = pod["spec"]
        wanted = spec.get("nodeSelector", {})
        if not wanted.items() <= LABELS.items():
            message = (
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            )
            set_condition(pod, "PodScheduled", "Unschedulable", message, "False")
            return True
        set_condition(pod, "PodScheduled", "")
        for variable in spec["containers"][0].get("env", []):
            at = variable.get("valueFrom", {}).get("secretKeyRef")
            if at is not None and at["key"] not in self._secrets.get(at["name"], {}):
                why = {
                    "reason": "CreateContainerConfigError",
                    "message": f'secret "{at["name"]}" not found',
                }
                self._set_state(pod, {"waiting": why})
                return True
        # A name that doesn't resolve yet is waited for by the pod; here names are no names.
        service = spec.get("subdomain")
        namespace = pod["metadata"]["namespace"]
        return service is not None and self._store.get("services", namespace, service) is None

    def _start(self, pod: Object) -> None:
        main = pod["spec"]["containers"][0]
        log = self._folder / f"{pod['metadata']['name']}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*main["command"], *main.get("args", [])],
                env=self._environment(pod),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                start_new_session=True,
            )
        self._containers[pod["metadata"]["uid"]] = _Container(process, log)
        pod["status"]["phase"] = "Running"
        set_condition(pod, "Ready", "")
        self._set_state(pod, {"running": {"startedAt": now()}})

    def _environment(self, pod: Object) -> dict[str, str]:
        environment = {**self._image, POD_VARIABLE: pod["metadata"]["uid"]}
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        environment["JOB_COMPLETION_INDEX"] = index
        main = pod["spec"]["containers"][0]
        for each in main.get("envFrom", []):
            environment |= self._secrets[each["secretRef"]["name"]]
        for variable in main.get("env", []):
            if at := variable.get("valueFrom", {}).get("secretKeyRef"):
                environment[variable["name"]] = self._secrets[at["name"]][at["key"]]
            else:
                is_host = variable["value"].endswith(".svc")  # of pods that are all on this machine
                environment[variable["name"]] = "127.0.0.1" if is_host else variable["value"]
        return environment

    def _stop_if_deleted(self, pod: Object, container: _Container) -> None:
        if not is_deleted(pod):
            return
        grace_s = pod["metadata"].get(
            "deletionGracePeriodSeconds", pod["spec"].get("terminationGracePeriodSeconds", 30)
        )
        if container.kill_at is None:
            container.kill_at = time.monotonic() + grace_s
            container.process.send_signal(signal.SIGTERM)
        container.kill_at = min(container.kill_at, time.monotonic() + grace_s)
        if time.monotonic() >= container.kill_at:
            container.process.kill()

    def _record_end(self, pod: Object, container: _Container) -> None:
        code = container.process.returncode
        pod["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
        set_condition(pod, "Ready", "PodCompleted", value="False")
        if container.is_lost:
            return
        reason = "Completed" if code == 0 else "Error"
        ended = {
            "exitCode": code if code >= 0 else 128 - code,
            "reason": "OOMKilled" if container.has_passed_memory else reason,
        }
        self._set_state(pod, {"terminated": ended})

    def _set_state(self, pod: Object, state: Object) -> None:
        name = pod["spec"]["containers"][0]["name"]
        pod["status"]["containerStatuses"] = [{"name": name, "state": state}]

    def _kill_all(self, pod: Object) -> None:
        self._containers[pod["metadata"]["uid"]].process.kill()
        self._kill_rest(pod)

    def _kill_rest(self, pod: Object) -> None:
        mark = f"{POD_VARIABLE}={pod['metadata']['uid']}".encode()
        while left := [each.pid for each in all_processes() if mark in _environment_of(each.pid)]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _environment_of(pid: int) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []
