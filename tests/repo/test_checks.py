"""The net under the other tests is there: shape annotations are checked while tests run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from fewstep.core.guidance import rescale


def test_a_wrong_shape_is_refused():
    fine = torch.ones(2, 3)
    rescale(fine, fine, 0.5)
    with pytest.raises(jaxtyping.TypeCheckError):
        rescale(fine, torch.ones(2, 4), 0.5)
