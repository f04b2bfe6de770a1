import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ifru.parameters import ravel, unravel

shapes = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)


@given(shapes=shapes, seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_unravel_inverts_ravel_and_keeps_names_shapes_and_order(shapes, seed):
    g = torch.Generator().manual_seed(seed)
    parameters = {f"p{k}": torch.randn(shape, generator=g, dtype=torch.float64) for k, shape in enumerate(shapes)}
    vector = ravel(parameters)
    assert vector.tolist() == [x for tensor in parameters.values() for x in tensor.flatten().tolist()]
    back = unravel(vector, parameters)
    assert list(back) == list(parameters)
    for name, tensor in parameters.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_unravel_gives_views_so_that_nothing_is_copied():
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    vector = torch.zeros(8)
    unravel(vector, like)["b"][1] = 7.0
    assert vector.tolist() == [0.0] * 7 + [7.0]


@pytest.mark.parametrize("size", [7, 9])
def test_unravel_refuses_a_vector_of_another_length(size):
    with pytest.raises(RuntimeError, match="split"):
        unravel(torch.zeros(size), {"a": torch.zeros(2, 3), "b": torch.zeros(2)})
