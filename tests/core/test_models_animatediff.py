"""AnimateDiff pipelines joined of a Stable Diffusion and a motion adapter, and the schedule motion modules know."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from core.model_bed import PROMPTS, stock, teacher
from diffusers import LCMScheduler, MotionAdapter
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.animatediff import join
from fewstep.core.models.files import quiet
from fewstep.core.models.loading import Teacher
from fewstep.core.models.stock import _original_steps
from fewstep.core.process import times


def adapter(folder: Path, *, widths: tuple[int, ...] = (16, 32), still: bool = False) -> Path:
    """A small motion adapter on disk; a ``still`` one adds nothing to any frame."""
    torch.manual_seed(0)
    made = MotionAdapter(widths, motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=8)
    for name, parameter in made.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(parameter) if still else torch.nn.init.normal_(parameter, std=0.1)
    with quiet():
        made.save_pretrained(folder)
    return folder


def joined(tmp_path: Path, *, still: bool = False) -> Teacher:
    join(str(teacher("sd").folder.path), str(adapter(tmp_path / "adapter", still=still)), tmp_path / "joined")
    found = Teacher.find(str(tmp_path / "joined"))
    found.size = type(found.size)(16, 16, 4)
    return found


@pytest.mark.parametrize("still", [True, False])
def test_with_a_still_adapter_every_frame_is_the_pictures_own(tmp_path, still):
    found, pictures = joined(tmp_path, still=still), teacher("sd")
    encoded = pictures.encode(PROMPTS[:1])
    x = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(0))
    t = times(400.0, 1)
    with torch.no_grad():
        clip = found.denoiser(found.encode(PROMPTS[:1]).null).backbone(x, t.float(), encoded.cond)
        alone = pictures.denoiser(encoded.null).backbone
        frames = torch.stack([alone(x[:, :, i], t.float(), encoded.cond) for i in range(x.shape[2])], 2)
    assert torch.allclose(clip, frames, atol=1e-5) == still


def test_the_joined_pipeline_is_whole_and_has_the_schedule_of_motion_modules(tmp_path):
    found = joined(tmp_path)
    config = found.folder.config("scheduler")
    assert (config["beta_schedule"], config["clip_sample"], config["steps_offset"]) == ("linear", False, 1)
    betas = torch.linspace(config["beta_start"], config["beta_end"], 1000, dtype=torch.float64)
    alpha = found.reading()[0].coefficients(torch.tensor([499.0])).alpha
    assert_close(float(alpha) ** 2, float((1 - betas)[:500].prod()), rtol=1e-6, atol=0)  # 0.162, not 0.278
    assert type(stock(found).unet).__name__ == "UNetMotionModel"


def wrong(case: str, tmp_path: Path) -> tuple[str, str]:
    """What is given for the pictures and the adapter."""
    pictures, motion = str(teacher("sd").folder.path), str(adapter(tmp_path / "adapter"))
    if case == "no adapter":
        return pictures, str(teacher("sd").folder.path / "unet")
    if case == "other widths":
        return pictures, str(adapter(tmp_path / "other", widths=(16, 48)))
    if case == "no pictures":
        return str(teacher("wan").folder.path), motion
    if case == "cut off":
        file = next(Path(motion).glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:1000])
    if case == "empty":
        shutil.rmtree(motion)
        Path(motion).mkdir()
    return pictures, motion


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no adapter", "holds a UNet2DConditionModel"),
        ("other widths", "does not fit"),
        ("no pictures", "go into a Stable Diffusion"),
        ("cut off", "cannot be read as a MotionAdapter"),
        ("empty", r"no config\.json"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(tmp_path, case, message):
    with pytest.raises(UserError, match=message) as error:
        join(*wrong(case, tmp_path), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("levels", [1000, 900, 50])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("original", [8, 10, 33, 50])
def test_what_lcm_picks_by_itself_is_found_again(levels, steps, original):
    scheduler = LCMScheduler(num_train_timesteps=levels, original_inference_steps=original)
    scheduler.set_timesteps(steps)
    picked = scheduler.timesteps.tolist()
    table = LCMScheduler(num_train_timesteps=picked[0] + 1, original_inference_steps=_original_steps(picked))
    if picked[0] + 1 == levels:  # else the table is cut, and another rule may or may not give the same times
        table.set_timesteps(steps)
        assert table.timesteps.tolist() == picked


def test_times_no_rule_gives_are_left_to_the_caller():
    assert _original_steps([999, 700, 11]) == 3
