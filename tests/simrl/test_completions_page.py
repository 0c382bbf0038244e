"""The page of sampled completions, whatever a model wrote."""

from hypothesis import given
from hypothesis import strategies as st

from star.simrl.completions_page import completions_page

texts = st.text(max_size=20) | st.sampled_from(
    ["</pre></td>", "<script>alert(1)</script>", "\ud800", "\u202e", "x" * 9000]
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": texts,
            "target": texts,
            "completion": texts,
            "rewards": st.fixed_dictionaries({"similarity": st.floats(-1, 1), "toolrl": st.floats(-3, 4)}),
            "format": st.sampled_from([0.0, 1.0]),
            "content": st.floats(0, 1),
            "kept": st.booleans(),
        }
    ),
    min_size=1,
    max_size=3,
)


@given(tables=st.dictionaries(st.integers(1, 500), rows, max_size=3))
def test_text_of_a_model_stays_text(tables):
    page = completions_page(tables)
    page.encode()
    assert "<script" not in page
    assert page.count("<pre>") == page.count("</pre>") == 3 * sum(map(len, tables.values()))
    assert page.count("<details") == len(tables)
    assert len(page) < 40_000 + 15_000 * sum(map(len, tables.values()))


def test_the_format_is_read_strictly_and_rewards_are_labelled():
    row = {"prompt": "", "target": "", "completion": "", "rewards": {"similarity": 0.0}, "content": 0.0, "kept": True}
    page = completions_page({1: [{**row, "format": 0.0}, {**row, "format": 1.0}]})
    assert "2 completions, 1 of valid format" in page
    assert page.count("<td>format error</td>") == page.count("<td>valid</td>") == 1
    for heading in ("Format", "similarity (official reading)", "Content (official reading)"):
        assert f'<th scope="col">{heading}</th>' in page


def test_an_empty_page_says_so():
    assert "No step was sampled yet" in completions_page({})
