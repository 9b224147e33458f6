import json

import pytest

from tests.cli.desk import CANARY, Desk, webhook
from tests.console.client import (
    look,
    rejected,
)


@pytest.mark.parametrize("reveal", [False, True])
def test_the_export_equals_that_of_the_command(desk: Desk, reveal: bool) -> None:  # noqa: FBT001 (pytest gives it)
    rejected(desk, webhook(f"export-{reveal}", user_agent="Zoë\u2028"))
    desk.relay.post(webhook(f"export-{reveal}")[:-1])
    for reason in ("rejected", "unreadable", ""):
        page = look(desk.relay, f"/console/dead/export?reason={reason}&reveal={int(reveal)}")
        of_reason = ["--reason", reason] if reason else ["--state", "dead"]
        exported = desk.run_json("export", *of_reason, *(["--reveal"] if reveal else []))

        assert [json.loads(line) for line in page.text.split("\n")[:-1]] == exported
        assert (CANARY in page.text) == reveal
        assert page.headers["content-type"] == "application/jsonl"
        assert page.headers["content-disposition"].startswith('attachment; filename="dead-')
