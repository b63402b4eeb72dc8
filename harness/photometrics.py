"""Colour and blur operations on float batches in [0, 1], each image with its own parameters.

The meaning of every operation is torchvision's (`transforms.v2.functional` on float tensors); blur
is a Gaussian cut at three standard deviations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.views import Pixels

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision rounds it


def luma(images: Tensor) -> Tensor:
    """Grey value of each pixel: (n, 3, H, W) to (n, 1, H, W)."""
    red, green, blue = images.unbind(1)
    grey = torch.add(red * LUMA[0], green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return grey[:, None]


def mean_per_image(grey: Tensor) -> Tensor:
    """Mean of (n, 1, H, W) over pixels: (n, 1, 1, 1).

    Two passes, since one pass over a single image is split over threads and rounds differently.
    """
    return grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def blend(
    images: Tensor, factor: Tensor, grey_share: Tensor | None, offset: Tensor | None
) -> Tensor:
    """`factor * image + grey_share * luma + offset`, clamped to [0, 1]; overwrites `images`.

    Brightness, contrast and saturation are special cases, so a batch in which every image is at a
    different operation of its jitter takes one pass: brightness f = (f, 0, 0), saturation
    f = (f, 1 - f, 0), contrast f = (f, 0, (1 - f) * mean luma). Weights are (n, 1, 1, 1); None
    stands for zeros.
    """
    grey = None if grey_share is None else luma(images).mul_(grey_share)
    images.mul_(factor)
    if grey is not None:
        images.add_(grey)
    if offset is not None:
        images.add_(offset)
    return images.clamp_(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue in HSV space; value and saturation stay.

    Args:
        images: (n, 3, H, W).
        shift: Turns, (n, 1, 1), in [-0.5, 0.5].

    Returns:
        (n, 3, H, W).
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Masks as floats and `lerp`: bool tensors and `where` take four times as long on CPU.
    scale = chroma.clamp(min=1e-20).reciprocal_()
    not_red, not_green = (high - red).sign_(), (high - green).sign_()
    # The hue in sixths of a turn, by which channel is the largest: red, else green, else blue.
    from_red = (green - blue).mul_(scale)
    from_green = (blue - red).mul_(scale).add_(2)
    from_blue = (red - green).mul_(scale).add_(4)
    hue = torch.lerp(from_red, torch.lerp(from_green, from_blue, not_green), not_red)
    hue.add_(6 * shift)
    hue.sub_((hue / 6).floor_().mul_(6))
    # Each channel is a trapezoid over the hue circle (Smith 1978, in closed form).
    shares = (
        (hue - 3).abs_().sub_(1),
        (hue - 2).abs_().neg_().add_(2),
        (hue - 4).abs_().neg_().add_(2),
    )
    out = torch.empty_like(images)
    for channel, share in enumerate(shares):
        torch.addcmul(low, chroma, share.clamp_(0, 1), out=out[:, channel])
    return out.clamp_(0, 1)  # rounding may leave it by one unit in the last place


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with reflected borders, the kernel cut at 3 sigma.

    SimCLR and its followers give a kernel of 10 % of the image's side, 23 px at 224; beyond the cut
    lie 0.3 % of the weight, so both are the same blur. Weights are normalised after the cut.

    Args:
        images: (n, 3, H, W), sides larger than 3 sigma.
        sigma: Standard deviation in pixels, float64 (n,) on the CPU, > 0.

    Returns:
        (n, 3, H, W).
    """
    reach = (3 * sigma).ceil().clamp(min=1)
    radius = int(reach.max())
    taps = torch.arange(radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= reach[:, None])
    weights /= 2 * weights.sum(dim=1, keepdim=True) - weights[:, :1]
    weights = weights.to(images.device, images.dtype).view(len(sigma), radius + 1, 1, 1, 1)
    for dim, sides in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        images = _convolve(F.pad(images, sides, mode="reflect"), weights, radius, dim=dim)
    return images


def _convolve(images: Tensor, weights: Tensor, radius: int, *, dim: int) -> Tensor:
    """Symmetric 1-D convolution of each image along `dim`, without the padding there.

    Sums from the centre outwards: taps beyond an image's own reach weigh 0 and change no bit.
    """
    length = images.shape[dim] - 2 * radius
    out = images.narrow(dim, radius, length) * weights[:, 0]
    for tap in range(1, radius + 1):
        pair = images.narrow(dim, radius - tap, length) + images.narrow(dim, radius + tap, length)
        out.addcmul_(pair, weights[:, tap])
    return out


def solarize(images: Tensor, threshold: Tensor | float) -> Tensor:
    """Invert the pixels at or above the threshold."""
    return torch.where(images >= threshold, 1 - images, images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` (n, 1, 1, 1) of each 8-bit value."""
    step = torch.exp2(8 - bits)
    return (images * 255).round_().div_(step).floor_().mul_(step).div_(255)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3x3 smoothed copy by `factor` (n, 1, 1, 1); the outermost pixels stay."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    centre = images[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * centre) / 13
    out = images.clone()
    out[:, :, 1:-1, 1:-1] = (smooth + (centre - smooth) * factor).clamp_(0, 1)
    return out


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to [0, 1]; a constant channel stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = high <= low
    low = low.masked_fill(flat, 0)
    return ((images - low) / (high - low).masked_fill(flat, 1)).clamp_(0, 1)


def normalize(images: Tensor, pixels: Pixels, out: Tensor | None = None) -> Tensor:
    """`(image - mean) / std` per channel, for (…, 3, H, W); into `out` if given."""
    mean, std = pixels.mean, pixels.std
    scale = torch.tensor([1 / s for s in std], device=images.device)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return torch.addcmul(offset.view(3, 1, 1), images, scale.view(3, 1, 1), out=out)
