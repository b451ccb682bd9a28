from segmenter_jax.benchmark.markdown import rows


def test_a_result_is_a_row_of_what_it_has():
    result = {"step_ms": 12.34567, "why": "a|b"}
    assert rows("S/16", result, ["step_ms", "missing", "why"]) == ["| S/16 | 12.35 |  | a/b |"]


def test_names_with_one_ending_and_elements_of_a_list_have_a_row_each():
    result = {"xla_ms": 1, "fast_ms": 2, "fast_mb": 3, "parts": [{"ms": 4}, {"ms": 5}]}
    assert rows("t", result, ["*_ms", "*_mb"]) == ["| t | xla | 1 |  |", "| t | fast | 2 | 3 |"]
    assert rows("t", result, ["parts.ms"]) == ["| t | 4 |", "| t | 5 |"]
