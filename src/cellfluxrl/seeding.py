"""Counter-based randomness: a generator is a function of (seed, purpose, step), never of what ran before.

A run that is resumed, or split over another number of processes, draws the same numbers without storing any state.
"""

import zlib

import numpy as np
import torch


def seeded_generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """Return a CPU generator that depends on `seed`, `purpose` and `counters` alone.

    Args:
        seed: The seed of the run, not negative.
        purpose: What is drawn, for example `"rollouts"`; different purposes are independent.
        counters: For example the iteration, then the index of the sample.

    Example:
        >>> a = torch.rand(1, generator=seeded_generator(0, "noise", 3))
        >>> b = torch.rand(1, generator=seeded_generator(0, "noise", 3))
        >>> bool(a == b)
        True
    """
    entropy = [seed, zlib.crc32(purpose.encode()), *counters]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Like [`seeded_generator`], for numpy."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *counters])
