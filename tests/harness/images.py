"""Test images, and Pillow's view of them."""

import torch
from PIL import Image


def pictures(n: int, height: int, width: int) -> torch.Tensor:
    """Smooth colourful uint8 images with full contrast: enlarged noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 3, 6, 7, generator=generator)
    large = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    return ((large * 1.6 - 0.3).clamp(0, 1) * 255).round().to(torch.uint8)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def rows_first(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 1, 3).contiguous().float()


FLOATS = pictures(4, 20, 24).float() / 255
