"""Prefect's page of a run, as a person uses it in a browser."""

from pathlib import Path
from typing import Any

from browser import headless_browser

_TIMEOUT_MS = 60_000
_KEY_MS = 700
_TRIES = 10


def approve_in_browser(
    server: str, account: str, flow_run: str, *, by: str, note: str, pictures: Path
) -> None:
    """Log in, open a suspended run, fill in its form and send it.

    Args:
        server: URL of the server's pages.
        account: Name and password, with a colon between.
        flow_run: Id of the run.
        by: Who approves.
        note: Why.
        pictures: Folder for a screenshot of the form, and one of what follows.
    """
    with headless_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(_TIMEOUT_MS)
        page.goto(f"{server}/login?redirect=/runs/flow-run/{flow_run}")
        page.get_by_placeholder("admin:pass").fill(account)
        page.get_by_role("button", name="Login").click()
        page.get_by_role("button", name="Resume").first.wait_for()
        page.reload()  # without the complaint that the page made before the login
        page.get_by_role("button", name="Resume").first.click()
        form = page.get_by_role("dialog")
        _choose(page, form, "approve")
        by_field, note_field = form.locator("textarea").all()
        by_field.fill(by)
        note_field.fill(note)
        page.screenshot(path=pictures / "approval-form.png")
        form.get_by_role("button", name="Submit").click()
        form.wait_for(state="hidden")
        page.wait_for_timeout(1000)
        page.screenshot(path=pictures / "approved-run.png")


def _choose(page: Any, form: Any, wanted: str) -> None:
    """Choose from the form's list, by keys: no click opens it headless."""
    choice = form.locator(".p-select-button__control").first
    for _ in range(_TRIES):
        for key in ("ArrowDown", "Space"):
            choice.focus()
            page.keyboard.press(key)
            page.wait_for_timeout(_KEY_MS)
        if choice.inner_text() == wanted:
            return
    raise AssertionError(
        f"the form says {choice.inner_text()!r} and can't be made to say {wanted!r}"
    )
