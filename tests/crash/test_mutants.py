"""Every durability mutant is found by the crash explorer within its budget, and the package as it is passes it."""

import pytest

from tools.mutate import EQUIVALENT, IMAGES_MAX, MUTANTS, Mutant, hunt


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    report = hunt(mutant)
    assert report["violation"], f"{mutant.name} survived {report['distinct']} images; a user would lose {mutant.loses}"


def test_unmutated_copy_passes_the_same_budget() -> None:
    report = hunt(None, images=IMAGES_MAX // 4)  # test_log_images.py goes much further
    assert report["violation"] is None
    assert report["distinct"] > 0


def test_mutants_have_names_of_their_own_and_say_what_they_cost() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 14
    assert all(mutant.loses for mutant in MUTANTS)
    assert not {mutant.name for mutant in MUTANTS} & set(EQUIVALENT)
