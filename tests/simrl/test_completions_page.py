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


def test_an_empty_page_says_so():
    assert "No step was sampled yet" in completions_page({})
