"""Warping by depth: shifted planes in closed form, occlusion, and solids whose views agree by construction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.shapes_bed import cameras
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.metrics.views import View, view_consistency, warp
from fewstep.threed.shapes import build, read, render

SIZE = 16


def plane(shift: float, depth: float = 2.0, seed: int = 0) -> View:
    """A camera moved by ``shift`` to the right before a plane; the focal length is 16, one pixel is 1/8 at depth 2."""
    w = torch.eye(4, dtype=torch.float64)[None].clone()
    w[:, 0, 3] = -shift
    k = torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]], dtype=torch.float64)
    image = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return View(image, torch.full((1, 1, SIZE, SIZE), depth, dtype=torch.float64), w, k)


def test_a_view_warped_to_itself_is_itself():
    view = plane(0)
    warped = warp(view, view, tolerance=1e-6)
    assert warped.visible[..., 1:-1, 1:-1].all()
    assert_close(warped.image, view.image)
    found = view_consistency(view, view, tolerance=1e-6)
    assert float(found.psnr) > 200
    assert float(found.share) >= (SIZE - 2) ** 2 / SIZE**2


@pytest.mark.parametrize("pixels", [1, 3, -4])
def test_a_camera_moved_before_a_plane_shifts_the_picture(pixels):
    view, other = plane(0), plane(pixels / 8, seed=1)
    warped = warp(view, other, tolerance=1e-6)
    assert_close(
        warped.image[warped.visible.expand(-1, 3, -1, -1)],
        other.image.roll(pixels, 3)[warped.visible.expand(-1, 3, -1, -1)],
    )
    columns = warped.visible[0, 0, 5]
    assert int(columns.sum()) in range(SIZE - abs(pixels) - 2, SIZE - abs(pixels) + 1)
    assert not (columns[:pixels] if pixels > 0 else columns[pixels:]).any()


def test_colours_off_by_a_constant_give_its_psnr():
    view = plane(0)
    other = replace(view, image=view.image + 0.01)
    assert float(view_consistency(view, other, tolerance=1e-6).psnr) == pytest.approx(40)


def test_what_another_camera_does_not_see_does_not_count():
    view = plane(0)
    for other in (
        plane(0, depth=1.5),  # something stands before it
        plane(100),  # looks elsewhere
        replace(view, depth=0 * view.depth),  # sees nothing
        replace(view, world_to_camera=torch.diag(torch.tensor([-1.0, 1, -1, 1])).double()[None]),  # looks away
    ):
        found = view_consistency(view, other, tolerance=0.1)
        assert float(found.share) == 0
        assert torch.isnan(found.psnr).all()
    half = view.depth.clone()
    half[..., 8:] = 1.5
    assert float(view_consistency(view, replace(view, depth=half), tolerance=0.1).share) == pytest.approx(0.5, abs=0.15)


def solid_views(text: str, azimuths: list[float], size: int = 48) -> list[View]:
    w, k = cameras(azimuths, size)
    seen = render(build(read(text)), w, k, size, size)
    return [View(seen.rgb[i : i + 1], seen.depth[i : i + 1], w[i : i + 1], k[i : i + 1]) for i in range(len(azimuths))]


def test_views_of_one_solid_agree_and_views_of_two_do_not():
    a, b, behind = solid_views("a red cone on a blue box", [20, 45, 200])
    wrong = replace(b, image=solid_views("a green cone on a yellow box", [45])[0].image)
    true = view_consistency(a, b, tolerance=0.05)
    assert float(true.psnr) > 25
    assert 0.4 < float(true.share) < 1
    assert float(view_consistency(a, wrong, tolerance=0.05).psnr) < 10
    assert float(view_consistency(a, behind, tolerance=0.05).share) < 0.3


def test_a_batch_is_its_pairs():
    a, b = solid_views("a cyan torus on a red cylinder", [0, 30], 24)
    pair = View(
        *(torch.cat((getattr(a, n), getattr(b, n))) for n in ("image", "depth", "world_to_camera", "intrinsics"))
    )
    back = View(
        *(torch.cat((getattr(b, n), getattr(a, n))) for n in ("image", "depth", "world_to_camera", "intrinsics"))
    )
    both = view_consistency(pair, back, tolerance=0.05)
    each = [view_consistency(x, y, tolerance=0.05) for x, y in ((a, b), (b, a))]
    assert_close(both.psnr, torch.cat([e.psnr for e in each]))
    assert_close(both.share, torch.cat([e.share for e in each]))


def test_views_that_cannot_be_warped_are_refused():
    view = plane(0)
    with pytest.raises(UserError, match="positive"):
        warp(view, view, tolerance=0)
    with pytest.raises(UserError, match="batches"):
        warp(
            view,
            View(*(getattr(view, n)[:0] for n in ("image", "depth", "world_to_camera", "intrinsics"))),
            tolerance=1,
        )
