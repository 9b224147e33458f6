import re
from pathlib import Path

from click.testing import CliRunner

from relay import __version__
from relay.cli import main

ROOT = Path(__file__).parents[1]


def test_the_readme_has_the_table_of_settings() -> None:
    table = CliRunner().invoke(main, ["settings"]).stdout

    assert table.count("\n") > 10
    assert f"\n\n{table}\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)\b", changelog, re.MULTILINE)

    assert versions[0] == __version__


def test_the_readme_names_tests_that_exist() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = {*re.findall(r"`((?:\w+/)?test_\w+\.py)`", readme)}

    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def test_the_readme_names_every_folder_of_relay() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = {*re.findall(r"`relay/(\w+)/`", readme)}
    folders = {path.parent.name for path in (ROOT / "relay").glob("*/__init__.py")}

    assert named == folders
