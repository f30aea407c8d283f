"""All formats of weights, told apart by what is in them; the converter as a script."""

import shutil
import sys

import numpy as np
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
from trainer.weights import formats, pytorch

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
    assert status == 0 and 'wrote best.npz' in told and 'its state_dict' in told
    assert not same(
        resnext_ilsvrc.load(tmp_path / 'best.npz'),
        pytorch.read(tmp_path / 'best.pth.tar', 'ema_state_dict')[0],
    )
    status, told, _ = run_converter(
        '-i', 'best.pth.tar', '--to', 'pth', '--entry', 'ema_state_dict'
    )
    assert status == 0 and 'wrote best.pth\n' in told and 'its ema_state_dict' in told
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
        (
            ('x.pth', '--naming', 'timm'),
            '--naming is of pth and safetensors, and what is written is',
        ),
        (('x.pth', '--keep-bn', '-o', 'y.pth'), '--keep-bn is of onnx'),
        (('x.pth', '--layout', 'original', '-o', 'y.onnx'), '--layout is of npz'),
        (('x.pth', '--entry', 'model'), 'there is no state dict model; there are: '),
        ((FIXTURES / FILES['npz'], '--entry', 'model'), '--entry model: only PyTorch files'),
        (('none.pth',), 'none.pth: cannot be read'),
        (('text.pth',), 'text.pth: not a file of weights'),
    ],
)
def test_bad_input_is_one_line(arguments, message, run_converter, tmp_path):
    shutil.copy(FIXTURES / FILES['pth'], tmp_path / 'x.pth')
    (tmp_path / 'text.pth').write_text('weights')
    before = sorted(path.name for path in tmp_path.iterdir())
    status, told, errors = run_converter('-i', *arguments)
    assert status == 2 and errors.count('\n') == 1 and message in errors
    assert 'Traceback' not in errors and 'wrote' not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
