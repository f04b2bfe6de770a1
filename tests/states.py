"""States as a checkpoint holds them and ids as they are compared, for the tests of both."""

import io

import torch


def text(value):
    """The text of an id, by which it is compared."""
    return str(int(value)) if isinstance(value, float) else str(value)


def assert_same(one, other):
    """Assert that two states, or two dicts of tensors and plain values, are the same to the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def through_a_file(state):
    """Save and load as Lightning does, with nothing but plain types allowed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
