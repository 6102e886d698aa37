"""TopK in pieces against a stable sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from blu_export.graph.topk import top_k


@pytest.mark.parametrize("limit", [None, 3, 4])
@given(
    scores=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 2), st.integers(1, 12)), elements=st.integers(-3, 3).map(np.float32)
    ),
    data=st.data(),
)
def test_equals_a_stable_sort(run_graph: Any, limit: int | None, scores: NDArray[Any], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, scores.shape[1]))
    values, index = run_graph(lambda graph, x: top_k(graph, x, k, limit), x=scores)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))
