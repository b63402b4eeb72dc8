from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory) -> str:
    """An ImageFolder of 48 training and 12 validation images, 12 px, three classes."""
    root = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                pixels[..., label] //= 4
                Image.fromarray(pixels).save(Path(folder) / f"{number}.png")
    return str(root)
