"""Weights by name: the table, and downloads from servers that behave like the publishers'."""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib.util
import json
import os
import re
import socketserver
import sys
import threading
import urllib.error
import urllib.request

import chainer
import numpy as np
import pytest
from conftest import FIXTURES
from helpers.images import random_image
from PIL import Image

import ilsvrc_converter
import main
import predict
import resnext_ilsvrc
import test_ilsvrc
from trainer import cli, download, extras
from trainer.errors import InputError
from trainer.training import resolve
from trainer.transforms.geometry import Geometry
from trainer.weights import chainercv, npz, safetensors, sources, timm_config

CONFIG = {
    'architecture': 'resnext50_32x4d',
    'num_classes': 1000,
    'pretrained_cfg': {
        'input_size': [3, 224, 224],
        'test_input_size': [3, 288, 288],
        'interpolation': 'bicubic',
        'crop_pct': 0.95,
        'test_crop_pct': 1.0,
        'crop_mode': 'center',
        'mean': [0.485, 0.456, 0.406],
        'std': [0.229, 0.224, 0.225],
        'license': 'apache-2.0',
    },
}


def a_network(**arguments):
    network = resnext_ilsvrc.ResNext(5, (1, 1), 2, 2, 4, stem_width=4, **arguments)
    network.weight_initialization(0)
    return network


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    """Suffix -> bytes of a small file of weights, of the layout that the publishers have."""
    folder = tmp_path_factory.mktemp('weights')
    its = {'t7': (FIXTURES / 'torch7_cifar10_tiny_d20_4x2d.t7').read_bytes()}
    its['pth'] = (FIXTURES / 'pytorch_torchvision.pth').read_bytes()
    network = a_network(se_reduction=4, eps=2e-5, round_up_pooling=True, pool_pad=0)
    names = {ours: chainercv_name(ours) for ours in npz.state(network)}
    np.savez(folder / 'x.npz', **{names[k]: a for k, a in npz.state(network).items()})
    its['npz'] = (folder / 'x.npz').read_bytes()
    if importlib.util.find_spec('safetensors'):
        safetensors.save(folder / 'x.safetensors', a_network())
        its['safetensors'] = (folder / 'x.safetensors').read_bytes()
    else:
        its['safetensors'] = b'x' * 5000
    return its


def chainercv_name(ours):
    parts = {'reduce': 'conv1', 'grouped': 'conv2', 'expand': 'conv3', 'shortcut': 'residual_conv'}
    if not ours.startswith('stage'):
        return ours.replace('stem/', 'conv1/').replace('fc/', 'fc6/')
    stage, _, part, rest = ours.split('/', 3)
    return f'res{int(stage[5:]) + 1}/a/{parts.get(part, part)}/{rest}'


class Site(http.server.BaseHTTPRequestHandler):
    """The Hub sends elsewhere and says a file's digest; releases send elsewhere; others answer.

    Attributes:
        files (dict): Path -> bytes.
        cut (list): Bytes after which the next answers break off.
        ranges (bool): Whether parts can be had.
        asked (list): (path, its Range, its If-Range).
    """

    protocol_version = 'HTTP/1.1'
    files, cut, ranges, asked, hub_digest, config = {}, [], True, [], None, CONFIG

    def log_message(self, *args):
        pass

    def do_GET(self):
        asked = self.headers
        self.asked.append((self.path, asked.get('Range'), asked.get('If-Range')))
        if self.path.endswith('/config.json'):
            return self._send(json.dumps(self.config).encode())
        data = self.files.get(self.path.removeprefix('/cdn'))
        if data is None:
            return self.send_error(404)
        hub = '/resolve/main/' in self.path
        if not self.path.startswith('/cdn/') and (hub or '/releases/download/' in self.path):
            self.send_response(302)
            self.send_header('Location', '/cdn' + self.path)
            if hub:
                digest = self.hub_digest or hashlib.sha256(data).hexdigest()
                self.send_header('X-Linked-Etag', f'"{digest}"')
                self.send_header('X-Linked-Size', str(len(data)))
            self.send_header('Content-Length', '0')
            self.end_headers()
            return None
        return self._send(data)

    def _send(self, data):
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        part = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        begin = 0
        if part and self.ranges and self.headers.get('If-Range', etag) == etag:
            begin = int(part[1])
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {begin}-{len(data) - 1}/{len(data)}')
        else:
            self.send_response(200)
        self.send_header('ETag', etag)
        self.send_header('Content-Length', str(len(data) - begin))
        self.end_headers()
        if self.cut:
            self.wfile.write(data[begin : begin + self.cut.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
        else:
            self.wfile.write(data[begin:])


@pytest.fixture
def site(tmp_path, monkeypatch, contents):
    """A server of this machine that has every row of the table; its handler."""
    handler = type('Handler', (Site,), {'files': {}, 'cut': [], 'asked': []})
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path / 'cache'))
    monkeypatch.setattr(download, '_WAIT', 0)
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        here = f'http://127.0.0.1:{server.server_address[1]}/'
        rows = {}
        for name, row in sources.table().items():
            data = contents[row.url.rpartition('.')[2]]
            path = row.url.removeprefix('https://')
            handler.files['/' + path] = data
            digest = hashlib.sha256(data).hexdigest()[: len(row.sha256)]
            rows[name] = dataclasses.replace(row, url=here + path, sha256=digest)
        monkeypatch.setattr(sources, 'table', lambda: rows)
        handler.stop = staticmethod(lambda: (server.shutdown(), server.server_close()))
        yield handler
        with contextlib.suppress(OSError):
            server.shutdown()


def kept(tmp_path):
    cache = tmp_path / 'cache'
    return sorted(name for _, _, names in os.walk(cache) for name in names if name != 'config.json')


def test_the_table():
    table = sources.table()
    assert len(table) > 50 and {name.split('/')[0] for name in table} == set(sources.PUBLISHERS)
    for name, row in table.items():
        assert sources._NAME.fullmatch(name) and row.url.startswith('https://')
        assert re.fullmatch('[0-9a-f]{8,64}|', row.sha256) and row.source.startswith('https://')
        # Where a file's name ends in its digest, that is what is checked.
        named = re.search(r'-([0-9a-f]{8,})\.pth$', row.url)
        assert row.sha256 == (named[1] if named else '')
        assert 14 < row.top1_error < 24 and (row.top5_error is None or 2 < row.top5_error < 8)
        assert row.licence in ('', 'Apache 2.0', 'BSD 3-Clause', 'CC BY-NC 4.0')
    assert {row.licence for n, row in table.items() if n.startswith('torch7/')} == {'CC BY-NC 4.0'}
    # The two ways of testing one file, by torchvision and by timm.
    both = [
        table['torchvision/resnext101_64x4d.IMAGENET1K_V1'],
        table['timm/resnext101_64x4d.tv_in1k'],
    ]
    assert [row.top1_error for row in both] == [16.754, 17.022]
    assert [row.geometry.short_side for row in both] == [232, 256]


def test_short_names_mean_the_publishers_default():
    for short, full in (
        ('timm/resnext50_32x4d', 'timm/resnext50_32x4d.a1h_in1k'),
        ('torchvision/resnext50_32x4d', 'torchvision/resnext50_32x4d.IMAGENET1K_V2'),
        ('timm/resnext50d_32x4d', 'timm/resnext50d_32x4d.bt_in1k'),
        ('torch7/resnext_50_32x4d', 'torch7/resnext_50_32x4d'),
    ):
        assert sources.find(short).name == full
    with pytest.raises(InputError, match='--list-weights.*close: .*resnext50_32x4d.a1_in1k'):
        sources.find('timm/resnext50_32x4d.a1')


@pytest.mark.parametrize('name', sources.table())
def test_each_resolves(name, site, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(extras, 'need', lambda *args: None)
    path = sources.local(name)
    with open(path, 'rb') as f:
        data = f.read()
    assert data in site.files.values() and str(tmp_path / 'cache') in path
    assert kept(tmp_path) == sorted([os.path.basename(path), 'fetched.json'])
    assert '100%' in capfd.readouterr().err
    assert sources.fetched(path).name == name
    asked = len(site.asked)
    assert sources.local(name) == path and len(site.asked) == asked  # once


@pytest.mark.parametrize(
    'name',
    [
        'torch7/resnext_50_32x4d',
        'torchvision/resnext101_64x4d',
        'timm/resnext50_32x4d',
        'timm/legacy_seresnext50_32x4d.in1k',
        'chainercv/se_resnext50',
    ],
)
def test_load(name, site):
    row = sources.find(name)
    if row.url.endswith('safetensors'):
        pytest.importorskip('safetensors', reason='safetensors is not installed')
    said = []
    network = resnext_ilsvrc.load(name, say=said.append)
    licence = row.licence or 'not stated by its source'
    assert any(f'{row.name}: licence {licence}' in line for line in said), said
    if row.geometry is None:
        assert network.geometry is None
    elif name.startswith('chainercv'):
        assert network.geometry == chainercv.GEOMETRY
        for held, ours in zip(row.geometry.mean + row.geometry.std, chainercv.GEOMETRY.mean * 2):
            assert held == pytest.approx(ours) or held == pytest.approx(1 / 255)
    else:
        assert network.geometry == row.geometry
        assert any(str(row.geometry) in line for line in said)
    other = resnext_ilsvrc.load(name)
    other.fc.W.array[...] = 0
    other.load_model(name)
    assert np.array_equal(other.fc.W.array, network.fc.W.array)


def test_without_the_server_and_damaged(site, tmp_path):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    path = sources.local(name)
    with open(path, 'r+b') as f:
        f.write(b'damaged')
    assert sources.local(name) == path and len(site.asked) == 2
    os.remove(os.path.join(os.path.dirname(path), 'fetched.json'))
    sources.local(name)
    assert len(site.asked) == 3
    site.stop()
    sources.local(name)
    with open(path, 'r+b') as f:
        f.write(b'damaged')
    with pytest.raises(InputError, match='cannot be downloaded'):
        sources.local(name)


def refused(name, words, tmp_path):
    with pytest.raises(InputError, match=words) as e:
        sources.local(name)
    assert '\n' not in str(e.value) and sources.find(name).url in str(e.value)
    assert kept(tmp_path) == []


def test_another_file_leaves_nothing(site, tmp_path, monkeypatch):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    row = sources.find(name)
    site.files[row.url[row.url.index('/', 8) :]] = b'<html>Sorry</html>'
    refused(name, 'not the published file .SHA256 [0-9a-f]{8} instead of', tmp_path)
    monkeypatch.setattr(extras, 'need', lambda *args: None)
    site.hub_digest = 'ab' * 32
    refused('timm/resnext50_32x4d.a1h_in1k', 'its SHA-256 is .* and should be abababab', tmp_path)


def test_cut_downloads_go_on(site, capfd):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    site.cut[:] = [3000, 1, 500, 20]
    path = sources.local(name)
    ranges = [part for _, part, _ in site.asked]
    assert ranges == [None, 'bytes=3000-', 'bytes=3001-', 'bytes=3501-', 'bytes=3521-']
    assert all(version for _, _, version in site.asked[1:])
    with open(path, 'rb') as f:
        assert f.read() in site.files.values()


def test_cut_downloads_of_the_hub_go_on(site, monkeypatch):
    """What is asked for, and the file's digest, outlast the redirect."""
    monkeypatch.setattr(extras, 'need', lambda *args: None)
    site.cut[:] = [9999, 2000, 100]  # the first is config.json, whole
    with open(sources.local('timm/resnext50_32x4d.a1h_in1k'), 'rb') as f:
        assert f.read() in site.files.values()
    ranges = [part for path, part, _ in site.asked if path.startswith('/cdn/')]
    assert ranges == [None, 'bytes=2000-', 'bytes=2100-']


def test_cut_where_no_parts_can_be_had(site, tmp_path):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    site.ranges = False
    site.cut[:] = [3000, 100]
    sources.local(name)
    assert [part for _, part, _ in site.asked] == [None, 'bytes=3000-', 'bytes=100-']


def test_a_connection_that_always_breaks_leaves_nothing(site, tmp_path):
    site.cut[:] = [3000] + [0] * 50
    refused('torchvision/resnext50_32x4d.IMAGENET1K_V1', 'broke off .*3,000 of', tmp_path)
    assert len(site.asked) == 5


def test_a_file_that_changes_on_the_way_begins_anew(site, tmp_path, monkeypatch):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    row = sources.find(name)
    path = row.url[row.url.index('/', 8) :]
    data = site.files[path]
    site.files[path] = b'another' * 1000
    site.cut[:] = [2000]
    place = download._Transfer._place

    def change(self, response):
        site.files[path] = data
        return place(self, response)

    monkeypatch.setattr(download._Transfer, '_place', change)
    with open(sources.local(name), 'rb') as f:
        assert f.read() == data
    assert site.asked[1][1] == 'bytes=2000-'


def test_more_than_the_weights_can_have(site, tmp_path):
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V1'
    row = sources.find(name)
    sources.table()[name] = dataclasses.replace(row, parameters=-1.677, sha256='')
    refused(name, 'more than its .* bytes came', tmp_path)


def test_https_is_not_left():
    redirects = download._Redirects()
    request = urllib.request.Request('https://a/b')
    with pytest.raises(urllib.error.URLError, match='from https to http:'):
        redirects.redirect_request(request, None, 302, 'Found', {}, 'http://a/b')
    assert redirects.redirect_request(request, None, 302, 'Found', {}, 'https://c/d') is not None


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'pretrained_cfg': {}}, "not timm's .KeyError"),
        ({'pretrained_cfg': {'input_size': [3, 224, 256]}}, 'images of'),
        ({'pretrained_cfg': {'input_size': [3, 9999, 9999]}}, 'img_size 9999'),
        ({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'test_crop_pct': 7}}, 'crop_pct 7'),
        ({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'interpolation': 'x'}}, 'interpolation'),
        ({'pretrained_cfg': CONFIG['pretrained_cfg'] | {'crop_mode': 'border'}}, 'crop_mode'),
        ({'architecture': 'seresnextaa101d_32x8d'}, 'blurred pooling is not computed here'),
        ([], "not timm's"),
    ],
)
def test_configs_that_cannot_be_used(change, words, site, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, 'need', lambda *args: None)
    site.config = CONFIG | change if isinstance(change, dict) else change
    with pytest.raises(InputError, match=words):
        sources.local('timm/resnext50_32x4d.a1h_in1k')
    assert not (tmp_path / 'cache').exists() or not [
        name for _, _, names in os.walk(tmp_path / 'cache') for name in names
    ]


def test_a_config_beside_a_file(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    safetensors.save(tmp_path / 'model.safetensors', a_network())
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
    network = resnext_ilsvrc.load(tmp_path / 'model.safetensors')
    assert network.geometry == Geometry(288, 1.0) and network.image_size == 288
    os.rename(tmp_path / 'model.safetensors', tmp_path / 'other.safetensors')
    assert resnext_ilsvrc.load(tmp_path / 'other.safetensors').geometry is None
    (tmp_path / 'config.json').write_text('{"architecture": "x"}')
    assert timm_config.read(tmp_path / 'config.json') is None


def run(script, capfd, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [script.__name__ + '.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as e:
        cli.run(script.main)
    return (e.value.code or 0,) + tuple(capfd.readouterr())


@pytest.mark.parametrize('script', [main, predict, test_ilsvrc, ilsvrc_converter])
def test_list_weights(script, capfd, monkeypatch):
    code, out, err = run(script, capfd, monkeypatch, '--list-weights')
    assert code == 0 and not err
    assert all(f'\n{name} ' in out for name in sources.table())
    assert max(map(len, out.splitlines())) <= 80
    line = next(x for x in out.splitlines() if x.startswith('timm/resnext50_32x4d.a1h_in1k'))
    assert line.split()[1:] == ['18.0', '25', '288/288', 'bicubic', 'Apache']


def test_scripts_take_names(site, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V2'
    code, out, err = run(ilsvrc_converter, capfd, monkeypatch, '-i', name)
    assert code == 0, err
    assert 'note: ' + name + ': licence not stated by its source' in out
    converted = 'resnext50_32x4d.IMAGENET1K_V2.npz'
    assert f'wrote {converted}' in out
    assert resnext_ilsvrc.load(converted).geometry == Geometry(224, 0.965, 'bilinear')
    image = FIXTURES.parents[1] / 'trainer' / 'datasets' / 'quick' / 'cat.webp'
    flags = image, '-m', name, '--engine', 'reference'
    code, out, err = run(predict, capfd, monkeypatch, *flags)
    assert code == 0 and 'licence' in err and '224 of 232 pixels, bilinear' in err
    code, out, err = run(predict, capfd, monkeypatch, image, '-m', 'timm/nothing')
    assert code == 2 and err.count('\n') == 1 and 'neither a file nor published weights' in err


def test_a_run_begins_with_them(site, tmp_path, capfd, monkeypatch):
    for part, n in (('train', 4), ('val', 2)):
        for i in range(n):
            folder = tmp_path / 'photos' / part / 'ab'[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_image(230, 240, seed=i)).save(folder / f'{i}.png')
    name = 'torchvision/resnext50_32x4d.IMAGENET1K_V2'
    monkeypatch.chdir(tmp_path)
    flags = '--dataset', 'folder', '--data', 'photos', '-p', 'run', '-e', 1, '-b', 2
    code, out, err = run(main, capfd, monkeypatch, *flags, '--retrain', name, '--reset-classifier')
    assert code == 0, err
    said = ' '.join(out.split())
    assert f'note: {name}: licence not stated by its source' in said
    assert 'note: -m was tested by 224 of 232 pixels, bilinear; this run tests as it' in said
    held = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert held['options']['load_model'] == name and 'geometry' not in held['network']
    assert resnext_ilsvrc.load(sources.local('run')).geometry is None


def test_a_run_keeps_the_name():
    given = {'load_model': 'timm/resnext50_32x4d', 'data': 'x'}
    assert resolve._anywhere(given) == given | {'data': os.path.abspath('x')}


def test_a_file_of_that_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs('timm')
    npz.save('timm/resnext50_32x4d', a_network())
    assert resnext_ilsvrc.load('timm/resnext50_32x4d').category_num == 5
