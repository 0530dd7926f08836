from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_operator import quantities


@pytest.mark.parametrize(
    ("quantity", "number"),
    [
        (2, 2),
        ("500m", Decimal("0.5")),
        ("1.5Gi", 1.5 * 2**30),
        ("80G", 80 * 10**9),
        ("1e3", 1000),
        ("2E", 2 * 10**18),
        ("1Ei", 2**60),
        ("0", 0),
    ],
)
def test_reads_what_kubernetes_writes(quantity, number):
    assert quantities.parse(quantity) == number


@pytest.mark.parametrize("text", ["", "many", "5 Gi", "Gi", "1x"])
def test_refuses_anything_else(text):
    with pytest.raises(ValueError, match="not a quantity"):
        quantities.parse(text)


@given(st.integers(0, 10**6))
def test_thousandths_and_wholes_agree(number):
    assert quantities.parse(f"{number * 1000}m") == quantities.parse(number)
