"""The examples of the README and of docs/ work."""

import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import resnext
import resnext_ilsvrc

PAGES = {
    path: path.read_text()
    for path in (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md'))
}
TEXT = '\n'.join(PAGES.values())


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', TEXT, re.S)


def run(code, folder):
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )


def test_pip_installs_what_uv_installs():
    with open(ROOT / 'pyproject.toml', 'rb') as f:
        project = tomllib.load(f)
    (chainer,) = [pin for pin in project['project']['dependencies'] if 'chainer' in pin]
    assert f'pip install --no-build-isolation {chainer}\n' in TEXT
    (constraint,) = project['tool']['uv']['build-constraint-dependencies']
    assert f'pip install --upgrade pip "{constraint}" wheel' in TEXT
    assert f'build-constraint-dependencies = ["{constraint}"]' in TEXT
    for extra in re.findall(r'\.\[(\w+)\]', TEXT):
        assert extra in project['project']['optional-dependencies']
    for group in re.findall(r'--group (\w+)', TEXT):
        assert group in project['dependency-groups']
    for command in re.findall(r'`(resnext-[\w-]+)`', TEXT):
        assert command in project['project']['scripts']


def test_a_cifar_model_in_python(tmp_path):
    (code,) = [b for b in blocks('python') if 'copy_2017.model' in b]
    (tmp_path / 'model').mkdir()
    model = resnext.ResNext(10, (1, 1, 1), 2, 2, 2)
    model.classes = list('abcdefghij')
    model.fc.bn.beta.array[:] = np.arange(10)
    model.fc.bn.gamma.array[:] = 0
    model.save_model(tmp_path / 'model' / 'ResNext_10_2_best.model')
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'photo.png')
    process = run(code, tmp_path)
    assert (process.stdout, process.stderr) == ('j\n', '')
    assert {'copy.model', 'copy_2017.model'} <= set(os.listdir(tmp_path))


def test_prediction_from_python(tmp_path):
    (code,) = [b for b in blocks('python') if 'prediction.predict' in b]
    model = resnext_ilsvrc.ResNext(1000, (1,), 2, 2, 1, initialize=False)
    model.fc.b.array[...] = np.arange(1000)
    model.save_model(tmp_path / 'resnext_50_32x4d.npz')
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / 'photo.jpg')
    process = run(code, tmp_path)
    assert process.stderr == ''
    assert process.stdout.startswith('photo.jpg toilet tissue, toilet paper, bathroom tissue 0.6')


def test_training_from_python(tmp_path):
    (code,) = [b for b in blocks('python') if 'run.train' in b]
    # The same lines with a smaller network, so that they take seconds.
    assert 'epoch=1,' in code
    process = run(code.replace('epoch=1,', 'epoch=1, d=2, multi=2, batch=250,'), tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.rstrip().endswith("'frog', 'horse', 'ship', 'truck']")


def test_networks(tmp_path):
    (code,) = [b for b in blocks('python') if 'of_depth' in b]
    # Weights take ten seconds to draw, and nothing here depends on them.
    undrawn = (
        'from trainer.networks.base import Network\n'
        'Network.weight_initialization = lambda self, seed=None: None\n'
    )
    process = run(undrawn + code, tmp_path)
    assert process.returncode == 0, process.stderr
    assert '25.0 M parameters, 4.23 G multiply-adds' in process.stdout


def commands():
    for block in blocks('sh'):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and words[0] in ('uv', 'run', '--extra', 'cuda13', 'python'):
                words.pop(0)
            if words and words[0].endswith('.py'):
                yield words


@pytest.mark.parametrize('words', list(commands()), ids=' '.join)
def test_commands_are_understood(words):
    script, *arguments = words
    spec = importlib.util.spec_from_file_location('script', ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.parser().parse_args(arguments)
    except SystemExit as e:  # as --help, --list-weights prints and ends
        assert e.code == 0


def test_places_exist():
    architecture = PAGES[ROOT / 'docs' / 'architecture.md']
    places = re.findall(r'`([\w./]+\.py|trainer/[\w/]+)`', architecture)
    assert len(places) > 30
    for place in places:
        assert list(ROOT.glob(place)) or list((ROOT / 'trainer').glob('*/' + place)), place


def test_links_lead_somewhere():
    for path, text in PAGES.items():
        for link in re.findall(r'\]\((?!http)([^)#]+)', text):
            assert (path.parent / link).exists(), f'{path.name}: {link}'


def test_the_readme_is_short():
    assert len(PAGES[ROOT / 'README.md'].splitlines()) <= 150


def test_the_documented_api_exists():
    documented = re.findall(r'^::: ([\w.]+)', (ROOT / 'docs' / 'api.md').read_text(), re.M)
    assert len(documented) > 10
    for name in documented:
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_site_builds(tmp_path):
    pytest.importorskip('mkdocs', reason='MkDocs is not installed (uv run --group docs)')
    process = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(tmp_path / 'site')],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
