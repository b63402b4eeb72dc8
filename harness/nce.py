"""Noise-contrastive estimation against a bank of embeddings, as NPID and PIRL run it.

Source: Wu, Xiong, Yu & Lin, CVPR 2018 (NPID), section 3.2; equation numbers are its.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import dist


def draw_candidates(
    generator: torch.Generator, indices: Tensor, negatives: int, images: int
) -> Tensor:
    """The rows of a bank that each image is compared with: its own, then random ones.

    Uniform over the whole set, with replacement and the image itself included, as in the code of
    NPID (@f7cfe29) and of PIRL (vissl @09270ed). Drawn for the global batch, of which each process
    keeps its share: at PIRL's 1024 x 32,000 that takes 262 MB for a moment, wherever it runs.

    Args:
        generator: On the device of `indices`, in the same state on all processes.
        indices: (n,), this process's images.
        negatives: m, random rows per image.
        images: Size of the set.

    Returns:
        int64 (n, 1 + negatives).
    """
    shape = (len(indices) * dist.world(), negatives)
    drawn = torch.randint(images, shape, generator=generator, device=indices.device)
    return torch.cat([indices[:, None], drawn[dist.rank() :: dist.world()]], dim=1)


def similarities(z: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Inner product of each embedding with some rows of a bank, by the cheaper of two exact forms.

    Copies of the rows take n * k * d numbers and are kept for the backward pass; products with all
    of the bank take n * len(bank), for a moment. PIRL's 32,000 rows of 128 numbers are more than
    the 1.28 million products (16.4 against 5.1 MB an image), NPID's 4096 are less (2.1 MB).

    Args:
        z: (n, d).
        bank: (images, d), without gradient; unchanged until the backward pass is over.
        rows: int64 (n, k), places in the bank.

    Returns:
        (n, k), in the bank's precision.
    """
    z = z.to(bank.dtype)
    with torch.autocast(z.device.type, enabled=False):
        if len(bank) < rows.shape[1] * bank.shape[1]:
            return (z @ bank.T).gather(1, rows)
        return torch.bmm(bank[rows], z[:, :, None]).squeeze(2)


@torch.no_grad()
def partition(logits: Tensor, images: int) -> Tensor:
    """Estimate of Z, the sum of exp(logit) over all images (Eq. 8), from the global batch.

    Args:
        logits: (n, k) similarities over temperature, as many rows on each process.
        images: Size of the set.
    """
    return images * dist.all_reduce_mean(logits.exp().mean())


def nce(logits: Tensor, normaliser: Tensor, images: int) -> Tensor:
    """Negative log-likelihood of telling an image's own row from the noise (Eq. 6-7), in nats.

    With P(i|v) = exp(logit) / Z and noise 1 / images, h = P / (P + m / images) is the logistic
    function of logit - log(Z m / images). Summed over the candidates of an image, averaged over
    images. The released codes add 1e-7 to denominators, against a log 0 that doesn't occur here.

    Args:
        logits: (n, 1 + m) similarities over temperature; the image's own row first.
        normaliser: Z, a constant.
        images: Size of the set.
    """
    m = logits.shape[1] - 1
    odds = logits - torch.log(normaliser * m / images)
    own, noise = odds[:, 0], odds[:, 1:]
    return -(F.logsigmoid(own) + F.logsigmoid(-noise).sum(dim=1)).mean()
