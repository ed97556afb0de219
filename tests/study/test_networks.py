"""The published networks: with files that stand in for them, and without."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from panokit import SettingError
from panokit.errors import ModelError
from panokit.study.measures import made
from panokit.study.networks import Aesthetic, CLIPScore, Inception, IntraLPIPS, IntraStyle, needing, pairs, style

PICTURES = torch.randint(256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model in miniature, of random weights, as transformers keeps one."""
    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    letters = [*"alkeo", *(f"{letter}</w>" for letter in "alkeo"), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: k for k, token in enumerate(letters)}
    text = {**tower, "vocab_size": len(vocab), "bos_token_id": 10, "eos_token_id": 11, "pad_token_id": 11}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer(vocab=vocab, merges=[])).save_pretrained(path)
    return path


def test_clip_score_is_the_mean_cosine_times_100(clip: Path) -> None:
    score = CLIPScore(str(clip))
    seen = score.processor(text=["a lake"] * 3, images=[*PICTURES], return_tensors="pt")
    with torch.no_grad():
        found = score.net(**seen)
    cosines = nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    assert cosines.mean() > 0.05  # below 0 the score is 0
    assert score(PICTURES, "a lake").item() == pytest.approx(100 * cosines.mean().item(), abs=1e-4)


def test_aesthetic_is_a_linear_head_on_the_normed_embedding(clip: Path, tmp_path: Path) -> None:
    head = {"weight": torch.arange(8.0)[None], "bias": torch.tensor([5.0])}
    torch.save(head, tmp_path / "head.pth")
    aesthetic = Aesthetic(str(clip), str(tmp_path / "head.pth"))
    seen = aesthetic.processor(images=[*PICTURES], return_tensors="pt")
    with torch.no_grad():
        embedding = aesthetic.net.get_image_features(**seen).pooler_output
    expected = 5 + (embedding / embedding.norm(dim=1, keepdim=True)) @ torch.arange(8.0)
    torch.testing.assert_close(aesthetic(PICTURES, "a lake"), expected)


def test_inception_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception.pth"
    with monkeypatch.context() as patch:  # the shapes, without the numbers
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, path)
        torch.manual_seed(0)
        torch.save(FeatureExtractorInceptionV3("x", ["2048"], str(path)).state_dict(), path)
    net = made({"plugin": "panokit.study.networks:Inception", "weights": str(path)})
    features = net(PICTURES[:2])
    assert features.shape == (2, Inception.num_features)
    assert not torch.equal(features[0], features[1])


@pytest.fixture
def random_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's networks with random weights in the place of those that it fetches."""

    def random(url: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        name = url.rsplit("/", 1)[-1].partition("-")[0]
        return dict(getattr(torchvision.models, name)(weights=None).state_dict())

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", random)


@pytest.mark.usefixtures("random_torchvision")
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("make", [lambda: IntraLPIPS("alex"), IntraStyle])
def test_squares_that_are_alike_have_no_distance_and_others_have(make: Any) -> None:
    measure = make()
    assert measure(PICTURES[:1].expand(3, -1, -1, -1), "a lake").item() == pytest.approx(0, abs=1e-10)
    assert measure(PICTURES, "a lake").item() > 1e-9


def test_style_is_the_mean_square_of_what_gram_matrices_are_apart() -> None:
    layer = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    grams = [sum(torch.outer(x[:, i, j], x[:, i, j]) for i in range(5) for j in range(6)) / (4 * 5 * 6) for x in layer]
    apart = [(grams[i] - grams[j]).square().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(style([layer, layer]), 2 * torch.stack(apart).mean())


@pytest.mark.parametrize("text", ["<html>not found</html>", ""])
def test_a_file_that_is_something_else_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_text(text)
    with pytest.raises(ModelError, match=r"CLIP-aesthetic needs .*head.pth, which cannot be loaded"):
        Aesthetic("/no/where", str(tmp_path / "head.pth"))
    with pytest.raises(SettingError, match="net is 'vgg19': it must be one of vgg, alex"):
        IntraLPIPS("vgg19")


def test_one_square_has_no_pairs() -> None:
    with pytest.raises(SettingError, match="there are 1: make it twice as wide as high"):
        pairs(torch.zeros(1, 2))


@pytest.mark.usefixtures("unannotated")
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize(
    ("make", "file"),
    [
        (Inception, "weights-inception-2015-12-05-6726825d.pth"),
        (lambda: Inception("nowhere.pth"), "nowhere.pth"),
        (Aesthetic, "sa_0_4_vit_l_14_linear.pth"),
        (IntraLPIPS, "vgg16-397923af.pth"),
        (IntraStyle, "vgg19-dcbb9e9d.pth"),
        (lambda: CLIPScore("/no/where"), "/no/where, a folder or a model of the hub,"),
    ],
)
def test_a_network_whose_file_is_missing_is_told_by_the_file(
    make: Any, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("the network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=rf"{file}.*cannot be loaded.*leave it out of the study, and the rest runs"):
        make()


def test_what_is_needed_is_told_with_the_cause() -> None:
    with (
        pytest.raises(ModelError, match=r"LPIPS needs vgg.pth, which cannot be loaded \(no route\)"),
        needing("LPIPS", "vgg.pth"),
    ):
        raise OSError("no\nroute")
