"""Uses of a run's folder: testing its models, comparing it with others."""

import json
import os
import re
import sys

import numpy as np
import pytest
from conftest import FIXTURES, has_gpu, write_cifar10
from helpers.runs import train, write
from PIL import Image

import compare
import ilsvrc_converter
import main
import predict
import resnext
import test as test_script
import test_ilsvrc
from trainer import cli, run_folder
from trainer.datasets import folder
from trainer.errors import InputError
from trainer.reports import comparison
from trainer.training import run
from trainer.weights import description, formats, npz, sources

CIFAR = dict(
    C=2,
    d=2,
    multi=2,
    block_num=(1, 1, 1),
    batch=60,
    train_batch_divide=2,
    lr=0.05,
    lr_steps=(),
    epoch=2,
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Runs: a and b on CIFAR-10 in memory, c on a folder without a split."""
    root = tmp_path_factory.mktemp('runs')
    data = str(write_cifar10(root / 'cifar-10-batches-bin'))
    for name, changed in (('a', {}), ('b', {'lr': 0.01, 'seed': 1})):
        run.train(
            say=lambda text: None, save_path=str(root / name), data=data, **dict(CIFAR, **changed)
        )
    train(root / 'c', write(root / 'images'), epoch=1)
    return root


def call(capsys, script, *argv):
    """Return exit status, standard output and error of a script."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'argv', ['script.py', *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            cli.run(script.main)
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def entries(path, _id):
    return [e for e in json.loads((path / 'log.json').read_text()) if e['_id'] == _id]


def test_the_record_says_what_shaped_a_run(folders):
    record = run_folder.read_record(str(folders / 'c'))
    assert record['options']['seed'] == 7 and record['options']['lr'] == 0.05
    assert record['options']['data'] == str(folders / 'images')
    assert {'python', 'numpy', 'chainer', 'pillow'} <= set(record['versions'])
    assert record['network']['classes'] == ['canines', 'felines', 'lorries']
    assert record['images']['train'] == 30 and record['images']['name'] == 'folder'
    assert len(json.loads((folders / 'c' / 'split.json').read_text())['test']) == 6


@pytest.mark.parametrize('name, images', [('a', 40), ('c', 6)])
def test_testing_a_run_gives_its_own_numbers(folders, capsys, name, images, tmp_path):
    before = {
        path: os.stat(folders / name / path).st_mtime_ns for path in os.listdir(folders / name)
    }
    for epoch, right in enumerate(entries(folders / name, 'test_accuracy'), 1):
        code, out, err = call(
            capsys,
            test_script,
            folders / name,
            '-e',
            epoch,
            '--workers',
            0,
            '--engine',
            'reference',
            '-p',
            tmp_path,
        )
        assert code == 0, err
        assert '({:,} wrong)'.format(images - right['accuracy']) in out
        loss = entries(folders / name, 'test_loss')[epoch - 1]['loss']
        assert entries(tmp_path, 'test_loss')[0]['loss'] == pytest.approx(loss, rel=1e-6)
        assert entries(tmp_path, 'test_parameter')[0]['parameter'] == images
    assert before == {
        path: os.stat(folders / name / path).st_mtime_ns for path in os.listdir(folders / name)
    }


def test_testing_any_model_on_any_dataset(folders, capsys):
    model = sources.of_run(str(folders / 'a'), 2)
    n = entries(folders / 'a', 'test_accuracy')[1]['accuracy']
    data = folders / 'cifar-10-batches-bin'
    common = ('--workers', 0, '--engine', 'reference')
    _, out, _ = call(capsys, test_script, model, '--dataset', 'cifar10', '--data', data, *common)
    assert f'({40 - n} wrong)' in out and 'cifar10, test images' in out
    code, out, err = call(
        capsys,
        test_script,
        sources.of_run(str(folders / 'c')),
        '--dataset',
        'folder',
        '--data',
        folders / 'images',
        *common,
    )
    assert code == 0 and 'folder, all images' in out and 'images           30' in out, err
    best, other = (
        npz.state(resnext.load(path)) for path in (folders / 'a', sources.of_run(folders / 'a'))
    )
    assert best.keys() == other.keys() and all((best[n] == other[n]).all() for n in best)
    _, out, _ = call(capsys, test_script, folders / 'c', '--part', 'train', *common)
    assert 'images           24' in out


def test_a_torch7_file_on_cifar(capsys, tmp_path):
    """It brings the preprocessing of that program."""
    from data_augmentation import DataAugmentationCifarTorch7 as preprocess
    from trainer.datasets import quick
    from trainer.weights import formats

    path = FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7'
    code, out, err = call(
        capsys,
        test_script,
        path,
        '--dataset',
        'quick',
        '-p',
        tmp_path / 'new',
        '--engine',
        'reference',
    )
    assert code == 0, err
    held = quick.load().test
    y = formats.load(str(path))(preprocess.test_batch(held.images), train=False).array
    right = int((y.argmax(axis=1) == held.labels).sum())
    assert entries(tmp_path / 'new', 'test_accuracy')[0]['accuracy'] == right
    assert f'({1000 - right:,} wrong)' in out


def test_a_network_for_large_images_on_small_ones(tmp_path):
    """Images in memory go through any preprocessing, as files of them would."""
    from data_augmentation import DataAugmentationNormalizeBigger as preprocess
    from trainer.datasets import quick

    images = run_folder.images(quick.load())
    assert len(images) == 1000 and images.categories[3] == 'cat'
    Image.fromarray(quick.load().test.images[5].transpose(1, 2, 0)).save(tmp_path / 'x.png')
    np.testing.assert_array_equal(
        preprocess.test(images.paths[5]).x, preprocess.test(tmp_path / 'x.png').x
    )


def test_labels_of_other_classes_are_refused():
    files = folder.ImageFiles(['x', 'y'], [0, 1], ['cat', 'dog'])

    class Network:
        category_num = 2
        classes = ['one', 'two']

    with pytest.raises(InputError, match='2 classes .cat, dog.*2 .one, two'):
        files.labels_for(Network())


def test_what_cannot_be_tested(folders, capsys, tmp_path):
    (tmp_path / 'empty').mkdir()
    model = sources.of_run(str(folders / 'a'))
    for argv, words in [
        ((model,), '--dataset says what'),
        ((model, '-e', 1, '--dataset', 'quick'), '--epoch chooses'),
        ((tmp_path / 'empty',), 'neither a file of weights nor a run'),
        ((folders / 'a', '-e', 9), 'no model 9 there'),
        ((folders / 'a', '-p', folders / 'b'), 'that of a run'),
        (
            (tmp_path / 'none', '--dataset', 'quick'),
            'none: there is no such file of weights, and no',
        ),
        ((tmp_path / 'none',), "no such run's folder"),
        (
            (folders / 'a', '--dataset', 'folder', '--data', folders / 'images'),
            'the images are of 3 classes',
        ),
        ((folders / 'a', '--workers', -1), '--workers'),
    ]:
        code, out, err = call(capsys, test_script, *argv)
        assert code == 2 and err.count('\n') == 1 and words in err, err


def test_a_run_stands_for_its_best_model(folders, capsys, tmp_path):
    run_c = folders / 'c'
    image = next((folders / 'images' / 'felines').iterdir())
    code, out, err = call(capsys, predict, image, '-m', run_c, '--engine', 'reference')
    assert code == 0 and 'felines' in out, err
    with pytest.MonkeyPatch.context() as m:
        m.chdir(tmp_path)
        code, out, err = call(capsys, ilsvrc_converter, '-i', run_c)
    assert code in (0, None) and 'wrote c.npz (npz)' in out, err
    best = sources.of_run(str(run_c))
    ours, theirs = npz.read_arrays(str(tmp_path / 'c.npz')), npz.read_arrays(best)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert train(tmp_path / 'd', folders / 'images', load_model=str(run_c), epoch=1)
    code, out, err = call(capsys, predict, image, '-m', tmp_path)
    assert code == 2 and err.count('\n') == 1 and "nor a run's folder" in err


def test_the_end_of_a_run_says_what_it_reached(folders, tmp_path):
    said = []
    where = tmp_path / 'a run'
    assert train(where, folders / 'images', say=said.append, epoch=2)
    _, *lines = said[-1].split('\n')
    right = [e['accuracy'] for e in entries(where, 'test_accuracy')]
    shares = [f'{100 * n / 6:.2f} %' for n in right]
    best = max(right), right.index(max(right)) + 1
    assert re.fullmatch('done           2 epochs in 0:00:0.', lines[0])
    assert lines[1:] == [
        f'best accuracy  {shares[best[1] - 1]} of 6 test images, epoch {best[1]}',
        f'last accuracy  {shares[-1]}',
        f'best model     {where}/model/ResNext_3_2_best.model',
        f"to predict     python predict.py IMAGE -m '{where}'",
        f"to test        python test.py '{where}'",
        f"to go on       python main.py --resume '{where}' -e 3",
    ]
    assert os.path.exists(lines[3].split(maxsplit=2)[2])


def test_all_faults_are_told_at_once(folders, capsys, tmp_path):
    gpu, no_gpu = ((), ()) if has_gpu() else (('-g', 0), ('-g 0:',))
    model = sources.of_run(str(folders / 'a'))
    for script, argv, words in [
        (
            test_ilsvrc,
            (*gpu, '-c', 32, '-d', 4, '-l', 50, '-m', tmp_path / 'model', '-ld', 'none'),
            (*no_gpu, 'model: cannot be read', '-ld none: no such folder'),
        ),
        (
            predict,
            ('x.jpg', *gpu, '-m', tmp_path / 'none', '--draw', 'x.none'),
            (*no_gpu, 'none: cannot be read', '--draw x.none'),
        ),
        (
            main,
            (
                '--dataset',
                'folder',
                '--data',
                'no0',
                '-m',
                'no1',
                '-o',
                'no2',
                '-p',
                tmp_path / 'r',
            ),
            ('no1: cannot be read', 'no2: there is no such file', 'no0: not a folder'),
        ),
        (main, ('-e', 0, '--dataset', 'x', '--unknown'), ('--epoch', '--dataset', '--unknown')),
        (ilsvrc_converter, ('-i', 'none', '-o', 'x.h5'), ('.h5', 'none: cannot be read')),
        (test_script, (folders / 'a', '-p', folders / 'a', '-e', 9), ('no model 9', '-p ')),
    ]:
        code, out, err = call(capsys, script, *argv)
        lines = err.splitlines()
        assert code == 2 and len(lines) == len(words), err
        for word in words:
            assert any(word in line and 'error: ' in line for line in lines), (word, err)
    network = formats.load(model)
    with pytest.raises(InputError, match='-c 3 -l 9: .* leave -c, -l out'):
        description.check_flags(network, model, 3, network.d, 9)


# ---- comparing


def test_the_table(folders, capsys):
    code, out, err = call(capsys, compare, folders / 'a', folders / 'b')
    assert code == 0, err
    rows = {line[:16].strip(): line[16:].split() for line in out.splitlines()}
    best = []
    for name in 'ab':
        right = [e['accuracy'] for e in entries(folders / name, 'test_accuracy')]
        best.append(f'{100 * (1 - max(right) / 40):.2f}')
    assert rows['run'] == ['a', 'b'] and rows['epochs'] == ['2', '2']
    assert rows['best test error'][::2] == best
    assert rows['lr'] == ['0.05', '0.01'] and rows['seed'] == ['0', '1']
    assert 'momentum' not in rows and 'save_path' not in rows
    losses = [entries(folders / n, 'train_loss')[-1]['loss'] / 200 for n in 'ab']
    assert rows['last train loss'] == [f'{loss:.4f}' for loss in losses]


def test_the_figure(folders, capsys, tmp_path):
    path = tmp_path / 'out.png'
    code, _, err = call(capsys, compare, folders / 'a', folders / 'b', folders / 'c', '-o', path)
    assert code == 0, err
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int)
    assert pixels.shape[1] > 1000
    for colour in comparison._COLOURS[:3]:  # each run is there
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=2) < 8).sum() > 200, colour
    assert (pixels == 255).all(axis=2).mean() > 0.8


def test_a_log_of_the_original(tmp_path):
    """No epochs in it, no options beside it."""
    said = [
        {'_id': 'train_parameter', 'parameter': 200},
        {'_id': 'test_parameter', 'parameter': 50},
    ]
    for i in range(3):
        said += [
            {'_id': 'train_loss', 'loss': 200.0 - i},
            {'_id': 'test_loss', 'loss': 50.0},
            {'_id': 'test_accuracy', 'accuracy': 20 + i},
        ]
    (tmp_path / 'log.json').write_text(json.dumps(said))
    found = comparison.Run(str(tmp_path))
    assert [row['epoch'] for row in found.epochs] == [1, 2, 3]
    assert found.best == {
        'epoch': 3,
        'train_loss': 0.99,
        'test_loss': 1.0,
        'test_error': pytest.approx(56),
    }
    assert comparison.differences([found, found]) == {}
    comparison.draw([found], str(tmp_path / 'x.png'))


def test_what_cannot_be_compared(folders, capsys, tmp_path):
    for name, text in (('x', '{'), ('y', '[]'), ('z', '[{"_id": "test_accuracy"}]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'log.json').write_text(text)
    a = folders / 'a'
    for argv, words in [
        ((a, tmp_path), 'cannot be read'),
        ((a, tmp_path / 'x'), 'not a log.json of a run'),
        ((a, tmp_path / 'y'), 'a log without epochs'),
        ((a, tmp_path / 'z'), 'not a log.json of a run'),
        ((a, '-o', tmp_path / 'out.xyz'), '-o'),
        ((a, '-o', tmp_path / 'none' / 'out.png'), 'no such folder'),
        ((*[a] * 8, '-o', tmp_path / 'out.png'), '8 runs do not fit'),
    ]:
        code, out, err = call(capsys, compare, *argv)
        assert code == 2 and err.count('\n') == 1 and words in err, err


def test_a_resume_with_another_network(folders):
    with pytest.raises(InputError, match='C 4: the run in .* has 2'):
        run.train(resume=True, save_path=str(folders / 'a'), C=4, epoch=3)
    record = json.loads((folders / 'a' / 'run.json').read_text())
    other = resnext.ResNext(10, (1, 1, 1), 4, 2, 2)
    try:
        (folders / 'a' / 'run.json').write_text(
            json.dumps(dict(record, network=dict(other.architecture())))
        )
        said = []
        with pytest.raises(InputError, match='none of the . snapshots is whole and of this run'):
            run.train(resume=True, say=said.append, save_path=str(folders / 'a'), epoch=3)
        assert 'does not fit the network' in said[-1]
    finally:
        (folders / 'a' / 'run.json').write_text(json.dumps(record))
    assert run.train(resume=True, say=print, save_path=str(folders / 'a'), epoch=3)
