"""The index of claims says what the records say, and every page is in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.engine import claims
from experiments.engine.records import ROOT
from experiments.engine.statistics import success_interval
from hrm_agent.evaluation.metrics import wilson_interval

CLAIMS = claims.claims()


def test_the_page_is_drawn_from_the_records_and_has_a_line_for_every_folder() -> None:
    assert claims.PAGE.read_text() == claims.page()
    pages = {page.parent.name for page in ROOT.glob("experiments/*/README.md")}
    assert {claim["page"] for claim in CLAIMS} == pages


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim["claim"][:40] for claim in CLAIMS])
def test_a_claim_has_the_seeds_that_it_says_and_a_weakest_point(claim: dict[str, Any]) -> None:
    assert claim["weakest"].strip()
    for key in {"records", "minus"} & claim.keys():
        found = claims.records_of(claim, key)
        assert found, f"no record of {claim[key]}"
        assert claims.seeds_of(claim, key) == claim["seeds"]
        assert len(found) == claim["seeds"]
    if "records" in claim:
        assert claims.figure(claim)


def test_a_claim_of_more_seeds_than_it_has_is_seen() -> None:
    claim = {"page": "main_job", "records": {"agent": "DynamicMaze-v0"}}
    assert claims.seeds_of(claim) == 10
    assert claims.seeds_of({**claim, "records": {"agent": "DynamicMaze-v0", "seed": 3000}}) == 1
    assert claims.seeds_of({**claim, "records": {"agent": "none of them"}}) == 0


@given(wins=st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_an_interval_over_seeds_is_never_narrower_than_that_over_levels(wins: list[int]) -> None:
    runs = [{"success": won / 200, "success_ci95": list(wilson_interval(won, 200))} for won in wins]
    found = success_interval(runs)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low
    if len(set(wins)) == 1:
        assert (found.low, found.high) == pytest.approx(wilson_interval(wins[0], 200))
