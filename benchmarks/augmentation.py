"""Claim: views are drawn several times faster than by the pipelines of the released code.

Those are torchvision transforms on Pillow images, one image and one view at a time; so are
lightly's, a second peer where it is installed. One thread, as a worker of the loader has. No view
of a file comes faster than the file is decoded: the bound, timed in the same run. The files are
photographs of `imagenet-samples` below DATA_ROOT, or else noise of the same size.

`python benchmarks/augmentation.py [--quick] [--json]`
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from benchmarks import timing
from benchmarks.timing import Claim
from harness import views
from harness.augment import augment
from harness.cpu_views import views_on_cpu
from harness.data import find_folder
from harness.errors import UserError
from harness.folders import decode
from harness.views import View

try:
    from lightly import transforms as lightly
except ImportError:
    lightly = None

_PILLOW = "Pillow pipeline"
_DECODING = "decoding alone"
_MODES = {
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "bilinear": transforms.InterpolationMode.BILINEAR,
}


class _Blur:
    """Gaussian blur as DINO's, VICReg's and Barlow Twins' code does it, by Pillow."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*self.sigma))))


def pillow_pipeline(view: View) -> transforms.Compose:
    """The view as the released code of the papers composes it."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                view.size, view.scale, interpolation=_MODES[view.interpolation]
            ),
            transforms.RandomHorizontalFlip(view.flip_p),
            transforms.RandomApply([transforms.ColorJitter(*view.jitter)], view.jitter_p),
            transforms.RandomGrayscale(view.gray_p),
            transforms.RandomApply([_Blur(view.blur_sigma)], view.blur_p),
            transforms.RandomSolarize(128, view.solarize_p),
            transforms.ToTensor(),
            transforms.Normalize(view.pixels.mean, view.pixels.std),
        ]
    )


def photographs(count: int) -> list[Path]:
    """JPEGs of ImageNet's classes, of different sizes, from all over the folder.

    Raises:
        UserError: DATA_ROOT has none.
    """
    folder = find_folder("imagenet-samples", ["labels.csv"], "put one JPEG per class there")
    files = sorted(folder.glob("*/*.JPEG"))
    return files[:: max(len(files) // count, 1)][:count]


def noise(folder: Path, count: int) -> list[Path]:
    """JPEGs of photograph-like noise, 500 × 375, the median size of ImageNet."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        grain = np.asarray(image, dtype=np.int16) + random.integers(-12, 13, (375, 500, 3))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def from_files(paths: list[Path], recipe: tuple[View, ...]) -> list[Tensor]:
    """Ours: each file decoded once for all its views."""
    return views_on_cpu(map(decode, paths), np.arange(len(paths)), recipe, seed=0, epoch=0)


def open_with_pillow(path: Path) -> Image.Image:
    """A decoded file, as torchvision's folders load it."""
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def from_files_by_pillow(paths: list[Path], pipelines: list) -> list[Tensor]:
    """Theirs: likewise decoded once, as the released multi-crop pipelines do."""
    drawn = []
    for path in paths:
        image = open_with_pillow(path)
        drawn += [pipeline(image) for pipeline in pipelines]
    return drawn


def in_memory(small: int, repetitions: int) -> list[Claim]:
    """Views of 32 px images against torchvision's."""
    images = torch.randint(0, 256, (small, 3, 32, 32), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    indices = np.arange(small)
    claims = []
    for case, view in (
        ("32 px in memory, no blur", View(size=32)),
        ("32 px in memory, blur and solarize", View(size=32, blur_p=0.5, solarize_p=0.2)),
    ):
        pipeline = pillow_pipeline(view)
        runs: dict[str, timing.Run] = {
            "ours": lambda v=view: augment(images, indices, [v], seed=0, epoch=0),
            _PILLOW: lambda p=pipeline: [p(picture) for picture in pictures],
        }
        times = timing.interleaved(runs, repetitions=repetitions)
        name = f"{small:,} views, {case}"
        claims.append(timing.claim(name, times, _PILLOW, speed=True, must=6, stretch=12))
    return claims


def of_files(
    case: str,
    paths: list[Path],
    recipe: tuple[View, ...],
    theirs: Callable | None,
    *,
    stretch: float,
    repetitions: int,
) -> list[Claim]:
    """Views of JPEGs against Pillow's pipelines, lightly's and decoding alone."""
    runs: dict[str, timing.Run] = {
        "ours": partial(from_files, paths, recipe),
        _PILLOW: partial(from_files_by_pillow, paths, [pillow_pipeline(view) for view in recipe]),
        _DECODING: lambda: [decode(path) for path in paths],
    }
    if theirs is not None:
        runs["lightly"] = partial(from_files_by_pillow, paths, [theirs])
    times = timing.interleaved(runs, repetitions=repetitions)
    claims = [timing.claim(case, times, _PILLOW, speed=True, must=3, stretch=stretch)]
    claims += [timing.claim(case, times, "lightly", speed=True)] if "lightly" in runs else []
    return [*claims, timing.claim(case, times, _DECODING)]


def lightly_transforms() -> tuple[Callable | None, Callable | None]:
    """Lightly's two views of BYOL and its multi-crop of DINO, with the recipes' parameters."""
    if lightly is None:
        print("lightly isn't installed: its transforms are left out", file=sys.stderr)
        return None, None
    large, small = views.DINO_VIT[0], views.DINO_VIT[-1]
    multicrop = lightly.DINOTransform(
        global_crop_scale=large.scale,
        local_crop_scale=small.scale,
        n_local_views=len(views.DINO_VIT) - 2,
    )
    return lightly.BYOLTransform(), multicrop


def main() -> None:
    """Measure and print."""
    options = timing.options(__doc__)
    torch.set_num_threads(1)
    repetitions, small, count = (1, 64, 2) if options.quick else (7, 1024, 24)
    claims = in_memory(small, repetitions)
    two_views, multicrop = lightly_transforms()
    with tempfile.TemporaryDirectory() as folder:
        try:
            kind, paths = "photographs", photographs(count)
        except UserError:
            kind, paths = "JPEGs of noise", noise(Path(folder), count)
        for case, recipe, theirs, stretch in (
            ("2 × 224", views.ASYMMETRIC, two_views, 5),
            ("2 × 224 + 10 × 96", views.DINO_VIT, multicrop, 6),
        ):
            name = f"{count} {kind} to {case}"
            claims += of_files(
                name, paths, recipe, theirs, stretch=stretch, repetitions=repetitions
            )
    timing.show_claims(claims, as_json=options.json)


if __name__ == "__main__":
    main()
