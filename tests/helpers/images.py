"""Images, and folders of images in the layouts of datasets."""

import numpy as np
from PIL import Image

#: Heights and widths, odd ones among them.
SIZES = [(60, 90), (90, 60), (70, 70), (1, 1), (230, 240), (64, 300)]


def random_image(height, width, seed=0):
    """Return a smooth random image, as JPEG and resizing need: uint8 (height, width, 3)."""
    rng = np.random.default_rng((height, width, seed))
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    noise = rng.integers(-20, 21, (height, width, 3))
    return (
        (np.asarray(small.resize((width, height), Image.BICUBIC)) + noise)
        .clip(0, 255)
        .astype(np.uint8)
    )


def make_tree(root, synsets, save):
    """Make the published tree of validation images: ``save(i, path)`` writes each."""
    for part in ('ImageSets', 'Annotations', 'Data'):
        (root / part / 'CLS-LOC' / ('' if part == 'ImageSets' else 'val')).mkdir(parents=True)
    names = [f'ILSVRC2012_val_{i + 1:08d}' for i in range(len(synsets))]
    (root / 'ImageSets' / 'CLS-LOC' / 'val.txt').write_text(
        ''.join(f'{name} {i + 1}\n' for i, name in enumerate(names))
    )
    for i, (name, synset) in enumerate(zip(names, synsets)):
        (root / 'Annotations' / 'CLS-LOC' / 'val' / (name + '.xml')).write_text(
            f'<annotation>\n\t<folder>val</folder>\n\t<filename>{name}</filename>\n\t<object>\n'
            f'\t\t<name>{synset}</name>\n\t\t<bndbox><xmin>1</xmin></bndbox>\n\t</object>\n'
            '\t<object>\n\t\t<name>n15075141</name>\n\t</object>\n</annotation>\n'
        )
        save(i, root / 'Data' / 'CLS-LOC' / 'val' / (name + '.JPEG'))
    return names
