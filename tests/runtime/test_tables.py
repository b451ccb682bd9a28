from segmenter_jax.runtime.tables import align


def test_numbers_are_flush_right_and_text_is_flush_left():
    rows = [
        ["", "class", "IoU", "pixels"],
        ["0", "sky", "91.5 %", "1000"],
        ["12", "3d thing", "-", ""],
        ["", "rest", "nan", "7"],
    ]
    assert align(rows) == [
        "    class        IoU  pixels",
        " 0  sky       91.5 %    1000",
        "12  3d thing       -",
        "    rest         nan       7",
    ]


def test_a_lone_row_and_no_row():
    assert align([["a", "1"]]) == ["a  1"]
    assert align([]) == []
