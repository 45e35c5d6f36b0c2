"""The faults, and the table that tells of them."""

from chaos.faults import FAULTS
from chaos.table import BEGIN, END, PAGE, Outcome, table, with_table


def test_faults_have_names_of_their_own_that_fit_a_registry() -> None:
    slugs = [fault.slug for fault in FAULTS]
    assert len(set(slugs)) == len(slugs) >= 20
    assert all(slug.replace("-", "").isalnum() for slug in slugs)


def test_few_are_short_and_need_one_undisturbed_run() -> None:
    short = [fault for fault in FAULTS if fault.is_short]
    assert 2 <= len(short) <= 3
    assert len({fault.num_ranks for fault in short}) == 1


def test_a_table_replaces_the_one_before() -> None:
    outcome = Outcome.of(FAULTS[0], "step 3", seed=7, seconds=12.34)
    page = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", table([outcome]))
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert f"| {FAULTS[0].name} | step 3 | 7 |" in page
    assert with_table(page, table([outcome])) == page


def test_the_page_has_room_for_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
