"""Claim: views are drawn several times faster than by the pipelines of the released code.

Those are torchvision transforms on Pillow images, one image and one view at a time. One thread,
no data loading in either. `python benchmarks/augmentation.py [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from benchmarks.timing import compare, show
from harness import views
from harness.augment import augment, colour, crop_views
from harness.folders import decode
from harness.views import View

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


def photographs(folder: Path, count: int) -> list[Path]:
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
    indices = np.arange(len(paths))
    images = [decode(path) for path in paths]
    crops = crop_views(images, indices, recipe, seed=0, epoch=0)
    return colour(crops, indices, recipe, seed=0, epoch=0)


def from_files_by_pillow(paths: list[Path], pipelines: list[transforms.Compose]) -> list[Tensor]:
    """Theirs: likewise decoded once, as the released multi-crop pipelines do."""
    drawn = []
    for path in paths:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        drawn += [pipeline(image) for pipeline in pipelines]
    return drawn


def main() -> None:
    """Measure and print."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repetitions, small, photos = (1, 64, 2) if options.quick else (7, 1024, 24)
    comparisons = []

    images = torch.randint(0, 256, (small, 3, 32, 32), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    for case, recipe in (
        ("32 px in memory, no blur", (View(size=32),)),
        ("32 px in memory, blur and solarize", (View(size=32, blur_p=0.5, solarize_p=0.2),)),
    ):
        pipeline, indices = pillow_pipeline(recipe[0]), np.arange(small)
        comparisons.append(
            compare(
                case,
                "Pillow, views",
                lambda i=indices, r=recipe: augment(images, i, r, seed=0, epoch=0),
                lambda p=pipeline: [p(picture) for picture in pictures],
                items=small,
                repetitions=repetitions,
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), photos)
        for case, recipe in (
            ("JPEG to 2 × 224", views.ASYMMETRIC),
            ("JPEG to 2 × 224 + 10 × 96", views.DINO_VIT),
        ):
            pipelines = [pillow_pipeline(view) for view in recipe]
            comparisons.append(
                compare(
                    case,
                    "Pillow, images",
                    lambda r=recipe: from_files(paths, r),
                    lambda p=pipelines: from_files_by_pillow(paths, p),
                    items=photos,
                    repetitions=repetitions,
                )
            )
    show(comparisons, as_json=options.json)


if __name__ == "__main__":
    main()
