"""Proof that the stored steps of a torch projector are still torch's."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.parity


def test_fixture_is_what_torch_says_today() -> None:
    pytest.importorskip("torch")
    from tests.transfer import make_projector_fixtures as maker

    stored, inputs = maker.read_stored(), maker.draw()
    for name, values in inputs.items():
        np.testing.assert_array_equal(stored.pop(name), values, err_msg=name)
    answers = maker.ask_torch(inputs)
    assert answers.keys() == stored.keys()
    for name, values in answers.items():
        np.testing.assert_allclose(values, stored[name], rtol=1e-6, atol=1e-7, err_msg=name)
