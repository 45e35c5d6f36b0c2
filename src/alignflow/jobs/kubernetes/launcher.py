"""Jobs on a Kubernetes cluster: submitted, found, followed and cancelled from any machine.

The cluster forgets a job some time after its end: how that came is read from the run folder, and
the cluster is asked whether the job still waits or runs, and why a pod that left no word ended.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignflow.errors import ConfigError, JobError
from alignflow.jobs.base import CANCEL_GRACE_S
from alignflow.jobs.failures import kind_of_text, make_failure
from alignflow.jobs.kubernetes import view
from alignflow.jobs.kubernetes.api import Api, ApiAwayError, current_context
from alignflow.jobs.kubernetes.attempts import goes_on
from alignflow.jobs.kubernetes.config import KubernetesConfig
from alignflow.jobs.kubernetes.handle import KubernetesHandle
from alignflow.jobs.kubernetes.manifests import Manifest, manifests, run_folder_of
from alignflow.jobs.kubernetes.names import object_name
from alignflow.jobs.kubernetes.view import Listed, Pod
from alignflow.jobs.run_folder import RunFolder, write_atomically
from alignflow.jobs.spec import FailureKind, JobFailure, JobSpec, JobStatus
from alignflow.jobs.submission import submission

CONFIG_NAME = "kubernetes.json"
MANIFEST_NAME = "kubernetes.yaml"

# Between two questions to the API server, which serves a whole cluster.
_ASK_EVERY_S = 5.0
_ASK_AGAIN_S = 1.0
_LOOK_EVERY_S = 0.5
# After the time that a cancelled job was given, until its pods are killed, and have to be gone.
_EXIT_S = 10.0
_KILL_S = 120.0
# A file that another node wrote may be seen so much later on a network file system.
_FILES_S = 35.0

# What a job's own processes can't tell apart: they see a signal, or a connection that broke.
_KNOWN_BETTER = (FailureKind.PREEMPTED, FailureKind.NODE_LOST, FailureKind.COMMUNICATION)


@dataclass
class _View:
    """What the API server said last, and when."""

    at: float = -1e9
    listed: Listed | None = None
    pods: list[Pod] = field(default_factory=list)
    is_away: bool = False
    ended_at: float | None = None


@dataclass
class KubernetesJob:
    """A job on a Kubernetes cluster."""

    _folder: RunFolder
    _view: _View = field(default_factory=_View)

    @property
    def id(self) -> str:
        """Namespace and name of the object that runs the job."""
        handle = self._handle()
        return f"kubernetes:{handle.namespace}/{handle.name}"

    @property
    def attempt(self) -> int:
        """How often the job has been started, this time included."""
        return self._handle().attempt

    def status(self) -> JobStatus:
        """Return where the job is in its life now."""
        seen = self._ask()
        if seen.listed is not None and seen.listed.is_live:
            return JobStatus.PENDING if seen.listed.is_waiting else JobStatus.RUNNING
        if self._folder.read_result() is not None:
            return JobStatus.SUCCEEDED
        failure = self._recorded_failure(seen)
        if seen.is_away and (failure is None or self._may_go_on(failure)):
            has_started = self._folder.last_beat() is not None
            return JobStatus.RUNNING if has_started else JobStatus.PENDING
        if failure is not None:
            is_cancelled = failure.kind is FailureKind.CANCELLED
            return JobStatus.CANCELLED if is_cancelled else JobStatus.FAILED
        if self._may_have_succeeded(seen):
            return JobStatus.RUNNING
        self._folder.write_failure(self._unrecorded_end(seen))
        return self.status()

    def note(self) -> str:
        """Return what the job waits for, or where it runs; nothing after its end."""
        status = self.status()
        seen = self._view
        if seen.is_away and status in (JobStatus.PENDING, JobStatus.RUNNING):
            return "Kubernetes' API server doesn't answer"
        if status is JobStatus.PENDING and seen.listed is not None:
            reasons = [pod.waits_for for pod in seen.pods if pod.waits_for]
            reason = next(iter(reasons), seen.listed.message or "its pods start")
            return f"{self.id} waits: {reason}"
        if status is JobStatus.RUNNING:
            return f"running as attempt {self.attempt} in {self.id}"
        return ""

    def failure(self) -> JobFailure | None:
        """Return why the job failed; None while it runs and after a success."""
        is_over = self.status() in (JobStatus.FAILED, JobStatus.CANCELLED)
        return self._folder.read_failure() if is_over else None

    def cancel(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """Stop the job and return when none of its pods is left.

        Raises:
            JobError: The API server doesn't answer, or a pod can't be killed.
        """
        try:
            self._cancel(grace_s)
        except ApiAwayError as error:
            raise _no_answer(error) from None
        self._folder.write_failure(make_failure(FailureKind.CANCELLED, "The job was cancelled."))
        self._view.at = -1e9

    def _cancel(self, grace_s: float) -> None:
        handle = self._handle()
        api = _api_of(handle)
        listed = _look_up(api, handle)
        if listed is None or not listed.is_live:
            return
        self._folder.request_stop(grace_s)  # which the pods read when they are told to end
        api.delete_job(handle.template, handle.name)
        if _is_gone(api, handle, within_s=grace_s + _EXIT_S):
            return
        for pod in api.pods(handle.name):
            api.kill_pod(pod["metadata"]["name"])
        if not _is_gone(api, handle, within_s=_KILL_S):
            message = (
                f"{self.id} can't be killed; its node may be lost: ask the cluster's operators."
            )
            raise JobError(make_failure(FailureKind.ERROR, message))

    def _ask(self) -> _View:
        """Return what the API server says, asked at most every few seconds."""
        seen = self._view
        pause = _ASK_AGAIN_S if self._folder.has_outcome() else _ASK_EVERY_S
        if time.monotonic() - seen.at < pause:
            return seen
        handle = self._handle()
        api = _api_of(handle)
        try:
            seen.listed, seen.is_away = _look_up(api, handle), False
            has_failed = seen.listed is not None and seen.listed.failed is not None
            if has_failed or (seen.listed is not None and seen.listed.is_waiting):
                seen.pods = view.pods(handle.template, api.pods(handle.name))
        except ApiAwayError:
            seen.listed, seen.is_away = None, True
        seen.at = time.monotonic()
        return seen

    def _recorded_failure(self, seen: _View) -> JobFailure | None:
        """Return the failure that the job's processes recorded.

        Of a signal they know that it came, and the cluster why.
        """
        failure = self._folder.read_failure()
        if failure is None or failure.kind not in _KNOWN_BETTER or seen.is_away:
            return failure
        cause = view.cause_of(seen.listed, seen.pods) if seen.listed is not None else None
        if seen.listed is None and failure.kind is FailureKind.PREEMPTED:
            cause = FailureKind.CANCELLED, f"Somebody deleted {self.id}."
        if cause is not None and cause[0] is not failure.kind:
            failure = make_failure(*cause, failure.log_tail)
            self._folder.overrule_failure(failure)
        return failure

    def _may_go_on(self, failure: JobFailure) -> bool:
        return goes_on(self._folder, self._folder.read_spec(), failure)

    def _may_have_succeeded(self, seen: _View) -> bool:
        """Whether the result may be on its way from another node's cache."""
        if seen.listed is None or not seen.listed.is_complete:
            return False
        if seen.ended_at is None:
            seen.ended_at = time.monotonic()
        return time.monotonic() - seen.ended_at < _FILES_S

    def _unrecorded_end(self, seen: _View) -> JobFailure:
        """Return what the cluster says of a job whose processes could not leave a record."""
        tail = self._folder.log_tail(self._folder.rank_log(0))
        tail = tail or self._folder.log_tail(self._folder.launcher_log)
        if seen.listed is None:
            stop = self._folder.requested_stop()
            kind = stop.kind if stop is not None else FailureKind.NODE_LOST
            message = f"{self.id} is gone and left no result: it was deleted, or ended long ago."
            return make_failure(kind, message, tail)
        tail = tail or self._printed(seen.pods)
        if cause := view.cause_of(seen.listed, seen.pods):
            return make_failure(*cause, tail)
        ends = [f"pod {pod.name} with code {pod.exit_code}" for pod in seen.pods if pod.exit_code]
        ended = ", ".join(ends) or seen.listed.message or "it says no more"
        message = f"{self.id} left no result and ended as {seen.listed.failed}: {ended}."
        return make_failure(kind_of_text(tail), message, tail)

    def _printed(self, pods: list[Pod]) -> str:
        """Return what a pod printed that could not write into the run folder."""
        api = _api_of(self._handle())
        try:
            return next((log for pod in pods if (log := api.log_tail(pod.name).strip())), "")
        except ApiAwayError:
            return ""

    def _handle(self) -> KubernetesHandle:
        handle = KubernetesHandle.read(self._folder)
        if handle is None:
            raise ConfigError(f"{self._folder.path}: no job was submitted with this run folder.")
        return handle


@dataclass(frozen=True)
class KubernetesLauncher:
    """Submits jobs to Kubernetes."""

    config: KubernetesConfig

    def submit(self, spec: JobSpec, folder: RunFolder) -> KubernetesJob:
        """Return the job of a run folder, submitted if it neither runs nor has succeeded.

        A job that was taken while its submitter died is found by its name.

        Raises:
            ConfigError: Kubernetes refuses the job, or the folder can't be written, is in no volume
                of the pods, or is another job's.
            JobError: The API server doesn't answer.
        """
        try:
            with submission(spec, folder):
                return self._find_or_submit(spec, folder)
        except ApiAwayError as error:
            raise _no_answer(error) from None

    def find(self, folder: RunFolder) -> KubernetesJob | None:
        """Return the job that was submitted with this folder, whatever became of it."""
        return KubernetesJob(folder) if folder.handle.exists() else None

    def _find_or_submit(self, spec: JobSpec, folder: RunFolder) -> KubernetesJob:
        job = self.find(folder)
        if job is not None and job.status() not in (JobStatus.FAILED, JobStatus.CANCELLED):
            return job
        attempt = job.attempt + 1 if job is not None else 1
        handle = KubernetesHandle(
            template=self.config.template,
            context=current_context(self.config.context),
            namespace=self.config.namespace,
            name=object_name(spec.name, folder, attempt),
            first_attempt=attempt,
            attempt=attempt,
        )
        objects = manifests(spec, folder, self.config, attempt=attempt)
        api = _api_of(handle)
        made = _submitted_before(api, handle, folder)
        if made is None:
            folder.begin_attempt(spec)
            config = self.config.replaced(context=handle.context)
            write_atomically(folder.path / CONFIG_NAME, config.model_dump_json(indent=2))
            write_atomically(folder.path / MANIFEST_NAME, as_yaml(objects))
            made = api.create_job(handle.template, objects[0])
            # Another submitter, who doesn't see this folder's lock, may have been faster.
            made = made or _submitted_before(api, handle, folder)
        if made is None:
            raise ApiAwayError(f"{handle.name} came and went")
        for service in objects[1:]:
            service["metadata"]["ownerReferences"] = [_reference(made)]  # deleted with the job
            api.create_service(service)
        handle.write(folder)
        return KubernetesJob(folder)


def as_yaml(objects: list[Manifest]) -> str:
    """Return objects as `kubectl apply -f` takes them."""
    return yaml.safe_dump_all(objects, sort_keys=False)


def _submitted_before(api: Api, handle: KubernetesHandle, folder: RunFolder) -> Manifest | None:
    """Return the job that a submitter who died before writing its handle has left alive.

    What has ended, such as the job of a run folder that was removed, gives up its name.

    Raises:
        ConfigError: The name is somebody else's.
    """
    manifest = api.job(handle.template, handle.name)
    if manifest is None:
        return None
    if run_folder_of(manifest) != str(folder.path):
        raise ConfigError(
            f"Kubernetes has a job {handle.name} of another run folder; delete it, or use another "
            "namespace."
        )
    is_deleted = "deletionTimestamp" in manifest["metadata"]
    if view.listed(handle.template, manifest).is_live and not is_deleted:
        return manifest
    api.delete_job(handle.template, handle.name)
    if not _is_gone(api, handle, within_s=_KILL_S):
        raise ConfigError(f"Kubernetes doesn't get rid of {handle.name}; ask its operators.")
    return None


def _api_of(handle: KubernetesHandle) -> Api:
    return Api(handle.context, handle.namespace)


def _look_up(api: Api, handle: KubernetesHandle) -> Listed | None:
    manifest = api.job(handle.template, handle.name)
    return view.listed(handle.template, manifest) if manifest is not None else None


def _is_gone(api: Api, handle: KubernetesHandle, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if api.job(handle.template, handle.name) is None and not api.pods(handle.name):
            return True
        time.sleep(_LOOK_EVERY_S)
    return False


def _reference(owner: Manifest) -> dict[str, Any]:
    metadata = owner["metadata"]
    names = {"name": metadata["name"], "uid": metadata["uid"]}
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], **names}


def _no_answer(error: ApiAwayError) -> JobError:
    message = f"Kubernetes' API server doesn't answer ({error})"
    return JobError(make_failure(FailureKind.COMMUNICATION, message))
