"""Similarity of clips to prompts: which frames are scored, under which prompt, and the mean of them."""

from __future__ import annotations

import pytest
import torch
from video.clip_bed import discs

from fewstep.core.errors import UserError
from fewstep.core.image.clip import ClipScore
from fewstep.core.models.tiny import CHARACTERS, clip_tokenizer, seeded
from fewstep.video.metrics.similarity import ClipSimilarity, spread


class Brightness:
    """Scores a picture by how near its value is to the number its prompt says."""

    protocol = "nearness"

    def score(self, pixels, prompts):
        wanted = torch.tensor([float(prompt) for prompt in prompts])
        return float(100 * (1 - (pixels.flatten(1).mean(1) - wanted).abs()).mean())


def ramp(start: float, frames: int = 8) -> torch.Tensor:
    return (start + 0.01 * torch.arange(frames)).reshape(1, frames, 1, 1).expand(3, -1, 2, 2)


def test_every_frame_is_scored_under_its_clips_prompt():
    clips = torch.stack([ramp(0.0), ramp(-0.5)])
    similarity = ClipSimilarity(Brightness(), frames=8)
    assert similarity.score(clips, ["0.0", "-0.5"]) == pytest.approx(1 - 0.035)
    assert similarity.score(clips, ["-0.5", "0.0"]) < 0.6
    assert ClipSimilarity(Brightness(), frames=1).score(clips, ["0.04", "-0.46"]) == pytest.approx(1, abs=1e-6)


def test_identical_embeddings_score_one_whatever_moves():
    still = torch.full((2, 3, 4, 2, 2), 0.25)
    assert ClipSimilarity(Brightness()).score(still, ["0.25", "0.25"]) == pytest.approx(1)


def test_its_protocol_names_the_model_and_the_frames():
    assert ClipSimilarity(Brightness(), frames=3).protocol == "mean over 3 frames of a clip, a hundredth of: nearness"


@pytest.mark.parametrize(("frames", "count"), [(16, 4), (5, 5), (7, 3), (3, 9), (1, 1)])
def test_frames_are_spread_without_repetition_and_alike_from_both_ends(frames, count):
    chosen = spread(frames, count).tolist()
    assert len(set(chosen)) == len(chosen) == min(frames, count)
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0
    assert chosen[-1] < frames
    assert abs(chosen[0] - (frames - 1 - chosen[-1])) <= 1


def test_what_cannot_be_scored_is_refused(tmp_path):
    with pytest.raises(UserError, match="2 clips with 1 prompts"):
        ClipSimilarity(Brightness()).score(torch.zeros(2, 3, 4, 2, 2), ["0"])
    with pytest.raises(UserError, match="at least 1"):
        ClipSimilarity(Brightness(), frames=0)
    with pytest.raises(UserError, match="no folder"):
        ClipSimilarity(str(tmp_path / "nowhere"))


def test_with_a_clip_model_it_is_the_score_of_the_frames(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    words = 2 * len(CHARACTERS) + 2
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=words, max_position_embeddings=16, bos_token_id=words - 2, eos_token_id=words - 1,
        pad_token_id=words - 1, **small,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **small)
    with seeded(0):
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    model.eval().save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    clips, prompts = discs(2, frames=4), ["a fox", "two boats"]
    similarity = ClipSimilarity(str(tmp_path), frames=2)
    pictures = torch.stack([clips[i, :, k] for i in range(2) for k in (1, 3)])
    expected = ClipScore(str(tmp_path)).score(pictures, ["a fox", "a fox", "two boats", "two boats"])
    assert similarity.score(clips, prompts) == pytest.approx(expected / 100, rel=1e-5)
    assert tmp_path.name in similarity.protocol
