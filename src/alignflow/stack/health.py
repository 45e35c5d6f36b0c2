"""Whether a server answers as it should; each look says in a few words why not."""

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

Look = Callable[[], str | None]
"""Returns why a server isn't well, None while it is."""

_ANSWER_TIMEOUT_S = 3.0


def page_answers(url: str) -> Look:
    """Look at a page that needs no password."""

    def look() -> str | None:
        try:
            with urlopen(url, timeout=_ANSWER_TIMEOUT_S):
                return None
        except HTTPError as error:
            return f"it answers {error.code}"
        except (OSError, ValueError, HTTPException) as error:
            return str(getattr(error, "reason", error))

    return look


def worker_is_heard(api_url: str, auth_string: str, pool: str, name: str, since: str) -> Look:
    """Look whether a worker of a pool has told the Prefect server of itself.

    Args:
        api_url: The server's.
        auth_string: `user:password`.
        pool: Work pool of the worker.
        name: Its name.
        since: ISO time of its start; what it said before was another process.
    """
    token = base64.b64encode(auth_string.encode()).decode()
    request = Request(
        f"{api_url}/work_pools/{pool}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json", "Authorization": f"Basic {token}"},
    )
    # The time of its start is cut to seconds.
    started = datetime.fromisoformat(since) - timedelta(seconds=1)

    def look() -> str | None:
        try:
            with urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
                workers = json.load(answer)
        except HTTPError as error:
            # The worker makes the pool at its first start.
            return "it has not come to the pool yet" if error.code == 404 else f"{error.code}"
        except (OSError, ValueError, HTTPException) as error:
            return f"Prefect doesn't answer: {getattr(error, 'reason', error)}"
        for worker in workers:
            heard = worker["last_heartbeat_time"]
            if worker["name"] == name and heard and datetime.fromisoformat(heard) >= started:
                return None if worker["status"] == "ONLINE" else "Prefect has not heard of it"
        return "it has not come to the pool yet"

    return look
