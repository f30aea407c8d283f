"""Images, ImageNet preprocessing, folders of images, loading by several processes."""

import io
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from damage import damaged
from helpers.images import make_tree, random_image
from PIL import Image

import trainer  # noqa: F401
from data_augmentation import DataAugmentationCifar10NormalizeSmall as Small
from data_augmentation import DataAugmentationNormalizeBigger as Bigger
from trainer.datasets import class_names, folder, ilsvrc, loading, parallel
from trainer.errors import InputError
from trainer.transforms import decoding, generator
from trainer.transforms.resize_crop import BiggerDrawn, resized_size

ROOT = pathlib.Path(__file__).resolve().parents[1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def by_hand(pixels, short_side, interpolation, y=None, x=None, flip=False):
    """The preprocessing written out: ``y`` and ``x`` are pixels, or the centre."""
    height, width = pixels.shape[:2]
    if height <= width:
        size = (max(224, int(short_side / height * width)), short_side)
    else:
        size = (short_side, max(224, int(short_side / width * height)))
    image = np.asarray(Image.fromarray(pixels).resize(size, interpolation))
    y = int(image.shape[0] / 2) - 112 if y is None else y
    x = int(image.shape[1] / 2) - 112 if x is None else x
    crop = image[y : y + 224, x : x + 224][:, :: -1 if flip else 1].astype(np.float64)
    return ((crop / 255 - MEAN) / STD).transpose(2, 0, 1)


# ---- preprocessing


def test_preprocessing_equals_the_original_program(shared):
    golden = shared / 'golden' / 'original'
    decoded, test, train = (
        np.load(golden / f'da_ilsvrc_{name}.npz') for name in ('decoded', 'test', 'train')
    )
    info = json.loads((golden / 'da_ilsvrc_info.json').read_text())
    assert len(info) == 6
    for name, said in info.items():
        image = decoded[name + '__decoded']
        sample = Bigger.test(image)
        np.testing.assert_allclose(sample.x, test[name + '__test'], rtol=0, atol=1e-6)
        (resizing,) = (step for step in said['test'] if step['step'] == 'resize_image_randomly')
        assert sample.info['resized'] == resizing['resized_size']
        for drawn in said['train']:
            (height, width), ((y, _), (x, _)) = drawn['resized'], drawn['keypoints']
            sample = Bigger.train(
                image,
                drawn=BiggerDrawn(
                    Image.Resampling[drawn['interpolation'].upper()],
                    min(height, width),
                    (y + 0.5) / (height - 223),
                    (x + 0.5) / (width - 223),
                    drawn['flip'],
                ),
            )
            assert sample.info == {key: drawn[key] for key in sample.info}
            np.testing.assert_allclose(
                sample.x, train['{}__train_seed{}'.format(name, drawn['seed'])], rtol=0, atol=1e-6
            )


@pytest.mark.parametrize(
    'height, width',
    [
        (375, 500),
        (500, 375),
        (256, 256),
        (224, 224),
        (49, 49),
        (300, 301),
        (256, 400),
        (1, 1),
        (3, 90),
        (700, 512),
        (512, 512),
        (575, 275),  # more than twice as high as wide: Pillow 13 begins with the rows
        (550, 250),
        (250, 550),
    ],
)
def test_preprocessing_equals_pillow_and_numpy_written_out(height, width):
    pixels = random_image(height, width)
    sample = Bigger.test(pixels)
    assert sample.x.shape == (3, 224, 224) and sample.x.dtype == np.float32
    np.testing.assert_allclose(sample.x, by_hand(pixels, 256, Image.BICUBIC), rtol=0, atol=1e-6)
    for seed in range(6):
        drawn = Bigger.draw(np.random.default_rng(seed))
        sample = Bigger.train(pixels, drawn=drawn)
        (y, _), (x, _) = sample.info['keypoints']
        assert min(sample.info['resized']) == drawn.short_side
        expected = by_hand(pixels, drawn.short_side, drawn.interpolation, y, x, drawn.flip)
        np.testing.assert_allclose(sample.x, expected, rtol=0, atol=1e-6)


def test_square_images_whose_truncation_gives_223():
    # Which made the original crash: 224 / n * n is a little less than 224.
    sides = [n for n in range(1, 600) if int(224 / n * n) == 223]
    assert len(sides) > 10
    for n in sides:
        assert resized_size(n, n, 224) == (224, 224)
    drawn = BiggerDrawn(Image.Resampling.BICUBIC, 224, 0.99, 0.99, True)
    sample = Bigger.train(random_image(sides[0], sides[0]), drawn=drawn)
    assert sample.x.shape == (3, 224, 224)
    assert sample.info['keypoints'] == [[0, 224], [0, 224]]
    # The original's 255 of 256 stays, where it does no harm.
    assert resized_size(49, 49, 256) == (256, 255)


def test_what_training_draws():
    rng = np.random.default_rng(0)
    drawn = [Bigger.draw(rng) for _ in range(13000)]
    kinds = [d.interpolation.name for d in drawn]
    for kind, share in (('NEAREST', 0.25), ('BILINEAR', 0.25), ('BICUBIC', 0.5)):
        assert abs(kinds.count(kind) / len(drawn) - share) < 0.02
    sides = np.bincount([d.short_side for d in drawn], minlength=289)
    assert not sides[:224].any() and len(sides) == 289
    assert sides[224:].min() > 140 and sides[224:].max() < 260  # 200 each
    assert abs(np.mean([d.flip for d in drawn]) - 0.5) < 0.02
    # Of an image resized to 226 x 300, all 3 x 77 places are taken.
    pixels = random_image(226, 300)
    places = {
        tuple(
            np.ravel(
                Bigger.train(
                    pixels, drawn=BiggerDrawn(Image.Resampling.NEAREST, 226, y, x, False)
                ).info['keypoints']
            )[::2].tolist()
        )
        for y in np.arange(0.05, 1, 0.1)
        for x in (0.0, 0.5, np.nextafter(1, 0))
    }
    assert places == {(y, x) for y in range(3) for x in (0, 38, 76)}


def test_training_is_a_function_of_seed_epoch_and_image():
    pixels = random_image(300, 400)
    a, b, c = (Bigger.train(pixels, generator(0, epoch, 5)) for epoch in (1, 1, 2))
    assert (a.x == b.x).all() and a.info == b.info
    assert a.info != c.info
    np.random.seed(0)
    assert Bigger.train(pixels).x.shape == (3, 224, 224)


def test_batches_equal_single_images():
    images = [random_image(300, 400), random_image(250, 230)]
    drawn = [Bigger.draw(np.random.default_rng(i)) for i in range(2)]
    for batch, single in (
        (Bigger.test_batch(images), [Bigger.test(i) for i in images]),
        (
            Bigger.train_batch(images, drawn),
            [Bigger.train(i, drawn=d) for i, d in zip(images, drawn)],
        ),
    ):
        assert batch.dtype == np.float32 and batch.shape == (2, 3, 224, 224)
        assert all((x == s.x).all() for x, s in zip(batch, single))


def test_ten_crops():
    pixels = random_image(300, 400)
    x, info = Bigger.ten_crop(pixels)
    assert x.shape == (10, 3, 224, 224) and len(info) == 10
    size = (341, 256)
    for i, (top, left) in enumerate([(0, 0), (0, 117), (32, 0), (32, 117), (16, 58)]):
        expected = by_hand(pixels, 256, Image.BICUBIC, top, left)
        np.testing.assert_allclose(x[i], expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(x[5 + i], expected[:, :, ::-1], rtol=0, atol=1e-6)
        assert info[i]['resized'] == list(size[::-1]) and info[5 + i]['flip']
    assert (x[4] == Bigger.test(pixels).x).all()


def test_paths_images_and_arrays_give_the_same(tmp_path):
    pixels = random_image(240, 320)
    Image.fromarray(pixels).save(tmp_path / 'x.png')
    expected = Bigger.test(pixels).x
    for source in (
        str(tmp_path / 'x.png'),
        tmp_path / 'x.png',
        Image.fromarray(pixels),
        np.dstack([pixels, pixels[:, :, :1]]),
        pixels.astype(np.uint16) * 256 + 77,
    ):
        assert (Bigger.test(source).x == expected).all()
    grey = pixels[:, :, 0]
    expected = Bigger.test(np.dstack([grey] * 3)).x
    for source in (grey, grey[:, :, None], np.dstack([grey, grey]), Image.fromarray(grey)):
        assert (Bigger.test(source).x == expected).all()
    out = np.empty((3, 224, 224), np.float32)
    assert Bigger.test(grey, out=out).x is out and (out == expected).all()
    for wrong in (
        pixels.astype(float),
        pixels[None],
        np.zeros((5, 5, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(InputError, match='uint8 or uint16'):
            Bigger.test(wrong)


def test_cifar_preprocessing_writes_to_out():
    pixels = random_image(32, 32).transpose(2, 0, 1)
    out = np.empty((3, 32, 32), np.float32)
    assert Small.test(pixels, out=out).x is out and (out == Small.test(pixels).x).all()


# ---- images in the wild


def _png(width, height, colour_type, bits, rows):
    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, colour_type, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )


def _saved(image, form, **kwargs):
    with io.BytesIO() as f:
        image.save(f, form, **kwargs)
        return f.getvalue()


def _wild():
    """Yield (file name, its bytes, RGB pixels expected, deviation allowed)."""
    rgb = random_image(20, 30)
    image = Image.fromarray(rgb)
    grey = image.convert('L')
    replicated = np.dstack([np.asarray(grey)] * 3)
    yield 'grey.png', _saved(grey, 'PNG'), replicated, 0
    yield 'grey.jpg', _saved(grey, 'JPEG', quality=100), replicated, 6
    yield 'png named.JPEG', _saved(image, 'PNG'), rgb, 0
    yield 'gif named.jpg', _saved(grey, 'GIF'), replicated, 0
    bilevel = grey.convert('1')
    yield 'bilevel.png', _saved(bilevel, 'PNG'), np.dstack([np.asarray(bilevel) * 255] * 3), 0
    palette = image.convert('P', palette=Image.ADAPTIVE, colors=9)
    expected = np.asarray(palette.convert('RGB'))
    yield 'palette.png', _saved(palette, 'PNG'), expected, 0
    yield 'palette.gif', _saved(palette, 'GIF'), expected, 0
    yield 'transparent palette.png', _saved(palette, 'PNG', transparency=3), expected, 0
    yield (
        'transparencies of a palette.png',
        _saved(palette, 'PNG', transparency=bytes([0, 9, 255])),
        expected,
        0,
    )
    alpha = np.random.default_rng(1).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    yield 'alpha.png', _saved(Image.fromarray(np.dstack([rgb, alpha])), 'PNG'), rgb, 0
    yield (
        'grey alpha.png',
        _saved(Image.merge('LA', [grey, Image.fromarray(alpha[:, :, 0])]), 'PNG'),
        replicated,
        0,
    )
    # In CMYK, what is left of the light: 255 - ink, for black ink too.
    cmyk = np.dstack([rgb, np.full((20, 30), 55, np.uint8)])
    light = (255.0 - rgb) * (255 - 55) / 255
    yield 'cmyk.tif', _saved(Image.fromarray(cmyk, 'CMYK'), 'TIFF'), light, 1.01
    yield (
        'cmyk.jpg',
        _saved(Image.fromarray(cmyk, 'CMYK'), 'JPEG', quality=100, subsampling=0),
        light,
        8,
    )
    wide = np.random.default_rng(2).integers(0, 1 << 16, (20, 30), dtype=np.uint16)
    wide[0, :2] = 255, 65535  # Pillow alone keeps what is below 256
    upper = np.dstack([wide >> 8] * 3)
    yield '16 bits.png', _saved(Image.fromarray(wide), 'PNG'), upper, 0
    yield '16 bits.tif', _saved(Image.fromarray(wide), 'TIFF'), upper, 0
    yield '16 bits.pgm', b'P5 30 20 65535\n' + wide.astype('>u2').tobytes(), upper, 0
    wide = np.dstack([wide, wide[::-1], wide[:, ::-1]])
    yield (
        '16 bits a channel.png',
        _png(30, 20, 2, 16, b''.join(b'\0' + row.astype('>u2').tobytes() for row in wide)),
        wide >> 8,
        0,
    )
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by a quarter, which neither the original nor Torch7 does
    yield 'turned.jpg', _saved(image, 'JPEG', exif=exif, quality=100, subsampling=0), rgb, 8
    other = Image.fromarray(255 - rgb)
    yield 'animated.png', _saved(image, 'PNG', save_all=True, append_images=[other]), rgb, 0
    yield (
        'animated.webp',
        _saved(image, 'WEBP', save_all=True, append_images=[other], lossless=True),
        rgb,
        0,
    )
    yield (
        'animated.gif',
        _saved(palette, 'GIF', save_all=True, append_images=[other.convert('P')]),
        expected,
        0,
    )
    yield 'two images.tif', _saved(image, 'TIFF', save_all=True, append_images=[other]), rgb, 0
    yield (
        'two images.jpg',
        _saved(image, 'MPO', save_all=True, append_images=[other], quality=100, subsampling=0),
        rgb,
        8,
    )
    yield 'one pixel.png', _saved(image.crop((0, 0, 1, 1)), 'PNG'), rgb[:1, :1], 0
    yield 'bitmap.bmp', _saved(image, 'BMP'), rgb, 0
    yield (
        'progressive.jpg',
        _saved(image, 'JPEG', progressive=True, quality=100, subsampling=0),
        rgb,
        8,
    )


@pytest.mark.parametrize(
    'name, data, expected, deviation', [pytest.param(*case, id=case[0]) for case in _wild()]
)
def test_images_in_the_wild(tmp_path, name, data, expected, deviation, recwarn):
    path = tmp_path / name
    path.write_bytes(data)
    image = decoding.load(path)
    assert image.mode == 'RGB'
    np.testing.assert_allclose(np.asarray(image).astype(float), expected, rtol=0, atol=deviation)
    np.testing.assert_allclose(
        Bigger.test(path).x, by_hand(np.asarray(image), 256, Image.BICUBIC), rtol=0, atol=1e-6
    )
    assert decoding.load_chw(path).shape == (3,) + expected.shape[:2]
    assert not recwarn.list


def _refused():
    photo = _saved(Image.fromarray(random_image(200, 300)), 'JPEG')
    yield 'cut.jpg', photo[: len(photo) // 2], 'truncated'
    yield 'empty.jpg', b'', 'not an image'
    yield 'text.jpg', b'not an image at all\n' * 50, 'not an image'
    # A program of Ghostscript, which Pillow would start.
    yield (
        'program.jpg',
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n'),
        'not an image',
    )
    rows = np.random.default_rng(0).integers(0, 4, (32, 97), np.uint8)
    rows[:, 0] = 0
    whole = _png(32, 32, 2, 8, rows.tobytes())
    # Among the last pixels, after which zlib's own checksum is not reached.
    yield 'checksum.png', whole[:-22] + bytes([whole[-22] ^ 1]) + whole[-21:], 'broken PNG'
    yield 'huge.png', _png(40000, 40000, 2, 8, b''), '(?i)pixels'
    yield 'large.png', _png(8193, 8192, 2, 8, b''), '8193 x 8192 pixels; at most 67,108,864'
    yield 'float.tif', _saved(Image.new('F', (9, 9)), 'TIFF'), 'floating-point'
    yield (
        '32 bits.tif',
        _saved(Image.fromarray(np.full((9, 9), 1 << 20, np.int32)), 'TIFF'),
        '32 bits a channel',
    )
    progressive = _saved(Image.new('RGB', (3000, 3000)), 'JPEG', progressive=True)
    scan = progressive[progressive.rindex(b'\xff\xda') : -2]
    yield 'scans.jpg', progressive[:-2] + scan * 2000 + b'\xff\xd9', 'scans'


@pytest.mark.parametrize(
    'name, data, message', [pytest.param(*case, id=case[0]) for case in _refused()]
)
def test_images_that_are_refused(tmp_path, name, data, message, recwarn):
    path = tmp_path / name
    path.write_bytes(data)
    start = time.process_time()
    for read in (Bigger.test, decoding.load, decoding.load_chw):
        with pytest.raises(InputError, match=message) as e:
            read(path)
        assert str(e.value).startswith(f'{path}: ') and '\n' not in str(e.value)
    assert time.process_time() - start < 1
    assert not recwarn.list


def test_long_and_narrow_images(tmp_path):
    # 256 x 65,536 pixels after resizing are the most.
    assert Bigger.test(np.zeros((1, 256), np.uint8)).x.shape == (3, 224, 224)
    for shape in ((1, 257), (100000, 3)):
        with pytest.raises(InputError, match='too long and narrow'):
            Bigger.test(np.zeros(shape, np.uint8))
    path = tmp_path / 'x.png'
    Image.new('L', (60000, 2)).save(path)
    with pytest.raises(InputError, match='x.png: .* 60000 x 2 pixels is too long'):
        Bigger.test(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    for name, message in (
        ('pipe.jpg', 'it is not a file'),
        ('', 'it is not a file'),
        ('none.jpg', 'No such file'),
    ):
        with pytest.raises(InputError, match=message):
            decoding.load(tmp_path / name)


def test_what_pillow_logs_is_not_printed(tmp_path):
    data = _saved(Image.new('RGB', (9, 9)), 'TIFF')
    samples = struct.pack('<HHI', 277, 3, 1)  # SamplesPerPixel
    at = data.index(samples) + len(samples)
    (tmp_path / 'x.tif').write_bytes(data[:at] + struct.pack('<H', 58883) + data[at + 2 :])
    code = f"""
from trainer.errors import InputError
from trainer.transforms import decoding
try:
    decoding.load({str(tmp_path / 'x.tif')!r})
except InputError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count('\n') == 1 and not done.stderr


@pytest.mark.parametrize(
    'form, options',
    [
        ('JPEG', {}),
        ('PNG', {}),
        ('GIF', {}),
        ('TIFF', {}),
        ('TIFF', {'compression': 'tiff_lzw'}),
        ('WEBP', {}),
        ('BMP', {}),
        ('AVIF', {}),
    ],
)
def test_damaged_images_end_in_one_line(tmp_path, form, options, capfd):
    data = _saved(Image.fromarray(random_image(60, 80)), form, **options)
    path = tmp_path / 'x'
    read = refused = 0
    for _, (what, damage) in zip(range(60), damaged(data, np.random.default_rng(0))):
        path.write_bytes(damage)
        start = time.process_time()
        try:
            assert Bigger.test(path).x.shape == (3, 224, 224), what
            read += 1
        except InputError as e:
            assert '\n' not in str(e) and str(path) in str(e)
            refused += 1
        assert time.process_time() - start < 5, what
    assert refused > 2
    assert capfd.readouterr() == ('', '')


# ---- names


def test_imagenet_names():
    names = class_names.imagenet()
    assert len(names) == 1000 and list(names) == sorted(names)
    assert all(len(s) == 9 and s[0] == 'n' and s[1:].isdigit() for s in names)
    assert list(names.items())[0] == ('n01440764', 'tench, Tinca tinca')
    assert list(names.items())[999] == ('n15075141', 'toilet tissue, toilet paper, bathroom tissue')
    assert names['n02123045'] == 'tabby, tabby cat' and list(names).index('n02123045') == 281
    assert all(name and name == name.strip() for name in names.values())


class Network:
    def __init__(self, category_num, classes=None):
        self.category_num, self.classes = category_num, classes


def test_names_of_networks():
    assert class_names.of(Network(1000))[1] == 'goldfish, Carassius auratus'
    assert class_names.of(Network(10))[:2] == ['airplane', 'automobile']
    cifar100 = class_names.of(Network(100))
    assert cifar100 == sorted(cifar100) and cifar100[99] == 'worm'
    assert class_names.of(Network(3)) == ['class 0', 'class 1', 'class 2']
    assert class_names.of(Network(2, ['n01440764', 'mine'])) == ['tench, Tinca tinca', 'mine']
    assert class_names.synsets(Network(10)) is None
    assert class_names.synsets(Network(2, ['n01443537', 'n01440764'])) == ['n01443537', 'n01440764']


# ---- folders


def _touch(*parts):
    path = pathlib.Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_class_folders(tmp_path):
    expected = [
        _touch(tmp_path, 'val', *parts)
        for parts in (('a', '1.JPEG'), ('a', '2.jpg'), ('a', 'images', 'deep.PNG'), ('c', 'x.jpeg'))
    ]
    for other in (
        ('a', 'notes.txt'),
        ('a', '._1.JPEG'),
        ('.hidden', 'x.jpg'),
        ('b', 'Thumbs.db'),
        ('x.jpg',),
    ):
        _touch(tmp_path, 'val', *other)
    for root in (tmp_path, tmp_path / 'val'):
        found = ilsvrc.find(str(root))
        assert sorted(found.paths) == sorted(expected) and len(found) == 4
        assert found.categories == ['a', 'b', 'c']
        assert found.labels.dtype == np.int32
        assert dict(zip(found.paths, found.labels.tolist())) == dict(zip(expected, [0, 0, 0, 2]))


def test_labels_for_a_network():
    files = folder.ImageFiles(['x', 'y'], [0, 1], ['n01443537', 'n01484850'])
    assert files.labels_for(Network(1000)).tolist() == [1, 2]
    assert files.labels_for(Network(2)).tolist() == [0, 1]
    named = Network(3, ['n01484850', 'n01440764', 'n01443537'])
    assert files.labels_for(named).tolist() == [2, 0]
    for network in (Network(3), Network(3, ['a', 'b', 'c'])):
        with pytest.raises(InputError, match='of 2 classes .*the network has 3'):
            files.labels_for(network)
    with pytest.raises(InputError, match='the network has 1000'):
        folder.ImageFiles(['x'], [0], ['cat']).labels_for(Network(1000))


def test_published_tree(tmp_path, monkeypatch):
    root = tmp_path / 'ILSVRC'
    names = make_tree(root, ['n02', 'n01', 'n02'], lambda i, path: path.touch())
    found = ilsvrc.find(str(root))
    assert found.paths == [str(root / 'Data' / 'CLS-LOC' / 'val' / (n + '.JPEG')) for n in names]
    assert found.categories == ['n01', 'n02'] and found.labels.tolist() == [1, 0, 1]
    monkeypatch.chdir(tmp_path)
    assert ilsvrc.find().labels.tolist() == [1, 0, 1]
    train = _touch(root, 'Data', 'CLS-LOC', 'train', 'n01', 'n01_1.JPEG')
    assert ilsvrc.find(str(root), 'train').paths == [train]


def test_trees_and_folders_that_are_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r'-ld ./ILSVRC: no such folder; .*ImageSets.*n01440764'):
        ilsvrc.find()
    _touch(tmp_path, 'file')
    with pytest.raises(InputError, match='-ld file: not a folder; wanted'):
        ilsvrc.find('file')
    for name in ('empty', 'flat'):
        (tmp_path / name).mkdir()
    _touch(tmp_path, 'flat', 'x.jpg')
    for name in ('empty', 'flat'):
        with pytest.raises(InputError, match='no .*class folders; wanted is .*n01440764'):
            ilsvrc.find(name)
    _touch(tmp_path, 'half', 'train', 'n01440764', 'x.jpg')
    with pytest.raises(InputError, match='-ld half: half/val is missing'):
        ilsvrc.find('half')
    root = tmp_path / 'ILSVRC'
    names = make_tree(root, ['n01', 'n02'], lambda i, path: path.touch())
    annotation = root / 'Annotations' / 'CLS-LOC' / 'val' / (names[0] + '.xml')
    for text, message in (
        ('<annotation><object></object></annotation>', 'no object'),
        ('<annotation><object><name>n01', 'not an annotation'),
        ('', 'not an annotation'),
        (
            '<!DOCTYPE a [<!ENTITY b "n01">]><a><object><name>&b;</name></object></a>',
            'document type',
        ),
        ('<a><object><name>n01</name></object></a>' + ' ' * (1 << 20), 'more than'),
    ):
        annotation.write_text(text)
        with pytest.raises(InputError, match=f'{names[0]}.xml: .*{message}'):
            ilsvrc.find()
    annotation.unlink()
    with pytest.raises(InputError, match=f'{names[0]}.xml: cannot be read'):
        ilsvrc.find()
    listing = root / 'ImageSets' / 'CLS-LOC' / 'val.txt'
    listing.write_bytes(b'\xff\xfe\xff')
    with pytest.raises(InputError, match='val.txt: not a list'):
        ilsvrc.find()
    listing.write_bytes(b'a\0b 1\n')
    with pytest.raises(InputError, match='cannot be read .its name holds a NUL'):
        ilsvrc.find()
    os.truncate(listing, 1 << 34)
    with pytest.raises(InputError, match='val.txt: cannot be read .it has more than'):
        ilsvrc.find()
    listing.write_text('\n')
    with pytest.raises(InputError, match='val.txt: an empty list'):
        ilsvrc.find()
    listing.unlink()
    with pytest.raises(InputError, match='-ld ./ILSVRC: .*val.txt is missing'):
        ilsvrc.find()


@pytest.mark.parametrize('inside', ['\n' * 1000000, '<b>' * 149000 + '</b>' * 149000])
def test_a_large_annotation_takes_no_time(inside, tmp_path):
    path = tmp_path / 'x.xml'
    path.write_text(f'<a><object><name>n01{inside}</name></object></a>')
    start = time.process_time()
    assert ilsvrc._synset(str(path)) == 'n01'
    assert time.process_time() - start < 1


def test_expanding_folders(tmp_path):
    a, b = _touch(tmp_path, 'd', 'a.jpg'), _touch(tmp_path, 'd', 'e', 'b.PNG')
    _touch(tmp_path, 'd', 'c.txt')
    assert folder.expand(['x', str(tmp_path / 'd')]) == ['x', a, b]
    with pytest.raises(InputError, match='no images in this folder'):
        folder.expand([str((tmp_path / 'none').mkdir() or tmp_path / 'none')])


# ---- loading by several processes


def _load(i, out):
    if i % 7 == 3:
        raise InputError(f'image {i} is damaged')
    out[...] = i
    out[0, 0] = os.getpid() % 1000


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('batch', [1, 16, 50])
def test_batches_are_the_same_by_any_number_of_workers(workers, batch):
    plan = loading.InOrder(53, batch)(0)
    seen, processes = [], set()
    load = parallel.one_by_one(_load)
    for items, x, errors in parallel.batches(load, plan, batch, (2, 3), workers):
        assert x.dtype == np.float32 and x.shape == (len(items), 2, 3)
        assert errors == {
            k: f'image {i} is damaged' for k, i in enumerate(items.tolist()) if i % 7 == 3
        }
        for k, i in enumerate(items):
            if k not in errors:
                assert (x[k, 1] == i).all()
                processes.add(int(x[k, 0, 0]))
        seen += items.tolist()
    assert seen == list(range(53))
    assert (os.getpid() % 1000 in processes) == (workers == 0)


def _die(i, out):
    if i == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told():
    with pytest.raises(InputError, match='was killed'):
        list(parallel.batches(parallel.one_by_one(_die), [[i] for i in range(50)], 1, (1,), 2))


def test_no_more_is_loaded_than_is_under_way():
    drawn = []

    def plan():
        while True:
            drawn.append(len(drawn))
            yield drawn[-1:] * 4

    batches = parallel.batches(parallel.one_by_one(_load), plan(), 4, (2, 3), 2)
    for _ in range(10):
        next(batches)
    batches.close()
    assert 10 < len(drawn) < 20


_ENDLESS = """
import os, sys, itertools
from trainer.datasets import parallel
def load(i, out):
    out[...] = os.getpid()
if __name__ == '__main__':
    plan = ([i] for i in itertools.count())
    for n, batch in enumerate(parallel.batches(parallel.one_by_one(load), plan, 1, (1,), 2)):
        if n % 50 == 0:
            print(int(batch.x[0, 0]), flush=True)
"""


def _alive(process):
    try:
        with open(f'/proc/{process}/stat') as f:
            return f.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
def test_no_process_outlives_a_killed_main_process(tmp_path):
    script = tmp_path / 'endless.py'
    script.write_text(_ENDLESS)
    main = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    workers = set()
    while len(workers) < 2:
        workers.add(int(main.stdout.readline()))
    assert all(map(_alive, workers)) and main.pid not in workers
    main.kill()
    main.wait()
    main.stdout.close()
    until = time.monotonic() + 10
    while any(map(_alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_alive, workers))
