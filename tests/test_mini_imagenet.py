"""MiniImageNet's lists."""

import pytest
from helpers.images import random_image
from PIL import Image

from trainer import datasets
from trainer.errors import InputError
from trainer.training import run

PUBLISHED = {'train': ('n02', 'n05', 'n01'), 'val': ('n03',), 'test': ('n04', 'n06')}


def write(root, lists, images=4, below=False):
    """Write images and lists: name -> labels."""
    (root / 'images').mkdir(parents=True)
    for part, labels in lists.items():
        lines = ['filename,label']
        for label in labels:
            (root / 'images' / (label if below else '')).mkdir(exist_ok=True)
            for i in range(images):
                name = f'{label}{part}{i:08d}.jpg'
                image = Image.fromarray(random_image(84, 84, (i, len(lines))))
                image.save(root / 'images' / (label if below else '') / name)
                lines.append(f'{name},{label}')
        (root / f'{part}.csv').write_text('\r\n'.join(lines) + '\r\n')
    return str(root)


@pytest.mark.parametrize('below', [False, True])
def test_published_lists_divide_classes_and_are_taken_together(tmp_path, below):
    found = datasets.load('mini_imagenet', write(tmp_path / 'm', PUBLISHED, below=below))
    assert found.classes == ['n01', 'n02', 'n03', 'n04', 'n05', 'n06'] and found.test is None
    assert len(found.train) == 24
    for path, label in zip(found.train.paths, found.train.labels):
        assert found.classes[label] in path.rsplit('/', 1)[1]
    assert found.notes == (
        '3 classes of train.csv, 1 classes of val.csv, 2 classes of test.csv: taken together, as '
        'no class is in two',
    )


def test_lists_that_divide_images(tmp_path):
    two = ('n01', 'n02')
    data = write(tmp_path / 'm', {'train': two, 'val': two[::-1], 'test': two})
    found = datasets.load('mini_imagenet', data)
    assert len(found.train) == len(found.test) == 8
    assert all('test0' in path for path in found.test.paths)
    assert found.notes == ('val.csv is not used',)
    (tmp_path / 'm' / 'test.csv').unlink()
    assert all('val0' in path for path in datasets.load('mini_imagenet', data).test.paths)


def test_a_run(tmp_path):
    data = write(tmp_path / 'm', PUBLISHED)
    assert run.train(
        say=lambda text: None,
        save_path=str(tmp_path / 'run'),
        dataset='mini_imagenet',
        data=data,
        preprocessing='DataAugmentationCifar10NormalizeSmall',
        **dict(C=1, d=2, block_num=(1, 1, 1), multi=2, batch=4, epoch=1, lr=0.1),
    )
    assert (tmp_path / 'run' / 'split.json').exists()


@pytest.mark.parametrize(
    'listing, said',
    [
        ('filename,label\nnowhere.jpg,n01\n', r'nowhere\.jpg: missing, but .*train\.csv names it'),
        ('filename,label\n../train.csv,n01\n', r'\.\./train\.csv does not lie in'),
        ('filename,label\n/etc/passwd,n01\n', 'does not lie in'),
        ('filename,label\n', 'an empty list'),
        ('', 'must name the columns'),
        ('name,class\na.jpg,n01\n', 'must name the columns filename and label'),
        ('filename,label\na.jpg\n', 'line 2 has no file name or no label'),
        ('filename,label\n' + 'x' * 200_000 + ',n01\n', 'not a list of images'),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, listing, said):
    data = write(tmp_path / 'm', {'val': ('n01', 'n02')})
    (tmp_path / 'm' / 'train.csv').write_text(listing)
    with pytest.raises(InputError, match=said):
        datasets.load('mini_imagenet', data)


def test_what_is_missing(tmp_path):
    with pytest.raises(InputError, match='data DIR says where it is'):
        datasets.load('mini_imagenet')
    with pytest.raises(InputError, match='not a folder'):
        datasets.load('mini_imagenet', str(tmp_path / 'nowhere'))
    with pytest.raises(InputError, match=r'train\.csv is missing; wanted is'):
        datasets.load('mini_imagenet', str(tmp_path))
    data = write(tmp_path / 'm', {'train': ('n01', 'n02'), 'val': ('n02', 'n03')})
    with pytest.raises(InputError, match='different classes'):
        datasets.load('mini_imagenet', data)
