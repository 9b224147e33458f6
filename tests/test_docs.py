import re
from collections import Counter
from pathlib import Path

from click.testing import CliRunner

from relay import __version__
from relay.cli import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_the_readme_has_the_table_of_settings() -> None:
    table = CliRunner().invoke(main, ["settings"]).stdout

    assert table.count("\n") > 10
    assert f"\n\n{table}\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)\b", changelog, re.MULTILINE)

    assert versions[0] == __version__


def test_the_documentation_names_tests_that_exist() -> None:
    named = {*re.findall(r"`((?:\w+/)?test_\w+\.py)`", "".join(map(_text, PAGES)))}

    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def test_the_readme_names_every_folder_of_relay() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = {*re.findall(r"`relay/(\w+)/`", readme)}
    folders = {path.parent.name for path in (ROOT / "relay").glob("*/__init__.py")}

    assert named == folders


def test_the_readme_leads_to_every_page() -> None:
    targets = {target.partition("#")[0] for target in _links(ROOT / "README.md")}

    assert {f"docs/{page.name}" for page in PAGES[1:]} - targets == set()


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    links = [(page, target) for page in PAGES for target in _links(page)]
    broken = [(page.name, target) for page, target in links if not _is_there(page, target)]

    assert len(links) > 15
    assert broken == []


def _text(page: Path) -> str:
    return page.read_text("utf-8")


def _links(page: Path) -> list[str]:
    """Return the links to files and headings of this repository, pictures among them."""
    text = _text(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [target for target in targets if not target.startswith(("https:", "http:"))]


def _is_there(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    return path.is_file() and (not anchor or anchor in _anchors(path))


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", _text(page), flags=re.MULTILINE | re.DOTALL)
    names = Counter(
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    )
    assert max(names.values()) == 1, "a heading stands twice"
    return set(names)
