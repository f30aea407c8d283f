"""All formats of weights, told apart by what is in them; the converter as a script."""

import os
import shutil
import stat
import sys

import numpy as np
import pth_files
import pytest
from conftest import FIXTURES
from helpers.networks import same, small
from PIL import Image

import ilsvrc_converter
import predict
import resnext
import resnext_ilsvrc
from trainer import cli
from trainer.errors import InputError
from trainer.training import run, transfer
from trainer.weights import formats, npz, pytorch, state_dict

FILES = {
    't7': 'torch7_cifar10_tiny_d20_4x2d.t7',
    'npz': 'original_ilsvrc_tiny.model.npz',
    'pth': 'pytorch_torchvision.pth',
}


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('name', ['x.npz', 'x.t7', 'x.safetensors', 'x'])
def test_names_do_not_matter(kind, name, tmp_path):
    shutil.copy(FIXTURES / FILES[kind], tmp_path / name)
    assert formats.kind_of(tmp_path / name) == kind
    network, found = formats.read(tmp_path / name)
    assert found.format == kind and found.image_size == network.image_size
    assert same(formats.load(tmp_path / name), network)
    assert same(ilsvrc_converter.convert(tmp_path / name), network)


def test_the_older_pytorch_format_and_safetensors(tmp_path):
    network, found = formats.read(FIXTURES / 'pytorch_prlz77.pth')
    assert found == formats.Contents('pth', "float32, prlz77's names", 32)
    # The names tell how images are prepared as well.
    assert network.preprocessing == 'DataAugmentationCifarPrlz77'
    network.save_model(tmp_path / 'x')
    assert resnext.load(tmp_path / 'x').preprocessing == 'DataAugmentationCifarPrlz77'
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    formats.write(tmp_path / 'x', network, 'safetensors')
    assert formats.kind_of(tmp_path / 'x') == 'safetensors'
    assert same(formats.read(tmp_path / 'x')[0], network)


@pytest.mark.parametrize('size', [0x1380, 0x300, 0x1004, 0x4B50])
def test_safetensors_of_any_size_are_told_from_other_files(size, tmp_path):
    (tmp_path / 'x').write_bytes(size.to_bytes(8, 'little') + b'{}'.ljust(size))
    assert formats.kind_of(tmp_path / 'x') == 'safetensors'


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not a file of weights'),
        (b'\x08\x08\x12\x0fresnext', 'ONNX is written, not read'),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), 'not a file of weights'),
        (bytes(257) + b'ustar' + bytes(99), 'a tar archive; if PyTorch 0.1'),
        (b'PK\3\4', 'not a whole PyTorch file'),
        (b'\x80\x02}.', 'not a whole PyTorch file'),
        (b'4\n1\n', 'text format'),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    (tmp_path / 'x.npz').write_bytes(content)
    with pytest.raises(InputError, match='x.npz.*' + message):
        resnext_ilsvrc.load(tmp_path / 'x.npz')


@pytest.mark.parametrize('written', ['out.pth', 'out.pth.tar', 'out.PT', 'out.safetensors'])
def test_the_script_goes_to_pytorch_and_back(written, run_converter, tmp_path):
    if written.endswith('safetensors'):
        pytest.importorskip('safetensors', reason='safetensors is not installed')
    source = FIXTURES / FILES['pth']
    assert run_converter('-i', source)[0] == 0
    status, told, errors = run_converter(
        '-i', 'pytorch_torchvision.npz', '-o', written, '--naming', 'clcarwin'
    )
    assert (status, errors) == (0, '') and 'wrote ' + written in told
    assert formats.kind_of(tmp_path / written) == formats.kind_for(written)
    status, told, errors = run_converter('-t', written, '-o', 'back')
    assert (status, errors) == (0, '') and "float32, clcarwin's names" in told
    assert formats.kind_of(tmp_path / 'back') == 'npz'
    assert same(resnext_ilsvrc.load(tmp_path / 'back'), pytorch.read(source)[0])


def test_the_script_names_what_it_writes(run_converter, tmp_path):
    shutil.copy(FIXTURES / 'pytorch_lornatang.pth', tmp_path / 'best.pth.tar')
    status, told, _ = run_converter('-i', 'best.pth.tar')
    assert status == 0 and 'wrote best.npz (npz)' in told and 'its state_dict' in told
    note = 'note: best.pth.tar holds ema_state_dict too; state_dict was taken'
    assert note in told
    said = []
    formats.load(tmp_path / 'best.pth.tar', say=said.append)
    assert len(said) == 1 and 'holds ema_state_dict too; state_dict was taken' in said[0]
    assert not same(
        resnext_ilsvrc.load(tmp_path / 'best.npz'),
        pytorch.read(tmp_path / 'best.pth.tar', 'ema_state_dict')[0],
    )
    status, told, _ = run_converter(
        '-i', 'best.pth.tar', '--to', 'pth', '--entry', 'ema_state_dict'
    )
    assert status == 0 and 'wrote best.pth (pth)\n' in told and 'its ema_state_dict' in told
    assert 'note:' not in told
    assert same(
        resnext_ilsvrc.load(tmp_path / 'best.pth'),
        pytorch.read(tmp_path / 'best.pth.tar', 'ema_state_dict')[0],
    )
    assert run_converter('-i', 'best.pth.tar', '--to', 'pth', '-o', 'x.npz')[0] == 0
    assert formats.kind_of(tmp_path / 'x.npz') == 'pth'


@pytest.mark.parametrize('flags', [(), ('--keep-bn',)])
def test_the_script_writes_onnx(flags, run_converter, tmp_path):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    status, told, errors = run_converter('-i', FIXTURES / FILES['t7'], '-o', 'x.onnx', *flags)
    assert (status, errors) == (0, '') and 'wrote x.onnx' in told
    onnx.checker.check_model(str(tmp_path / 'x.onnx'), full_check=True)
    kinds = [node.op_type for node in onnx.load(tmp_path / 'x.onnx').graph.node]
    assert ('BatchNormalization' in kinds) == bool(flags)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('x.pth', '--to', 'pth'), '-o x.pth: is the file to convert itself'),
        (('x.pth', '--to', 'pth', '--naming', 'prlz77', '-o', 'y'), 'prlz77: it has no names for'),
        (('x.pth', '--naming', 'timm'), '--naming is for pth and safetensors; the output is'),
        (('x.pth', '--keep-bn', '-o', 'y.pth'), '--keep-bn is for onnx'),
        (('x.pth', '--layout', 'original', '-o', 'y.onnx'), '--layout is for npz'),
        (('x.pth', '--entry', 'model'), 'there is no state dict model; there are: '),
        ((FIXTURES / FILES['npz'], '--entry', 'model'), '--entry model: only PyTorch files'),
        (('none.pth',), 'none.pth: cannot be read'),
        (('none.t7',), 'published at https://github.com/facebookresearch/ResNeXt'),
        (('x.pth', '-o', 'y.h5'), '-o y.h5: no format that is written has the suffix .h5; there'),
        (('x.pth', '-o', 'y.t7'), '-o y.t7: no format that is written has the suffix .t7; there'),
        (('x.pth', '-o', 'mine.npz'), '-o mine.npz: is there and read-only'),
        (('text.pth',), 'text.pth: not a file of weights'),
    ],
)
def test_bad_input_is_one_line(arguments, message, run_converter, tmp_path):
    shutil.copy(FIXTURES / FILES['pth'], tmp_path / 'x.pth')
    (tmp_path / 'text.pth').write_text('weights')
    (tmp_path / 'mine.npz').write_text('mine')
    (tmp_path / 'mine.npz').chmod(0o444)
    before = sorted(path.name for path in tmp_path.iterdir())
    status, told, errors = run_converter('-i', *arguments)
    assert status == 2 and errors.count('\n') == 1 and message in errors
    assert 'Traceback' not in errors and 'wrote' not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / 'mine.npz').read_text() == 'mine'


def test_a_read_only_file_is_not_replaced(tmp_path):
    (tmp_path / 'x.npz').write_text('mine')
    (tmp_path / 'x.npz').chmod(0o444)
    with pytest.raises(OSError, match='it is read-only'):
        small().save_model(tmp_path / 'x.npz')
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / 'x.npz')
    with pytest.raises(OSError, match='it is not a file'):
        small().save_model(tmp_path / 'x.npz')
    (left,) = tmp_path.iterdir()
    assert stat.S_ISFIFO(left.stat().st_mode)


def test_what_a_format_does_not_hold_is_told(run_converter, tmp_path):
    network = small()
    network.classes = [f'kind {i}' for i in range(network.category_num)]
    network.save_model(tmp_path / 'x.npz')
    told = {name: run_converter('-i', 'x.npz', '-o', name)[1] for name in ('y.pth', 'y.model')}
    assert 'note: pth files hold no names of classes; npz' in told['y.pth']
    assert 'wrote y.pth (pth)' in told['y.pth'] and 'wrote y.model (npz)' in told['y.model']
    assert 'note' not in told['y.model']
    assert resnext_ilsvrc.load(tmp_path / 'y.model').classes == network.classes


def test_load_model_takes_every_format(tmp_path):
    path = FIXTURES / FILES['pth']
    wanted = pytorch.read(path)[0]
    network = formats.load(path)
    network.weight_initialization(3)
    assert not same(network, wanted)
    network.load_model(path)
    assert same(network, wanted)
    with pytest.raises(InputError, match='does not fit'):
        network.load_model(FIXTURES / FILES['t7'])
    assert same(network, wanted)


@pytest.mark.parametrize('prefix', ['model.', 'backbone.', 'module.net.0.'])
def test_state_dicts_with_one_prefix(prefix, tmp_path):
    network = small()
    named = {prefix + name: a for name, a in state_dict.write(network).items()}
    pth_files.write_zip(tmp_path / 'x.pth', *pth_files.contents(named))
    assert same(resnext_ilsvrc.load(tmp_path / 'x.pth'), network)


def test_a_state_dict_without_classifier_gets_a_new_one(tmp_path):
    network = small()
    named = {name: a for name, a in state_dict.write(network).items() if not name.startswith('fc.')}
    path = str(tmp_path / 'x.pth')
    pth_files.write_zip(path, *pth_files.contents(named))
    with pytest.raises(InputError, match='x.pth: holds a network without its classifier; .*reset'):
        resnext_ilsvrc.load(path)
    held, _ = formats.read(path, headless=True)
    new = transfer.reset_classifier(held, ['a', 'b', 'c'], 0)
    assert new.has_classifier and new.category_num == 3
    arrays = npz.state(new)
    for name, array in npz.state(network).items():
        if not name.startswith('fc/'):
            np.testing.assert_array_equal(arrays[name], array)
    assert 'fully connected' in run.summary(
        load_model=path, reset_classifier=True, dataset='cifar10'
    )


def test_predict_takes_any_of_them(tmp_path, monkeypatch, capfd):
    network = small()
    pytorch.save(tmp_path / 'model', network)
    image = np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'predict.py',
            str(tmp_path / 'a.png'),
            '-m',
            str(tmp_path / 'model'),
            '--engine',
            'reference',
        ],
    )
    with pytest.raises(SystemExit) as e:
        cli.run(predict.main)
    out, err = capfd.readouterr()
    assert (e.value.code, err) == (0, '') and out.count('%') == 3
