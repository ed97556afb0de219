"""The embedded model: what is in the package loads, reconstructs, obeys; and the training code runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from panokit_landscapes import JUDGE, PATH
from panokit_landscapes.captions import FILLERS, PROMPTS, TELLING, WORDS
from panokit_landscapes.data import disturb
from panokit_landscapes.evaluate import Judge, autoencoder_psnr, sample, unseen
from panokit_landscapes.loop import Loop, use_average
from panokit_landscapes.models import TOKENS, make_text_encoder, make_tokenizer, make_unet, make_vae, standardise, tokenize
from panokit_landscapes.train import unet_losses, vae_losses


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(PATH, local_files_only=True, dtype=torch.float32)


def test_package_stays_small() -> None:
    files = [file for folder in (PATH, JUDGE) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6


def test_window_is_sixteen_latents_of_four_channels(pipeline: StableDiffusionPipeline) -> None:
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.in_channels, pipeline.vae_scale_factor) == (16, 4, 8)
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_known_words_are_whole_tokens_and_recorded(pipeline: StableDiffusionPipeline) -> None:
    assert json.loads((PATH / "tokenizer" / "known_words.json").read_text()) == list(TELLING)
    assert set(WORDS) >= FILLERS
    assert all(len(pipeline.tokenizer(word).input_ids) == 3 for word in WORDS)
    config = pipeline.text_encoder.config
    assert (config.bos_token_id, config.eos_token_id) == (pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id)


def test_the_tokenizer_is_the_one_that_training_makes_every_time(pipeline: StableDiffusionPipeline) -> None:
    made = [make_tokenizer([*WORDS, ","]).get_vocab() for _ in range(8)]
    assert all(vocabulary == pipeline.tokenizer.get_vocab() for vocabulary in made)


@pytest.mark.parametrize("text", ["", "A Mountain LAKE", "zebra, 4k!!", "日本語 🙂", "\x00 \t\n", "lake " * 100])
def test_any_text_tokenises(pipeline: StableDiffusionPipeline, text: str) -> None:
    tokens = tokenize(pipeline.tokenizer, [text])
    assert tokens.shape == (1, TOKENS) == (1, pipeline.tokenizer.model_max_length)
    assert torch.isfinite(pipeline.text_encoder(tokens).last_hidden_state).all()


def test_autoencoder_on_unseen_scenes(pipeline: StableDiffusionPipeline) -> None:
    x, _ = unseen(16, seed=2)
    psnr = autoencoder_psnr(pipeline.vae, x)
    assert psnr["reconstruction"] >= 32
    assert psnr["half size"] >= 24
    with torch.no_grad():
        latents = pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert 0.7 < latents.std() < 1.3


def test_judge_recognises_true_scenes_and_samples(pipeline: StableDiffusionPipeline) -> None:
    judge = Judge()
    x, scenes = unseen(48, seed=3)
    assert judge.accuracy(x, scenes) >= 0.75
    found = judge(sample(pipeline, PROMPTS[:4], steps=12))
    assert (found == torch.arange(4)).sum() >= 3


def test_standardise_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    vae, x = make_vae().eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        picture = vae.decode(before.mean).sample
        mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        standardise(vae, mean, std)
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(after.std, before.std / std[:, None, None], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(vae.decode(after.mean).sample, picture, rtol=1e-3, atol=1e-4)


def test_training_losses_fall() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    vae, x = make_vae(), torch.rand(2, 3, 32, 32)
    tokenizer = make_tokenizer(WORDS)
    parts = torch.nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
    tokens, z = tokenize(tokenizer, PROMPTS[:2]), torch.randn(2, 4, 16, 16)
    for model, losses in (
        (vae, lambda: vae_losses(vae, x, generator)),
        (parts, lambda: unet_losses(parts, z, tokens, generator)),
    ):
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        found = []
        for _ in range(6):
            loss = torch.stack(list(losses().values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        assert found[-1] < found[0]


def test_loop_resumes_where_it_stopped(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1)
    loop = Loop(tmp_path / "a.pt", model, minutes=0.002, lr=0.01)
    loop.run(lambda generator: {"loss": model(torch.randn(8, 3, generator=generator)).square().mean()})
    other = torch.nn.Linear(3, 1)
    again = Loop(tmp_path / "a.pt", other, minutes=1, lr=0.01)
    assert (again.step, again.seconds) == (loop.step, loop.seconds)
    use_average(tmp_path / "a.pt", other)
    torch.testing.assert_close(other.weight, model.weight)
    assert torch.equal(torch.randn(3, generator=again.generator()), torch.randn(3, generator=loop.generator()))


def test_disturbed_captions_keep_their_words() -> None:
    rng = np.random.default_rng(0)
    found = [disturb(PROMPTS[0], rng).split() for _ in range(100)]
    assert all(set(PROMPTS[0].split()) <= set(words) for words in found)
    assert 5 < sum(len(words) > len(PROMPTS[0].split()) for words in found) < 40
