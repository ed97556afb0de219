"""Previews by a linear map."""

import torch

from panokit import Sampler
from panokit.preview import preview
from panokit.testing.toys import ToyCodec


def test_a_decoder_that_is_all_but_linear_is_previewed_closely() -> None:
    codec, x0 = ToyCodec(), 0.1 * torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.avg_pool2d(codec.decode(x0[None]), codec.factor)[0]
    torch.testing.assert_close(preview(codec, x0), expected.clamp(0, 1), atol=0.02, rtol=0)


def test_without_a_codec_the_canvas_is_the_picture() -> None:
    assert preview(None, torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1)).flatten().tolist() == [0, 0.5, 1]


def test_a_preview_of_landscapes_looks_like_what_is_decoded() -> None:
    """It explains most of what the pixels of a decoded picture are, averaged over cells."""
    codec = Sampler().model.codec
    assert codec is not None
    ramp = torch.linspace(0, 1, 128)
    image = torch.stack([ramp.expand(128, 128), ramp.view(-1, 1).expand(128, 128), 1 - ramp.expand(128, 128)])
    x0 = codec.encode(image[None])[0]
    wanted = torch.nn.functional.avg_pool2d(codec.decode(x0[None])[0], codec.factor).clamp(0, 1)
    off = (preview(codec, x0) - wanted).square().mean() / wanted.var()
    assert off < 0.25
