"""Networks with which papers measure panoramas of Stable Diffusion. Their weights are downloaded once, or come from files.

A study names them. Those under `features` take uint8 pictures `n 3 H W` and return features `n d`. Those under `scores` take
pictures and their prompt and return numbers; the study reports the mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from panokit.errors import ModelError, SettingError, reason_of

Pictures = UInt8[Tensor, "n 3 H W"]

_ALTERNATIVE = (
    "leave it out of the study, and the rest runs (panokit_landscapes.evaluate:EfficientNetFeatures needs no download)"
)


@contextmanager
def needing(what: str, file: str) -> Iterator[None]:
    """Name the network and its file if the weights cannot be loaded.

    Args:
        what: the name of the network.
        file: the file or model with its weights.

    Raises:
        ModelError: the code inside raised an error.
    """
    try:
        yield
    except Exception as cause:  # loaders raise many kinds of errors for a broken file
        why = reason_of(cause, 160)
        raise ModelError(f"{what} needs {file}, which cannot be loaded ({why}): put it there, or {_ALTERNATIVE}") from cause


@final
class Inception(nn.Module):
    """The 2048 features of Inception-v3 of published FID and KID (Heusel et al. 2017), in torch-fidelity's port.

    Args:
        weights: a file with torch-fidelity's weights; None downloads them once.

    Raises:
        ModelError: torch-fidelity is not installed, or the weights cannot be loaded.
    """

    num_features = 2048

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as port
        except ImportError as cause:
            raise ModelError('Inception-v3 needs torch-fidelity: pip install "panokit[eval]"') from cause

        with needing("Inception-v3", weights or _downloaded(port.URL_INCEPTION_V3)):
            self.net = port.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)

    def forward(self, pictures: Pictures) -> Float[Tensor, "n d"]:
        (features,) = self.net(pictures)
        return torch.as_tensor(features)


@final
class CLIPScore(nn.Module):
    r"""CLIP score: 100 times the cosine of the embeddings of picture and prompt (Hessel et al. 2021), by torchmetrics.

    $$ \max(0,\; \mathrm{mean}_i\; 100 \cos(E_i, E_{\mathrm{prompt}})) $$
    with the embeddings $E_i$ of the pictures. Higher is better.

    Args:
        model: a CLIP model of transformers: a hub id or a folder.

    Raises:
        ModelError: the model cannot be loaded.
    """

    better = "high"

    def __init__(self, model: str = "openai/clip-vit-base-patch16") -> None:
        super().__init__()
        self.net, self.processor = _clip(model)

    @torch.no_grad()
    def forward(self, pictures: Pictures, prompt: str) -> Float[Tensor, ""]:
        from torchmetrics.functional.multimodal import clip_score

        return torch.as_tensor(clip_score([*pictures], [prompt] * len(pictures), lambda: (_Outputs(self.net), self.processor)))


@final
class Aesthetic(nn.Module):
    """CLIP-aesthetic: LAION's linear head on the normalised image embedding of a CLIP model (Schuhmann et al. 2022).

    It gives each picture a number from about 1 to 10; higher is better.

    Args:
        model: the CLIP model that the head was trained on: a hub id or a folder.
        head: a file with the head's weights; None downloads them once.

    Raises:
        ModelError: the model or the head cannot be loaded.
    """

    URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"

    better = "high"

    def __init__(self, model: str = "openai/clip-vit-large-patch14", head: str | None = None) -> None:
        super().__init__()
        with needing("CLIP-aesthetic", head or _downloaded(self.URL)):
            state = (
                torch.load(head, map_location="cpu", weights_only=True)
                if head
                else torch.hub.load_state_dict_from_url(self.URL, map_location="cpu", progress=False, weights_only=True)
            )
            self.head = nn.Linear(state["weight"].shape[1], 1)
            self.head.load_state_dict(state)
        self.net, self.processor = _clip(model)

    @torch.no_grad()
    def forward(self, pictures: Pictures, prompt: str) -> Float[Tensor, " n"]:
        inputs = self.processor(images=[*pictures], return_tensors="pt").to(pictures.device)
        return self.head(F.normalize(self.net.get_image_features(**inputs).pooler_output, dim=-1))[:, 0]


@final
class IntraLPIPS(nn.Module):
    """Intra-LPIPS: the mean LPIPS distance over all pairs of a panorama's squares (Lee et al. 2023), by torchmetrics.

    Args:
        net: `vgg` or `alex`. torchvision downloads its weights once.

    Raises:
        ModelError: the weights cannot be loaded.
        SettingError: `net` is another name, or a panorama has fewer than two squares.
    """

    better = "low"

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights, VGG16_Weights

        weights = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}
        if net not in weights:
            raise SettingError(f"net is {net!r}: it must be one of {', '.join(weights)}")
        with needing(f"LPIPS ({net})", _downloaded(weights[net].url)):
            self.metric = LearnedPerceptualImagePatchSimilarity(net, normalize=True, sync_on_compute=False)

    @torch.no_grad()
    def forward(self, pictures: Pictures, prompt: str) -> Float[Tensor, ""]:
        one, two = pairs(pictures.float() / 255)
        return torch.as_tensor(self.metric(one, two))


@final
class IntraStyle(nn.Module):
    """Intra-Style-L: the mean style loss over all pairs of a panorama's squares (Lee et al. 2023), on VGG19; see `style`.

    Raises:
        ModelError: torchvision's weights cannot be loaded.
        SettingError: a panorama has fewer than two squares.
    """

    LAYERS = (0, 5, 10, 19, 28)
    """Positions of the layers conv1_1 to conv5_1, as in Gatys et al. 2016."""

    better = "low"

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import VGG19_Weights, vgg19

        weights = VGG19_Weights.IMAGENET1K_V1
        with needing("Intra-Style", _downloaded(weights.url)):
            self.net = vgg19(weights=weights, progress=False).features[: self.LAYERS[-1] + 1].eval()

    @torch.no_grad()
    def forward(self, pictures: Pictures, prompt: str) -> Float[Tensor, ""]:
        from torchvision.transforms.functional import normalize

        x = normalize(pictures.float() / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])  # ImageNet's
        layers = []
        for k, layer in enumerate(self.net):
            x = layer(x)
            if k in self.LAYERS:
                layers.append(x.clone())  # the next layer changes x in place
        return style(layers)


def pairs(x: Float[Tensor, "n *rest"]) -> tuple[Float[Tensor, "m *rest"], Float[Tensor, "m *rest"]]:
    """All pairs of rows.

    Args:
        x: `n` rows.

    Returns:
        The first row of each pair and the second one, `m = n (n - 1) / 2` rows each.

    Raises:
        SettingError: there are fewer than two rows.
    """
    if len(x) < 2:
        raise SettingError(
            f"Intra measures need at least 2 squares of a panorama, but there are {len(x)}: make it twice as wide as high, or "
            "leave these measures out"
        )
    first, second = zip(*combinations(range(len(x)), 2), strict=True)
    return x[list(first)], x[list(second)]


def style(layers: list[Tensor]) -> Float[Tensor, ""]:
    r"""The style loss of two pictures, the mean over all pairs of pictures (Gatys et al. 2016).

    $$ \sum_l \mathrm{mean}\,(G_l - G_l')^2, \quad G_l = F_l F_l^T / (c_l h_l w_l) $$
    with the features $F_l$ of layer $l$ as a matrix of $c_l$ rows and $h_l w_l$ columns.

    Args:
        layers: the features of the pictures in each layer, `n c h w`.

    Raises:
        SettingError: there are fewer than two pictures.
    """
    total = layers[0].new_zeros(())
    for features in layers:
        flat = features.flatten(2)
        one, two = pairs(flat @ flat.mT / flat[0].numel())
        total = total + (one - two).square().mean()
    return total


@final
class _Outputs:
    """A CLIP model whose methods return tensors, as torchmetrics expects."""

    def __init__(self, net: Any) -> None:
        self._net, self.config, self.dtype = net, net.config, net.dtype

    def to(self, device: Any) -> "_Outputs":
        return self

    def get_image_features(self, *args: Any, **named: Any) -> Tensor:
        return torch.as_tensor(self._net.get_image_features(*args, **named).pooler_output)

    def get_text_features(self, *args: Any, **named: Any) -> Tensor:
        return torch.as_tensor(self._net.get_text_features(*args, **named).pooler_output)


def _clip(model: str) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    with needing("CLIP", f"{model}, a folder or a model of the hub,"):
        return CLIPModel.from_pretrained(model).eval(), CLIPProcessor.from_pretrained(model)


def _downloaded(url: str) -> str:
    """The path under which torch keeps the file that it downloads from this address."""
    return str(Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1])
