"""Randomness is a function of (seed, step, sample, stream), and of nothing else."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.rng import Rng

F64 = torch.float64


def rng(seed=0, step=0, batch=8):
    return Rng.for_batch(seed, step, batch)


def draws(r, stream="eps"):
    return torch.cat([r.normal(stream, (3, 2), F64).flatten(1), r.uniform(stream, (2,))], 1)


@settings(max_examples=30)
@given(seed=st.integers(-(2**63), 2**64), step=st.integers(0, 2**40), start=st.integers(0, 7), size=st.integers(1, 4))
def test_pieces_of_a_batch_see_the_numbers_of_the_whole(seed, step, start, size):
    whole = rng(seed, step, 12)
    assert torch.equal(draws(whole.select(start, start + size)), draws(whole)[start : start + size])


def test_processes_see_the_numbers_of_one():
    """Two processes that take the samples in turn, or in blocks, together see what a single one does."""
    whole = draws(rng(batch=8))
    for ids in ((0, 2, 4, 6), (1, 3, 5, 7), (4, 5, 6, 7), (7, 0)):
        assert torch.equal(draws(Rng(0, 0, ids)), whole[list(ids)])


def test_the_batch_size_and_the_order_of_draws_do_not_matter():
    r = rng()
    first = draws(r, "a")
    draws(r, "b")
    assert torch.equal(draws(r, "a"), first)
    assert torch.equal(draws(rng(batch=3), "a"), first[:3])


def test_every_part_of_the_key_changes_the_numbers():
    variants = {
        "seed": rng(seed=1),
        "step": rng(step=1),
        "samples": Rng(0, 0, tuple(range(8, 16))),
        "scope": rng().fork("phase"),
        "other scope": rng().fork("other"),
        "nested scope": rng().fork("phase").fork("phase"),
    }
    seen = [draws(rng()), draws(rng(), "eps2"), *(draws(r) for r in variants.values())]
    for a, b in itertools.combinations(seen, 2):
        assert not bool((a == b).any())
    # scope and stream are kept apart
    assert not torch.equal(draws(rng().fork("a"), "b"), draws(rng(), "a/b"))


def test_a_step_is_reached_from_any_other():
    assert torch.equal(draws(rng(step=5).at_step(9)), draws(rng(step=9)))
    assert torch.equal(draws(rng(step=5).fork("x").at_step(9)), draws(rng(step=9).fork("x")))


@pytest.mark.parametrize("other", ["step", "sample", "stream", "seed", "scope"])
def test_streams_are_independent(other):
    """Correlations of pairs of streams, and of their squares, stay within five standard errors of zero."""
    n = 40000
    base = rng(batch=1).normal("a", (n,), F64)[0]
    twin = {
        "step": rng(step=1, batch=1).normal("a", (n,), F64),
        "sample": Rng(0, 0, (1,)).normal("a", (n,), F64),
        "stream": rng(batch=1).normal("b", (n,), F64),
        "seed": rng(seed=1, batch=1).normal("a", (n,), F64),
        "scope": rng(batch=1).fork("a").normal("a", (n,), F64),
    }[other][0]
    limit = 5 / math.sqrt(n)
    assert abs((base * twin).mean().item()) < limit
    assert abs(((base**2 - 1) * (twin**2 - 1)).mean().item() / 2) < limit
    lagged = torch.stack([(base[:-k] * base[k:]).mean() for k in (1, 2, 3, 64)])
    assert bool((lagged.abs() < limit).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_moments_of_the_normal(dtype):
    x = rng(batch=40).normal("a", (5000,), dtype).double().flatten()
    assert x.dtype == F64
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (x**power).mean().item() == pytest.approx(moment, abs=5 * math.sqrt(spread / len(x)))
    assert rng().normal("a", (2,), torch.bfloat16).dtype == torch.bfloat16
    assert rng().normal_like("a", torch.zeros(8, 3, dtype=dtype)).dtype == dtype


def test_moments_of_the_uniform():
    u = rng(batch=40).uniform("a", (5000,)).flatten()
    assert u.dtype == F64
    assert 0 <= u.min().item() < 1e-3 < 0.999 < u.max().item() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * len(u)))
    counts = torch.histc(u, 20, 0, 1) / len(u)
    assert_close(counts, torch.full((20,), 0.05, dtype=F64), rtol=0, atol=5 * math.sqrt(0.05 / len(u)))


def test_integers_are_even_and_below_the_bound():
    drawn = rng(batch=20000).integers("a", 7)
    assert drawn.dtype == torch.int64
    assert_close(drawn.bincount() / 20000, torch.full((7,), 1 / 7), rtol=0, atol=0.015)


def test_shared_numbers_do_not_know_the_samples():
    whole, part = rng(batch=8), Rng(0, 0, (5, 6))
    assert whole.shared_uniform("a") == part.shared_uniform("a")
    assert whole.shared_integer("a", 1000) == part.shared_integer("a", 1000)
    over_steps = [rng(step=i).shared_uniform("a") for i in range(2000)]
    assert np.mean(over_steps) == pytest.approx(0.5, abs=5 / math.sqrt(12 * 2000))
    assert {rng(step=i).shared_integer("a", 3) for i in range(60)} == {0, 1, 2}
    # and are not the first sample's own
    assert whole.shared_uniform("a") != whole.uniform("a")[0].item()


def test_no_global_generator_is_touched():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draws(rng())
    rng().shared_integer("a", 5)
    with rng().network_noise("dropout"):
        torch.nn.functional.dropout(torch.ones(50), 0.5)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_network_noise_is_the_same_mask_for_the_same_stream():
    def mask(r, stream):
        with r.network_noise(stream):
            return torch.nn.functional.dropout(torch.ones(200), 0.5)

    first = mask(rng(), "dropout")
    torch.manual_seed(1)
    assert torch.equal(mask(rng(), "dropout"), first)
    assert not torch.equal(mask(rng(), "other"), first)
    assert not torch.equal(mask(rng(step=1), "dropout"), first)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), rng().network_noise("dropout"):
        raise ZeroDivisionError
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_batch_is_empty():
    assert Rng(0, 0, ()).normal("a", (3,)).shape == (0, 3)
    assert Rng(0, 0, ()).torch_seed("a") >= 0


def test_the_numbers_themselves_do_not_change():
    """A run resumed under a later version must see the same noise: these are the first ever drawn."""
    r = Rng(1234, 56, (7,), scope="/student")
    assert r.normal("eps", (2,), F64)[0].tolist() == pytest.approx([0.7683213214070201, -0.1368894088668747], abs=1e-15)
    assert r.uniform("t").item() == pytest.approx(0.6539196770549736, abs=1e-15)
    assert r.shared_uniform("t") == pytest.approx(0.9657398605933403, abs=1e-15)


def test_phases_share_draws_only_where_they_ask_to():
    one, other = (Rng(3, 7, (0, 1, 2), phase) for phase in ("discriminator", "student"))
    assert not torch.equal(one.normal("x", (4,)), other.normal("x", (4,)))
    shared = one.across_phases("method")
    assert torch.equal(shared.normal("x", (4,)), other.across_phases("method").normal("x", (4,)))
    assert torch.equal(shared.select(1, 3).normal("x", (4,)), shared.normal("x", (4,))[1:])
    apart = [one.normal("x", (4,)), one.across_phases("another").normal("x", (4,)), shared.at_step(8).normal("x", (4,))]
    assert not any(torch.equal(shared.normal("x", (4,)), each) for each in apart)
