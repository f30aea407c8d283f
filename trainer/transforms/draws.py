"""Computes the numbers of :func:`trainer.transforms.generator` for many images at once.

NumPy takes about ten microseconds to make a generator, a good part of the time in which a GPU
trains on an image of CIFAR. Its SeedSequence and PCG64 (O'Neill 2014, HMC-CS-2014-0905) are
fixed algorithms; computed for arrays, they take a fraction of a microsecond per image.
"""

import numpy as np

# One generator per epoch, indexed by image, would be simpler but give other numbers: runs of
# earlier versions would not resume bit for bit, CPU workers and GPU would differ, and the errors in
# docs/results.md would belong to another augmentation.
_POOL = 4
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER = 0x2360ED051FC65DA4, 0x4385DF649FCCF645


def uniforms(seed: int, epoch: int, images: np.ndarray, n: int) -> np.ndarray:
    """Return ``generator(seed, epoch, image).random(n)`` for each image.

    Args:
        seed: The run's seed, 0 or more.
        epoch: Epoch, from 1.
        images: int (images,), indices of images, below 2^32.
        n: Numbers per image.

    Returns:
        float64 (n, images), in [0, 1).
    """
    words = _seed_words(_words(seed) + _words(epoch) + [np.asarray(images, np.uint32)])
    state, increment = _pcg64(words)
    u = np.empty((n, len(images)))
    for row in u:
        state = _step(state, increment)
        high, low = state
        x, turn = high ^ low, high >> np.uint64(58)
        x = (x >> turn) | (x << ((np.uint64(64) - turn) & np.uint64(63)))
        np.multiply(x >> np.uint64(11), 2.0**-53, out=row)
    return u


def _words(number):
    """Split an int into arrays of 32 bits, least significant first."""
    words = [np.array([number & 0xFFFFFFFF], np.uint32)]
    return words + _words(number >> 32) if number >> 32 else words


def _seed_words(entropy):
    """Return ``SeedSequence(entropy).generate_state(8)`` as eight uint32 arrays."""
    scramble = _scrambler(0x43B0D7E5, 0x931E8875)
    zero = np.zeros(1, np.uint32)
    pool = [scramble(word) for word in (entropy + _POOL * [zero])[:_POOL]]
    for source in range(_POOL):
        for i in range(_POOL):
            if i != source:
                pool[i] = _mix(pool[i], scramble(pool[source]))
    for word in entropy[_POOL:]:
        pool = [_mix(mixed, scramble(word)) for mixed in pool]
    scramble = _scrambler(0x8B51F9DD, 0x58F38DED)
    return [scramble(pool[i % _POOL]) for i in range(8)]


def _scrambler(constant, factor):
    def scramble(value):
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * factor & 0xFFFFFFFF
        value *= np.uint32(constant)
        return value ^ value >> np.uint32(16)

    return scramble


def _mix(x, y):
    x = x * np.uint32(0xCA01F9DD) - y * np.uint32(0x4973F715)
    return x ^ x >> np.uint32(16)


def _pcg64(words):
    """Return PCG64's initial state and increment, each as (high, low) 64 bits."""
    words = [word.astype(np.uint64) for word in words]
    high, low, *sequence = (words[i] | words[i + 1] << np.uint64(32) for i in range(0, 8, 2))
    increment = (
        sequence[0] << np.uint64(1) | sequence[1] >> np.uint64(63),
        sequence[1] << np.uint64(1) | np.uint64(1),
    )
    return _step(_add(increment, (high, low)), increment), increment


def _step(state, increment):
    return _add(_times(state), increment)


def _add(a, b):
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low


def _times(a):
    """Multiply by the generator's constant, modulo 2^128."""
    high, low = a
    b_high, b_low = map(np.uint64, _MULTIPLIER)
    half = np.uint64(32)
    upper, lower = low >> half, low & _LOW
    b_upper, b_lower = b_low >> half, b_low & _LOW
    product, one, other = lower * b_lower, lower * b_upper, upper * b_lower
    middle = (product >> half) + (one & _LOW) + (other & _LOW)
    carried = upper * b_upper + (one >> half) + (other >> half) + (middle >> half)
    return carried + high * b_low + low * b_high, (product & _LOW) | middle << half
