"""Stateless randomness: every random number is a pure function of what it is for.

Counter-based draws (SplitMix64, Steele et al., OOPSLA 2014) keyed by (seed, epoch, image index,
view, slot). Any split of the work over processes, workers, batches and resumed runs therefore sees
the same numbers to the last bit, and no generator's state needs saving.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_IMAGE, _ORDER = 1, 2  # keep the keys of views and of permutations apart


def _mix(word: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of 64-bit words (uint64, any shape)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(_MIX_1)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(_MIX_2)
    return word ^ (word >> np.uint64(31))


def _key(*words: int) -> int:
    """One well-mixed 64-bit key of several integers; their order counts."""
    key = len(words)
    for word in words:
        state = np.array([(key + _GOLDEN * (1 + (word & _MASK))) & _MASK], dtype=np.uint64)
        key = int(_mix(_mix(state) ^ np.uint64(_GOLDEN))[0])
    return key


def _stream(keys: np.ndarray, count: int) -> np.ndarray:
    """Words `1..count` of the SplitMix64 streams that start at `keys` (n,): uint64 (n, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(keys[:, None] + steps[None, :])


def uniforms(
    seed: int, epoch: int, indices: np.ndarray | Sequence[int], view: int, count: int
) -> np.ndarray:
    """Independent uniforms for one view of some images.

    Args:
        seed: The run's seed.
        epoch: Epoch, counted from 0.
        indices: Image indices (n,) in the data set; a row depends on its own index alone.
        view: Position of the view in its recipe.
        count: Numbers per image.

    Returns:
        float64 (n, count) in [0, 1), multiples of 2**-53.
    """
    key = np.uint64(_key(_IMAGE, seed, epoch, view))
    images = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    words = _stream(_mix(_mix(images * np.uint64(_GOLDEN) + key) ^ key), count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _shuffled(key: int, n: int) -> np.ndarray:
    words = _mix(_mix(np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)))
    return np.argsort(words, kind="stable")


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch visits `n` images: int64 (n,).

    Sorting hashes, unlike numpy's generators, promises the same order under every numpy version.
    """
    return _shuffled(_key(_ORDER, seed, epoch), n)


def subset(seed: int, tag: str, n: int, k: int) -> np.ndarray:
    """`k` of `n` indices without replacement, sorted: int64 (k,).

    Args:
        seed: The run's seed.
        tag: What the subset is for; different tags draw independently.
        n: Size of the whole.
        k: Size of the subset, at most `n`.

    Raises:
        ValueError: `k` is larger than `n`.
    """
    if not 0 <= k <= n:
        raise ValueError(f"cannot draw {k} of {n} without replacement; use k <= {n}")
    word = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "little")
    return np.sort(_shuffled(_key(_ORDER, seed, word), n)[:k])


def torch_seed(*words: int) -> int:
    """A seed for `torch.manual_seed` out of several integers, in [0, 2**63)."""
    return _key(*words) >> 1
