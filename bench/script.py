"""The script one would write instead of relay: Starlette and the queue of Segment's library."""

import os
from datetime import UTC, datetime
from typing import Final

from segment.analytics.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

EVENTS: Final = {
    "sent": "Email Sent",
    "delivered": "Email Delivered",
    "opened": "Email Opened",
    "clicked": "Email Link Clicked",
    "unsubscribed": "Email Unsubscribed",
    "bounced": "Email Bounced",
    "complained": "Email Marked as Spam",
}

# Compressed, as relay's requests are.
client = Client(os.environ["SEGMENT_WRITE_KEY"], host=os.environ["SEGMENT_HOST"], gzip=True)


async def receive(request: Request) -> JSONResponse:
    """Put the webhook into the library's queue."""
    webhook = await request.json()
    kind = webhook.get("type")
    if kind in EVENTS:
        user = webhook.get("user") or {}
        campaign = webhook.get("campaign") or {}
        user_id, email = user.get("id"), user.get("email")
        client.track(
            user_id=user_id,
            anonymous_id=None if user_id else email,
            event=EVENTS[kind],
            properties={
                "email_id": webhook.get("message_id") or campaign.get("message_id"),
                "email_subject": campaign.get("subject") or campaign.get("email_subject"),
                "campaign_id": campaign.get("id"),
                "campaign_name": campaign.get("name") or campaign.get("campaign_title"),
                "campaign_type": campaign.get("type"),
                "variation": campaign.get("variation") or campaign.get("variation_name"),
                "trigger_event": campaign.get("trigger-event"),
                "bounce_type": webhook.get("bounce_type"),
                "bounce_code": webhook.get("bounce_code"),
                "bounce_message": webhook.get("bounce_message"),
            },
            context={"traits": {"email": email}, "userAgent": webhook.get("user_agent")},
            timestamp=datetime.fromtimestamp(webhook[f"{kind}_at"], UTC),
        )
    return JSONResponse({"status": "ok"})


app = Starlette(routes=[Route("/webhooks/vero", receive, methods=["POST"])])
