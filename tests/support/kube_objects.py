"""What a cluster stores, and how its parts name and change it."""

import secrets
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural name of the kind, namespace, name."""


class Store:
    """All objects of a cluster; whoever touches them holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._objects: dict[Key, Object] = {}

    def add(self, kind: str, made: Object) -> Object:
        """Store a new object as the API server does, with a uid and the time."""
        metadata = made["metadata"]
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        metadata["resourceVersion"] = str(len(self._objects) + 1)
        made.setdefault("status", {})
        self._objects[kind, metadata["namespace"], metadata["name"]] = made
        return made

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object."""
        return self._objects.get((kind, namespace, name))

    def all(self, kind: str, namespace: str | None = None) -> list[Object]:
        """Return the objects of a kind."""
        return [
            each
            for (its_kind, its_namespace, _), each in self._objects.items()
            if its_kind == kind and namespace in (None, its_namespace)
        ]

    def owned(self, kind: str, owner: Object) -> list[Object]:
        """Return the objects of a kind that another one owns."""
        uid = owner["metadata"]["uid"]
        return [
            each
            for each in self.all(kind, owner["metadata"]["namespace"])
            if any(at["uid"] == uid for at in each["metadata"].get("ownerReferences", []))
        ]

    def remove(self, kind: str, gone: Object) -> None:
        """Forget an object."""
        metadata = gone["metadata"]
        self._objects.pop((kind, metadata["namespace"], metadata["name"]), None)


def set_condition(
    of: Object, kind: str, reason: str, message: str = "", value: str = "True"
) -> None:
    """Set a condition in an object's status."""
    conditions = of["status"].setdefault("conditions", [])
    conditions[:] = [each for each in conditions if each["type"] != kind]
    conditions.append(
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now(),
        }
    )


def has_condition(of: Object, kind: str) -> bool:
    """Whether a condition holds."""
    conditions = of["status"].get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def is_deleted(which: Object) -> bool:
    """Whether an object is on its way out."""
    return "deletionTimestamp" in which["metadata"]


def delete(which: Object, grace_s: int | None = None) -> None:
    """Mark an object as deleted; its controller does the rest."""
    which["metadata"].setdefault("deletionTimestamp", now())
    if grace_s is not None:
        which["metadata"]["deletionGracePeriodSeconds"] = grace_s


def now() -> str:
    """Return the time as Kubernetes writes it, whole seconds and all."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix() -> str:
    """Return what tells the pods of one index apart."""
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))
