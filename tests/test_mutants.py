"""Each planted defect still has its place and its tests, also where `make mutants` is not run."""

import shlex
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)


@each_mutant
def test_the_text_of_a_mutant_occurs_once_in_its_file(mutant: Mutant) -> None:
    assert (ROOT / "relay" / mutant.file).read_text().count(mutant.text) == 1


@each_mutant
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]

    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_no_two_mutants_have_the_same_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
