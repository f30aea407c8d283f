"""Downloads from servers on this machine: well-behaved, and not."""

import functools
import http.server
import os

import chainer
import pytest
from helpers.servers import DATA, MD5, SERVERS, handler, serving

from trainer import download
from trainer.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """A folder on a server, with the file in it, and the file's URL."""
    web = tmp_path / 'web'
    web.mkdir()
    (web / 'data.gz').write_bytes(DATA)
    with serving(functools.partial(Quiet, directory=str(web))) as url:
        yield web / 'data.gz', url


def kept(cache):
    return [os.path.join(here, name) for here, _, names in os.walk(cache) for name in names]


def refused(url, words, cache):
    with pytest.raises(InputError, match=words) as e:
        download.fetch(url, len(DATA), MD5)
    message = str(e.value)
    assert url in message and '\n' not in message and len(message) < 500 and '--data' in message
    assert not kept(cache)


def test_once(site, cache, capfd):
    path, url = site
    found = download.fetch(url, len(DATA), MD5)
    assert 'data.gz: 100%' in capfd.readouterr().err
    path.unlink()
    assert download.fetch(url, len(DATA), MD5) == found and kept(cache) == [found]
    with open(found, 'rb') as f:
        assert f.read() == DATA


def test_a_damaged_file_is_fetched_again(site):
    path, url = site
    found = download.fetch(url, len(DATA), MD5)
    for damaged in (b'', DATA[:-1], DATA[:-1] + b'x'):
        with open(found, 'wb') as f:
            f.write(damaged)
        assert download.fetch(url, len(DATA), MD5) == found
        with open(found, 'rb') as f:
            assert f.read() == DATA
    with open(found, 'wb') as f:
        f.write(damaged)
    path.unlink()
    with pytest.raises(InputError, match='cannot be downloaded'):
        download.fetch(url, len(DATA), MD5)


def test_no_server(cache):
    refused('http://127.0.0.1:9/data.gz', 'cannot be downloaded', cache)


@pytest.mark.parametrize('name', SERVERS)
def test_misbehaving_servers(name, cache, monkeypatch):
    monkeypatch.setattr(download, '_TIMEOUT', 0.3)
    with serving(handler(name)) as url:
        refused(url, SERVERS[name][1], cache)
