"""Video families beyond the laws of all families: schedules, positions, frames, what is refused."""

from __future__ import annotations

import json
import shutil

import diffusers
import pytest
import torch
from core.model_bed import PROMPTS, call_options, stock, teacher, watched
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.models.table import FAMILIES, find_family
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.process import VP, RectifiedFlow, process_from_scheduler, times
from fewstep.core.recipe import RoleSpec

VIDEO = [family.name for family in FAMILIES if family.media == "video"]


def edited(found, folder, component, *, size=None, network=None, guidance=1.0, **changes):
    """The teacher's pipeline in another folder, with a network or with entries of a component's config changed."""
    shutil.copytree(found.folder.path, folder)
    file = folder / component if component.endswith(".json") else folder / component / "config.json"
    file = file if file.is_file() else folder / component / "scheduler_config.json"
    if network is not None:
        network.save_pretrained(folder / component)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return Teacher.find(str(folder), size=size or found.size, guidance=guidance)


def gap(found):
    """The largest difference between the pipeline's predictions and ours."""
    gaps = []
    denoiser, cond = found.denoiser(None), found.encode(PROMPTS).cond
    process = denoiser.process
    for output, time, latents in watched(found, 1.0):
        t = times(float(time) / (process.time_scale if isinstance(process, RectifiedFlow) else 1.0), len(PROMPTS))
        with torch.no_grad():
            ours = denoiser.predict(found.family.from_pipeline(latents, found.shape), t, cond).value
        gaps.append(float((found.family.to_pipeline(ours) - output).abs().max()))
        assert float(output.std()) > 1e-3
    return max(gaps)


@pytest.mark.parametrize("kind", [diffusers.CogVideoXDDIMScheduler, diffusers.CogVideoXDPMScheduler])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cogvideox_schedules_are_read_exactly(kind, rescaled, shift):
    scheduler = kind(prediction_type="v_prediction", rescale_betas_zero_snr=rescaled, snr_shift_scale=shift)
    for config in (scheduler.config, {"_class_name": kind.__name__, **scheduler.config}):
        process, prediction = process_from_scheduler(config)
        assert prediction == "v"
        assert isinstance(process, VP)
        assert torch.equal(process.alphas_cumprod, scheduler.alphas_cumprod.double())
    t = torch.arange(1000, dtype=torch.float64)
    assert_close(process.coefficients(t).alpha ** 2, scheduler.alphas_cumprod.double(), atol=1e-12, rtol=1e-9)
    assert (process.coefficients(t).alpha[-1] == 0) == rescaled


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"use_rotary_positional_embeddings": False}, Size(16, 16, 9)),
        ({"use_rotary_positional_embeddings": False}, Size(24, 16, 5)),
        ({"sample_width": 8}, Size(24, 16, 5)),
        ({"patch_size_t": 2, "patch_bias": False, "sample_height": 8, "sample_width": 8}, Size(24, 16, 13)),
    ],
    ids=["2b", "2b elsewhere", "5b elsewhere", "1.5"],
)
def test_cogvideox_positions_are_the_pipelines(changes, size, tmp_path):
    found = teacher("cogvideox")
    torch.manual_seed(0)
    config = found.folder.load("transformer").config
    network = diffusers.CogVideoXTransformer3DModel.from_config(dict(config) | changes)
    assert gap(edited(found, tmp_path / "other", "transformer", network=network, size=size)) < 1e-6


@pytest.mark.parametrize(
    ("name", "network", "size"),
    [
        ("wan", {"patch_size": [1, 2, 2]}, Size(480, 832, 81)),
        ("cogvideox", {"sample_height": 60, "sample_width": 90, "sample_frames": 49}, Size(480, 720, 49)),
        (
            "cogvideox",
            {"sample_height": 96, "sample_width": 170, "sample_frames": 81, "patch_size_t": 2},
            Size(768, 1360, 85),
        ),
        ("hunyuan-video", {"patch_size": 2, "patch_size_t": 1}, Size(720, 1280, 129)),
        ("ltx", {"patch_size": 1, "patch_size_t": 1}, Size(512, 704, 161)),
    ],
)
def test_default_sizes_are_the_pipelines_and_fit(name, network, size):
    family = find_family(name)
    vae = {"block_out_channels": [1] * 4}
    if name == "ltx":
        vae |= {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [True, True, True, False]}
    network = {"in_channels": 16, "patch_size": 2} | network
    assert family.default_size(network, vae) == size
    factor, slower = (32, 8) if name == "ltx" else (8, 4)
    shape = (16, (size.frames - 1) // slower + 1, size.height // factor, size.width // factor)
    assert family.sample_shape(network, vae, size) == shape


@pytest.mark.parametrize(("frames", "near"), [(0, 1), (7, 9), (8, 9), (10, 9), (-3, 1)])
@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan-video"])
def test_frames_the_autoencoder_cannot_take_are_refused(name, frames, near):
    found = teacher(name)
    with pytest.raises(UserError, match=rf"{frames} frames: this {name} model takes 4k\+1 frames, such as {near}$"):
        _ = Teacher(found.folder, Size(16, 16, frames)).shape
    assert Teacher(found.folder, Size(16, 16, near)).shape[1] == (near - 1) // 4 + 1


def test_wan_pairs_of_networks_are_refused(tmp_path):
    found = teacher("wan")
    for change in ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, {"boundary_ratio": 0.875}):
        with pytest.raises(UserError, match=r"one network for all of them: use Wan 2\.1"):
            edited(found, tmp_path / next(iter(change)), "model_index.json", **change)
    none = {"transformer_2": [None, None], "boundary_ratio": None}
    assert edited(found, tmp_path / "one", "model_index.json", **none).family.name == "wan"


def test_wan_pipelines_with_a_time_per_token_predict_the_same(tmp_path):
    assert gap(edited(teacher("wan"), tmp_path / "expanded", "model_index.json", expand_timesteps=True)) < 1e-5


def test_the_tiny_llama_tokenizer_makes_as_much_of_the_template_as_the_pipeline_cuts_off():
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as template

    tokenizer = teacher("hunyuan-video").folder.load("tokenizer")
    start, _ = template["template"].split("{}")
    ids = tokenizer(start)["input_ids"]
    assert len(ids) == template["crop_start"]
    assert tokenizer.unk_token_id not in ids


def test_ltx_times_are_shifted_for_the_length_of_the_video(tmp_path):
    found = edited(teacher("ltx"), tmp_path / "plain", "scheduler", shift_terminal=None, base_image_seq_len=2)
    for size in (found.size, Size(96, 64, 17)):
        larger = Teacher(found.folder, size)
        process, _ = larger.reading()
        steps = torch.stack([time for _, time, _ in watched(larger, 1.0, steps=4)])
        even = torch.linspace(1, 0.25, 4, dtype=torch.float64)
        assert_close(process.unit_to_time(even) * 1000, steps.double(), rtol=1e-6, atol=1e-4)
    assert larger.reading()[0].shift > found.reading()[0].shift > 2.5


def test_ltx_refuses_an_autoencoder_its_positions_are_not_made_for(tmp_path):
    found = edited(teacher("ltx"), tmp_path / "other", "vae", patch_size=2)
    with pytest.raises(UserError, match="autoencoder of 16 pixels and 8 frames"):
        _ = found.shape


def shown(found, x):
    """What the pipeline shows of latents ``x``, pixels in [0, 1]."""
    pipe = stock(found)
    stepped = SchedulerOutput(prev_sample=found.family.to_pipeline(x))  # by place and by name
    pipe.scheduler.step = lambda *args, **kwargs: stepped
    options = call_options(found) | {"output_type": "pt"}
    return pipe(PROMPTS[: len(x)], num_inference_steps=2, guidance_scale=1.0, **options).frames.transpose(1, 2)


def same_pixels(found):
    x = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(0))
    ours = found.vae().decode(x)
    assert ours.shape == (1, 3, found.size.frames, found.size.height, found.size.width)
    assert_close((ours / 2 + 0.5).clamp(0, 1), shown(found, x), atol=1e-5, rtol=1e-5)
    assert found.vae().encode(ours).shape == x.shape


@pytest.mark.parametrize("name", VIDEO)
def test_videos_are_decoded_as_the_pipeline_decodes_them(name):
    same_pixels(teacher(name))


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("ltx", {"timestep_conditioning": True}, Size(64, 64, 9)),
        (
            "wan",
            {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8},
            Size(32, 32, 9),
        ),
    ],
    ids=["ltx 0.9.1", "wan 2.2 5b"],
)
def test_later_autoencoders_decode_as_in_their_pipeline(name, changes, size, tmp_path):
    found = teacher(name)
    torch.manual_seed(0)
    before = found.folder.load("vae")
    vae = type(before).from_config(dict(before.config) | changes)
    same_pixels(edited(found, tmp_path / "later", "vae", network=vae, size=size))


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.slow
def test_adapters_train_with_and_without_checkpointing_alike(name):
    found = teacher(name)
    encoded = found.encode(PROMPTS[:1])
    x = torch.randn(1, *found.shape, generator=torch.Generator().manual_seed(0))
    specs = (RoleSpec("student", init="teacher"),)
    grads = []
    for checkpointing in (False, True):
        denoiser = found.denoiser(encoded.null)
        config = RolesConfig(mode="lora", rank=2, checkpointing=checkpointing)
        student = build_roles(denoiser, specs, config, 0)["student"]
        t = times(float(denoiser.process.unit_to_time(torch.tensor(0.5))), 1)
        student.predict(x, t, encoded.cond).value.square().sum().backward()
        grads.append([parameter.grad for parameter in student.backbone.parameters()])
    assert all(grad is not None for grad in grads[0])
    assert sum(float(grad.abs().sum()) > 0 for grad in grads[0]) == len(grads[0]) // 2  # lora_B; lora_A waits for it
    for plain, again in zip(*grads, strict=True):
        assert_close(again, plain, rtol=1e-4, atol=1e-7)


def kept_elements(name, checkpointing):
    """How many elements of activations a student's forward pass keeps, inputs of recomputed parts apart."""
    found = teacher(name)
    denoiser, cond = found.denoiser(None), found.encode(PROMPTS).cond
    config = RolesConfig(mode="lora", rank=2, checkpointing=checkpointing)
    student = build_roles(denoiser, (RoleSpec("student", init="teacher"),), config, 0)["student"]
    kept, weights = 0, {id(p) for p in student.backbone.network.parameters()}

    def pack(x):
        nonlocal kept
        kept += 0 if id(x) in weights else x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        student.predict(torch.zeros(2, *found.shape), times(500.0, 2), cond)
    return kept


@pytest.mark.parametrize("name", ["modelscope", "animatediff"])
@pytest.mark.slow
def test_checkpointing_reaches_what_runs_over_frames(name):
    assert kept_elements(name, True) < 0.25 * kept_elements(name, False)
