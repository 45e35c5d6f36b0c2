"""Automations that tell people: one for each kind of news, by every channel that is named.

A channel is named by the environment of `alignflow deploy`. What it says is kept in a block on the
server, which encrypts what is secret in it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import (
    CustomWebhookNotificationBlock,
    SendgridEmail,
    SlackWebhook,
)
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.orchestration.routes import ServerRoutes
from prefect.events import AutomationCore
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger
from pydantic import SecretStr

from alignflow.errors import ConfigError
from alignflow.tasks.deployment.apply import Change, What, apply_automation
from alignflow.tasks.deployment.config import NotificationConfig
from alignflow.tasks.prefect_api import read_or_none

SLACK_VARIABLE = "ALIGNFLOW_NOTIFY_SLACK_URL"
WEBHOOK_VARIABLE = "ALIGNFLOW_NOTIFY_WEBHOOK_URL"
EMAIL_TO_VARIABLE = "ALIGNFLOW_NOTIFY_EMAIL_TO"
EMAIL_FROM_VARIABLE = "ALIGNFLOW_NOTIFY_EMAIL_FROM"
EMAIL_KEY_VARIABLE = "SENDGRID_API_KEY"
SMTP_VARIABLE = "ALIGNFLOW_NOTIFY_SMTP_URL"
BLOCKS_VARIABLE = "ALIGNFLOW_NOTIFY_BLOCKS"

_BLOCK_NAME = "alignflow"
_MAIL_BLOCK_NAME = "alignflow-mail"
_BLOCK: ServerRoutes = "/block_types/slug/{slug}/block_documents/name/{block_document_name}"
_PREFIX = "alignflow: "
_WEBHOOK_BODY = {"subject": "{{ subject }}", "body": "{{ body }}"}
_APPRISE_SCHEMES = {
    "smtp": ("mailto", {}),
    "smtps": ("mailtos", {"mode": "ssl"}),
    "smtp+starttls": ("mailtos", {"mode": "starttls"}),
}
"""How Apprise names each way of speaking SMTP: the scheme, and what the query adds."""


def apply_notifications(
    client: SyncPrefectClient,
    notifications: Sequence[NotificationConfig],
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Change]:
    """Make the channels that are named, and automations that use these and no others.

    Raises:
        ConfigError: An address is incomplete, or there is no block of a name.
    """
    blocks = []
    for name, block in _channels(environ):
        change, block_id = _save(client, name, block)
        blocks.append(block_id)
        yield change
    blocks += [_find_block(client, name) for name in _named_blocks(environ)]
    # Without any, those of an earlier call stay: another shell may not know of the channels.
    for config in notifications if blocks else ():
        name = f"{_PREFIX}{config.name}"
        automation = AutomationCore(
            name=name,
            trigger=EventTrigger(expect=set(config.expect)),
            actions=[
                SendNotification(block_document_id=block, subject=config.subject, body=config.body)
                for block in blocks
            ],
        )
        yield Change(apply_automation(client, automation), "automation", name)


def _channels(environ: Mapping[str, str]) -> Iterator[tuple[str, Block]]:
    """Yield a block for each channel that is named, and the block's name."""
    if slack := environ.get(SLACK_VARIABLE):
        yield _BLOCK_NAME, SlackWebhook(url=SecretStr(_checked_url(SLACK_VARIABLE, slack)))
    if webhook := environ.get(WEBHOOK_VARIABLE):
        # As a secret: who knows the address of a webhook may often post to it.
        yield (
            _BLOCK_NAME,
            CustomWebhookNotificationBlock(
                name=_BLOCK_NAME,
                url="{{ address }}",
                json_data=_WEBHOOK_BODY,
                secrets=SecretDict({"address": _checked_url(WEBHOOK_VARIABLE, webhook)}),
            ),
        )
    if recipients := environ.get(EMAIL_TO_VARIABLE):
        yield _email(environ, [address.strip() for address in recipients.split(",")])


def _email(environ: Mapping[str, str], recipients: list[str]) -> tuple[str, Block]:
    sender, smtp = environ.get(EMAIL_FROM_VARIABLE), environ.get(SMTP_VARIABLE)
    key = environ.get(EMAIL_KEY_VARIABLE)
    if not sender or bool(smtp) == bool(key):
        raise ConfigError(
            f"{EMAIL_TO_VARIABLE} goes with {EMAIL_FROM_VARIABLE} and with one of {SMTP_VARIABLE} "
            f"and {EMAIL_KEY_VARIABLE}; set these two."
        )
    if smtp:
        # Prefect's server has no block for SMTP. That for Slack hands every address that is not
        # Slack's to Apprise, which speaks SMTP.
        return _MAIL_BLOCK_NAME, SlackWebhook(url=SecretStr(_apprise_url(smtp, sender, recipients)))
    return _BLOCK_NAME, SendgridEmail(
        api_key=SecretStr(str(key)), sender_email=sender, to_emails=recipients
    )


def _apprise_url(smtp: str, sender: str, recipients: list[str]) -> str:
    """Return how Apprise names mail by a server of SMTP."""
    parts = urlsplit(smtp)
    try:
        is_whole = parts.scheme in _APPRISE_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or none that there is
        is_whole = False
    if not is_whole:
        raise ConfigError(
            f"{SMTP_VARIABLE}: not a URL like smtp+starttls://user:password@host:587; the scheme "
            f"is one of {', '.join(_APPRISE_SCHEMES)}."
        )
    scheme, mode = _APPRISE_SCHEMES[parts.scheme]
    # Apprise guesses the server of addresses that it knows; here it is said.
    query = {"smtp": parts.hostname, "from": sender, "to": ",".join(recipients), "format": "text"}
    return f"{scheme}://{parts.netloc}/?{urlencode({**query, **mode})}"


def _checked_url(variable: str, url: str) -> str:
    if not url.startswith(("https://", "http://")):
        # The value is not repeated: it may be a secret.
        raise ConfigError(f"{variable}: not a URL like https://host/path.")
    return url


def _named_blocks(environ: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environ.get(BLOCKS_VARIABLE, "").split(",") if name.strip()]


def _save(client: SyncPrefectClient, block_name: str, block: Block) -> tuple[Change, UUID]:
    """Save a block under a name, unless the server holds it as it is."""
    kind = type(block)
    name = f"{kind.get_block_type_slug()}/{block_name}"
    standing = _read_block(client, name)
    if standing is not None and _content(block) == standing["data"]:
        return Change("unchanged", "notification block", name), UUID(standing["id"])
    saved = block.save(block_name, overwrite=True)
    what: What = "created" if standing is None else "updated"
    return Change(what, "notification block", name), UUID(str(saved))


def _content(block: Block) -> dict[str, Any]:
    return block._to_block_document(
        name=_BLOCK_NAME,
        block_schema_id=UUID(int=0),
        block_type_id=UUID(int=0),
        include_secrets=True,
    ).data


def _find_block(client: SyncPrefectClient, name: str) -> UUID:
    standing = _read_block(client, name)
    if standing is None:
        raise ConfigError(
            f"{BLOCKS_VARIABLE}: Prefect holds no block {name}; a block is named TYPE/NAME, such "
            "as slack-webhook/ops, and prefect block ls lists them."
        )
    return UUID(standing["id"])


def _read_block(client: SyncPrefectClient, name: str) -> dict[str, Any] | None:
    kind, _, document = name.partition("/")
    found: dict[str, Any] | None = read_or_none(
        client, _BLOCK, slug=kind, block_document_name=document
    )
    return found
