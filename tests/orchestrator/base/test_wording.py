from orchestrator.base.wording import counted, signed


def test_a_number_stands_with_its_noun():
    assert [counted(n, "photo") for n in (0, 1, 2, None)] == [
        "0 photos", "1 photo", "2 photos", "? photos",
    ]  # fmt: skip
    assert counted(1, "hypothesis", "hypotheses") == "1 hypothesis"
    assert counted(3, "hypothesis", "hypotheses") == "3 hypotheses"


def test_a_difference_that_rounds_to_zero_has_no_minus():
    assert [signed(value) for value in (-0.0004, 0.0, 0.0123, -0.0123, None)] == [
        "+0.000", "+0.000", "+0.012", "-0.012", "?",
    ]  # fmt: skip
