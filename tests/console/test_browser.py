"""The console in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect

from tests.cli.desk import CANARY, Desk, address, webhook
from tests.console.browsing import CHROMIUM, PAGES, Scheme, chromium, window
from tests.harness.fakes import SegmentServer
from tests.harness.processes import SECRET, RelayProcess, within
from tests.harness.stores import SqliteStore
from tests.receiver.calls import relay_for_calls

OpenPage = Callable[..., Page]
"""Opens a path of the console in a window of its own."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this module; without one they are skipped.

    Not for the whole session: its driver runs an event loop in this thread, as other tests do.
    """
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    with chromium() as browser:
        yield browser


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A relay that has received nothing yet."""
    store = SqliteStore(tmp_path / "relay.db")
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)


@pytest.fixture
def open_page(browser: Browser, desk: Desk) -> Iterator[OpenPage]:
    """See `OpenPage`. A page's error, or its request to another host, fails the test."""
    faults: list[str] = []
    own = f"http://127.0.0.1:{desk.relay.port}/"

    def note(request: Request) -> None:
        if not request.url.startswith(own):
            faults.append(f"asked for {request.url}")

    with ExitStack() as windows:

        def open_page(path: str, **how: Any) -> Page:  # noqa: ANN401 (passed on)
            context = windows.enter_context(window(browser, desk.relay, **how))
            page = context.new_page()
            page.on("request", note)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
            page.on(
                "console",
                lambda line: faults.append(line.text) if line.type == "error" else None,
            )
            page.goto(f"/console{path}")
            return page

        yield open_page
    assert faults == []


def test_a_click_on_the_link_signs_in(desk: Desk, open_page: OpenPage) -> None:
    (link,) = desk.relay.links()
    token = link.rpartition("#")[2]
    page = open_page("/sign-in", signed_in=False)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(f"{request.url} {request.all_headers()}"))
    page.goto("about:blank")
    page.goto(link)
    expect(page.get_by_role("heading", name="Waiting for your first webhook")).to_be_visible()
    expect(page.get_by_text("· live")).to_be_visible()
    page.reload()
    expect(page.get_by_text("· live")).to_be_visible()

    assert token not in page.content() + page.url
    assert token not in "".join(requests)
    assert page.evaluate("document.cookie") == ""

    page.go_back()  # to the page to sign in, without the link

    assert token not in page.content() + page.url

    page.goto(link)  # once more, in the same browser
    expect(page.get_by_role("heading", name="Waiting for your first webhook")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="You are not signed in")).to_be_visible()


def test_a_pasted_link_signs_in(desk: Desk, open_page: OpenPage) -> None:
    page = open_page("/sign-in", signed_in=False)
    page.get_by_label("The link, or what follows its #").fill(desk.relay.links()[0])
    page.get_by_role("button", name="Sign in").click()

    expect(page.get_by_role("heading", name="Waiting for your first webhook")).to_be_visible()


ANSWERED = "Segment's last answer: accepted"


def one_of_each(desk: Desk) -> None:
    """A delivered event, and dead letters of two reasons."""
    desk.refused.add("refused")
    desk.delivered(webhook("ana"), webhook("ben", campaign={"name": "refused"}))
    desk.relay.post(webhook("cut")[:-1])
    desk.refused.clear()


def test_the_first_run_shows_the_webhook_url_and_then_the_first_event(
    desk: Desk, open_page: OpenPage
) -> None:
    page = open_page("/")
    expect(page.get_by_role("heading", name="Waiting for your first webhook")).to_be_visible()
    expect(page.locator(".paste code")).to_contain_text("/webhooks/vero/")
    expect(page.locator(".paste code")).not_to_contain_text(SECRET)
    page.get_by_role("button", name="Reveal the secret").click()
    expect(page.locator(".paste code")).to_have_text(
        f"http://127.0.0.1:{desk.relay.port}/webhooks/vero/{SECRET}"
    )
    assert SECRET not in page.url
    page.get_by_role("link", name="Overview").first.click()
    expect(page.locator(".paste code")).not_to_contain_text(SECRET)
    desk.post(webhook("first"))

    expect(page.get_by_text("Waiting for your first webhook")).to_have_count(0)
    row = page.get_by_role("row", name=re.compile("Email Opened"))
    expect(row.get_by_role("cell").nth(0)).to_have_text("1")
    expect(page.get_by_text("All is well.")).to_be_visible()
    expect(page.locator(".status")).to_contain_text(ANSWERED)


def test_an_event_appears_by_itself_and_becomes_delivered(desk: Desk, open_page: OpenPage) -> None:
    page = open_page("/events")
    expect(page.get_by_text("No events yet.")).to_be_visible()
    with desk.posting(webhook("live", campaign={"name": "slow"}), "slow"):
        row = page.locator("tbody tr")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("Email Opened")
        expect(row).to_contain_text("pending")

    expect(row).to_contain_text("delivered")
    desk.post(webhook("live", 1, kind="bounced"))
    expect(page.locator("tbody tr").first).to_contain_text("Email Bounced")
    expect(page.locator("tbody tr")).to_have_count(2)


def test_rows_do_not_move_under_the_pointer(desk: Desk, open_page: OpenPage) -> None:
    desk.delivered(webhook("first"))
    page = open_page("/events")
    expect(page.get_by_text("· live")).to_be_visible()
    page.locator("tbody tr").hover()
    desk.delivered(webhook("second", kind="clicked"))
    expect(page.get_by_text("paused while you point at a row")).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.mouse.move(0, 0)

    expect(page.locator("tbody tr")).to_have_count(2)


@pytest.mark.parametrize(
    "text", ["mail-ben-0", "user-ben", address("ben").upper()], ids=["email", "user", "address"]
)
def test_an_event_is_found_by_email_id_user_id_and_address(
    desk: Desk, open_page: OpenPage, text: str
) -> None:
    desk.delivered(webhook("ana"), webhook("ben", kind="bounced"))
    page = open_page("/events")
    page.get_by_label("Message id, email id, user id or address").fill(text)
    page.get_by_role("button", name="Find").click()

    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("Email Bounced")


def test_addresses_are_masked_until_they_are_revealed(desk: Desk, open_page: OpenPage) -> None:
    desk.delivered(webhook("ana"))
    page = open_page("/events")
    page.locator("tbody a").click()
    expect(page.get_by_role("heading", name="Email Opened")).to_be_visible()
    before = page.content()
    page.get_by_role("link", name="Reveal addresses").click()
    after = page.content()
    page.get_by_role("link", name="Hide addresses").click()

    assert CANARY not in before
    assert after.count(address("ana")) >= 3
    assert CANARY not in page.content()


def test_one_event_shows_which_field_went_where(desk: Desk, open_page: OpenPage) -> None:
    desk.delivered(webhook("ana", campaign={"id": 7}, colour="green"))
    page = open_page("/events")
    page.locator("tbody a").click()
    left, right = page.locator(".json.left"), page.locator(".json.right")
    expect(right.locator("[data-path='properties.campaign_id']")).to_contain_text("← campaign.id")
    expect(right.locator("[data-path=userId]")).to_contain_text("← user.id")
    expect(left.locator("[data-path=colour]")).to_contain_text("not used")
    left.locator("[data-path='campaign.id']").hover()

    expect(page.locator(".wires path.lit")).to_have_count(1)
    expect(right.locator("li.lit")).to_have_attribute("data-path", "properties.campaign_id")
    expect(page.locator(".history")).to_contain_text("delivered: Segment accepted it")


def test_a_dead_letter_is_replayed_to_delivered(desk: Desk, open_page: OpenPage) -> None:
    one_of_each(desk)
    page = open_page("/dead")
    rejected = page.get_by_role("region", name=re.compile("rejected"))
    expect(rejected).to_contain_text(
        "Read the destination's answer, correct what it names, and replay it."
    )
    rejected.get_by_role("link", name=re.compile("received")).click()
    expect(page.locator(".history")).to_contain_text("dead: rejected")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("status").first).to_contain_text("It is pending again")
    desk.settle()
    page.reload()

    expect(page.locator("h1 .state")).to_have_text("delivered")
    assert len(desk.arrivals("ben")) == 1


def test_all_dead_letters_of_a_reason_are_replayed(desk: Desk, open_page: OpenPage) -> None:
    desk.refused.add("refused")
    desk.delivered(*(webhook("many", number, campaign={"name": "refused"}) for number in range(5)))
    desk.refused.clear()
    page = open_page("/dead")
    page.get_by_role("button", name="Replay all 5").click()
    expect(page.get_by_role("status").first).to_contain_text("Replaying all of rejected")

    assert within(20, lambda: len(desk.arrivals("many")) == 5)
    page.goto("/console/dead")
    expect(page.get_by_text("None. Every event")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("replay.*rejected"))).to_contain_text("5")


def test_the_playground_shows_what_a_body_becomes_and_stores_nothing(
    desk: Desk, open_page: OpenPage
) -> None:
    page = open_page("/playground")
    page.get_by_role("button", name="Try it").click()
    expect(page.locator(".answer > .code")).to_contain_text("200")
    expect(page.locator(".json.right [data-path=event]")).to_contain_text("Email Opened")
    page.get_by_label("The body").fill('{"type": "opened"')
    page.get_by_role("button", name="Try it").click()
    expect(page.locator(".answer > .code")).to_contain_text("400")
    page.get_by_label("The body").fill(webhook("tried").decode())
    page.get_by_role("button", name="Try it").click()
    expect(page.locator(".answer > .code")).to_contain_text("accepted")
    tried = page.locator(".answer code").first.inner_text()

    assert desk.store.stored() == []
    assert desk.post(webhook("tried")) == [tried]


HOSTILE = (
    "<script>window.ran = 1; alert(1)</script>",
    '"><img src=x onerror="window.ran = 1">',
    "</textarea></pre></title><svg onload='window.ran = 1'>",
    "javascript:window.ran=1",
    "{{ 7 * 7 }}{% raw %}",
    "';alert(1);//\"--></style>",
)


def test_content_of_webhooks_is_never_markup(desk: Desk, open_page: OpenPage) -> None:
    bodies = []
    for number, text in enumerate(HOSTILE):
        fields = ("name", "subject", "type", "tags", "variation", "id", text)
        everywhere: dict[str, Any] = {
            "message_id": text,
            "user": {"id": text, "email": f"{text}@example.com", text: text},
            "campaign": dict.fromkeys(fields, text),
            "user_agent": text,
            text: [text, {text: text}],
        }
        bodies.append(webhook("hostile", number, **everywhere))
        bodies.append(json.dumps({"type": text, "user": {"id": text}}).encode())
        bodies.append(text.encode())
    for body in bodies:
        desk.relay.post(body)
    desk.settle()
    pages = ["/", "/events", "/dead", *(f"/events/{number + 1}" for number in range(len(bodies)))]
    page = open_page("/")
    for path in pages:
        page.goto(f"/console{path}?reveal=1")
        expect(page.locator("footer")).to_be_visible()

        assert page.evaluate("window.ran") is None, path
    page.goto("/console/playground")
    for body in bodies:
        page.get_by_label("The body").fill(body.decode())
        page.get_by_role("button", name="Try it").click()

        assert page.evaluate("window.ran") is None
    page.goto("/console/events")
    page.get_by_label("Message id, email id, user id or address").fill(HOSTILE[1])
    page.get_by_role("button", name="Find").click()
    expect(page.locator("tbody tr").first).to_be_visible()

    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(desk: Desk, open_page: OpenPage, scheme: Scheme) -> None:
    page = open_page("/", scheme=scheme)
    violations = axe_violations(page)
    one_of_each(desk)
    desk.relay.ask("POST", "/webhooks/vero/wrong", b"{}")
    for path in (*PAGES, "/events/1", "/events/2", "/events/3"):
        page.goto(f"/console{path}")
        page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        violations += axe_violations(page)
    page.goto("/console/playground")
    page.get_by_role("button", name="Try it").click()
    violations += axe_violations(page)
    page.goto("/console/")
    with page.expect_navigation():
        page.evaluate(
            "document.body.innerHTML ="
            " '<form method=post action=/console/webhook-urls></form>'; document.forms[0].submit()"
        )
    violations += axe_violations(page)
    violations += axe_violations(open_page("/sign-in", scheme=scheme, signed_in=False))

    assert violations == []


def axe_violations(page: Page) -> list[str]:
    """Return what axe finds wrong with the page."""
    found = Axe().run(page).response["violations"]
    return [
        f"{page.url}: {each['id']}: {node['html'][:120]}"
        for each in found
        for node in each["nodes"]
    ]


def test_an_event_is_found_and_opened_by_keyboard(desk: Desk, open_page: OpenPage) -> None:
    desk.delivered(webhook("ana"))
    page = open_page("/events")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Message id, email id, user id or address")).to_be_focused()
    page.keyboard.type("user-ana")
    page.keyboard.press("Enter")
    link = page.locator("tbody a")
    expect(page).to_have_url(re.compile("q=user-ana"))
    link.focus()
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="Email Opened")).to_be_visible()


@pytest.mark.parametrize("width", [1200, 900, 600])
def test_the_fields_for_a_time_stand_side_by_side(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    """With both flows there are most fields; on a wide screen they are one row.

    On a phone the two stand one above the other, within the page.
    """
    with (
        relay_for_calls(tmp_path / "relay.db") as relay,
        window(browser, relay, width=width) as context,
    ):
        page = context.new_page()
        page.goto("/console/events")
        fields = page.locator(".filters select, .filters .times input")
        rows = fields.evaluate_all("all => all.map(one => one.getBoundingClientRect().bottom)")

        page.set_viewport_size({"width": 360, "height": 800})
        edges = page.locator(".filters .times input").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().right)"
        )

    assert len(rows) == 7
    assert rows[-1] == rows[-2]
    assert width < 1200 or len({*rows}) == 1
    assert max(edges) <= 360


def test_every_page_fits_a_phone(desk: Desk, open_page: OpenPage) -> None:
    one_of_each(desk)
    page = open_page("/", width=360)
    for path in (*PAGES, "/events/1", "/events/3"):
        page.goto(f"/console{path}")
        expect(page.get_by_role("link", name="Dead letters", exact=True)).to_be_visible()

        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    page = open_page("/sign-in", width=360, signed_in=False)

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
