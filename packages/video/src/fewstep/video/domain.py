"""The video domain: text-to-video pipelines of diffusers as teachers, clips or prompts as data, samples as latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.data.captioned import CaptionedFolder
from fewstep.core.data.prepared import Prepared, key_times_at
from fewstep.core.data.problem import Decoder, pipeline_problem
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.shown import Shown, encode_captions, shown_prompts, shown_rows
from fewstep.core.data.source import Latents, Texts, TextSource, blank_source, unique
from fewstep.core.domain import DataSource, Problem
from fewstep.core.errors import check
from fewstep.core.image.pictures import Folder, Part
from fewstep.core.models.given import ImageToVideoTeacher
from fewstep.core.models.loading import DTYPES, Teacher
from fewstep.core.models.settings import open_teacher
from fewstep.core.process import Process
from fewstep.core.recipe import RoleSpec
from fewstep.video.appearance.captions import Encoder, ToldCaptions, caption_encoder, centred
from fewstep.video.appearance.discriminator import FrameDiscriminator
from fewstep.video.clip_source import EncodedClips, open_clips
from fewstep.video.evaluation import VideoMetrics
from fewstep.video.frame_decoder import FrameDecoder
from fewstep.video.image_set import BlankPictures, WithImages
from fewstep.video.image_to_video import (
    from_text_alone,
    shown_with_frames,
    with_first_frames,
    without_stock_exports,
)
from fewstep.video.previews import Remembered, write_previews
from fewstep.video.recipes.appearance import frame_discriminator
from fewstep.video.settings import VideoConfig
from fewstep.video.shipped import shipped_teachers, teacher_path
from fewstep.video.watching.watch import make_watch


class VideoDomain:
    """Text-to-video pipelines of diffusers, distilled from clips, from latents, or from prompts alone."""

    name = "video"
    summary = (
        "text-to-video pipelines (ModelScope, AnimateDiff, Wan, CogVideoX, HunyuanVideo, LTX) from clips or prompts"
    )
    config_type: type = VideoConfig
    configs = Path(__file__).parent / "configs"

    def process(self, config: VideoConfig) -> Process:
        """Return the process of the configured pipeline, from its scheduler's config."""
        return find_teacher(config, weights=False).reading()[0]

    def build(self, config: VideoConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
        """Return the problem with every role built; UserError for what this domain cannot give."""
        teacher = find_teacher(config, weights=torch.device(device).type != "meta")
        decoder = Decoder(teacher, config.model, device)
        samples, shown = load_samples(config, teacher, decoder.encode, device)
        encoder = find_encoder(config, teacher, samples.texts, specs, device)
        if encoder is not None:
            samples.texts = ToldCaptions(samples.texts, encoder)
        if torch.device(device).type == "meta":
            specs = [judging_shapes(spec) for spec in specs]
        given = config.given_frames
        frames = with_first_frames(samples, given, config.given_none) if given else samples
        source = with_images(config, teacher, frames, device, encoder)
        shown = shown_with_frames(shown, samples, given) if given else shown
        metrics = VideoMetrics(config.evaluation, teacher.size, decoder.decode, shown=shown, teacher=teacher)
        decode = Remembered(decoder.decode)

        def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
            return write_previews([(label, decode(latents)) for label, latents in rows], stem, config.fps)

        def verdict(student: Tensor, against: Tensor) -> tuple[str, str]:
            found = metrics.verdict(student, against)
            return found.mark, found.why

        problem = pipeline_problem(
            teacher,
            config.model,
            config.roles,
            specs,
            source,
            samples.texts.null,
            shown,
            evaluate=metrics.evaluate,
            render=render,
            seed=seed,
            device=device,
        )
        if given:
            from_text_alone(problem)
            without_stock_exports(problem, specs)
        if judges_frames(specs):
            check_told(problem.actors.roles["discriminator"], encoder)
            check(
                "vae" not in config.model.offload,
                "domain.model.offload: gradients of frames flow through the autoencoder: leave 'vae' out",
            )
            problem.actors.roles["decoder"] = FrameDecoder(decoder, recompute=config.roles.checkpointing)
        problem.watch, problem.verdict = make_watch(config.watch, decode), verdict
        problem.notes["metric"] = metrics.protocol
        return problem


def find_teacher(config: VideoConfig, *, weights: bool = True) -> Teacher:
    """Return the configured pipeline; UserError for what is none, and for a pipeline of images."""
    kind = ImageToVideoTeacher if config.given_frames else Teacher
    teacher = open_teacher(teacher_path(config.teacher), config.model, weights=weights, kind=kind)
    if config.teacher in shipped_teachers():
        teacher.folder = replace(teacher.folder, name=config.teacher)
    check(
        teacher.family.media == "video",
        f"teacher '{config.teacher}' is a {teacher.folder.pipeline}, which makes images: use the domain image",
    )
    return teacher


def judges_frames(specs: Sequence[RoleSpec]) -> bool:
    """Return whether a recipe has a discriminator of single frames."""
    return any(spec.name == "discriminator" and spec.build is not None for spec in specs)


def judging_shapes(spec: RoleSpec) -> RoleSpec:
    """Return a role whose frozen image network, where it has one, is shapes only."""
    build = spec.build
    if not (isinstance(build, partial) and build.func is frame_discriminator):
        return spec
    return replace(spec, build=partial(build, shapes=True))


def find_encoder(
    config: VideoConfig, teacher: Teacher, texts: Texts, specs: Sequence[RoleSpec], device: torch.device | str
) -> Encoder | None:
    """Return what embeds captions for the discriminator of frames, None where it is told none.

    UserError for recipes without that discriminator.
    """
    if not config.captions:
        return None
    check(judges_frames(specs), "domain.captions: this recipe judges no single frames: leave it out")
    return caption_encoder(config.captions, teacher, texts.conditions([0]), device, DTYPES[config.model.dtype])


def check_told(discriminator: object, encoder: Encoder | None) -> None:
    """Raise UserError unless the discriminator is told captions as wide as those there are."""
    assert isinstance(discriminator, FrameDiscriminator)
    told, field = discriminator.told, "recipe.appearance.discriminator.caption"
    if encoder is None:
        check(told == 0, f"{field} is {told} and domain.captions is missing: name a CLIP text model, or set it to 0")
    else:
        check(told == encoder.width, f"domain.captions embeds in {encoder.width} numbers: set {field}={encoder.width}")


def load_samples(
    config: VideoConfig, teacher: Teacher, encode: Callable[[Tensor], Tensor], device: torch.device | str
) -> tuple[TextSource, Shown]:
    """Return samples to train on, their captions encoded, and the prompts to look at students under.

    ``encode``: pixels in [-1, 1] to latents. Shapes only on the device meta.
    """
    data, clips = config.data, None
    if torch.device(device).type == "meta":
        keys = key_times_at(data.path) if data.source == "prepared" else ()
        dtype, pictures = DTYPES[config.model.dtype], data.source != "prompts"
        blank, nothing = blank_source(teacher, dtype, pictures=pictures, key_times=keys)
        return blank, shown_rows(nothing, [0])
    texts: Texts
    if data.source == "prepared":
        texts = Prepared(data.path, teacher)
    elif data.source == "clips":
        size = teacher.size
        cut = data.clips((size.height, size.width), size.frames)
        clips = open_clips(data.path, cut, column=data.column, reader=data.reader, max_bad_share=data.max_bad_share)
        captions = [clips.caption(index) for index in range(len(clips))]
        texts = encode_captions(teacher, captions, config.model, device)
    else:
        texts = encode_captions(teacher, data.prompts or read_prompts(data.path, data.column), config.model, device)
    latents: Latents | None = texts if isinstance(texts, Prepared) and texts.has_latents else None
    source = TextSource(texts, latents if clips is None else EncodedClips(clips, encode))
    return source, shown_prompts(texts, config.eval_prompts, teacher, config.model, device)


def with_images(
    config: VideoConfig,
    teacher: Teacher,
    clips: DataSource,
    device: torch.device | str,
    encoder: Encoder | None = None,
) -> DataSource:
    """Return the source with pictures of the image set in every batch, where one is configured.

    ``encoder``: of their captions, without which they come alone.
    """
    images = config.images
    if not images.path:
        return clips
    if torch.device(device).type == "meta":
        blank = None if encoder is None else encoder.encode([""])
        return WithImages(clips, BlankPictures(teacher.size), teacher.size, images.each, blank)
    root = Path(images.path).expanduser()
    # no smaller than the frame fits into: what is left is cropped away
    pictures = Folder(root, 3, max(teacher.size.height, teacher.size.width), images.max_bad_share)
    if encoder is None:
        return WithImages(clips, pictures, teacher.size, images.each)
    captioned = CaptionedFolder(root, max_bad_share=images.max_bad_share)
    captions, rows = unique([captioned.caption(index) for index in range(len(captioned))])
    place = {file: index for index, file in enumerate(pictures.files)}
    known = Part(pictures, [place[file] for file in captioned.files])
    return WithImages(clips, known, teacher.size, images.each, centred(encoder.encode(captions), rows)[rows])


DOMAIN = VideoDomain()
