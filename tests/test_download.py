"""Downloads from servers on this machine: well-behaved, and not."""

import contextlib
import functools
import hashlib
import http.server
import os
import socketserver
import threading
import time

import chainer
import pytest

from trainer import download
from trainer.errors import InputError

DATA = bytes(range(256)) * 1000
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@contextlib.contextmanager
def serving(handler):
    """Yield the URL of a file on a server of this machine."""
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}/data.gz'
        server.shutdown()


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


OK = b'HTTP/1.1 200 OK\r\n'
LENGTH = b'Content-Length: %d\r\n\r\n' % len(DATA)
CHUNKED = OK + b'Transfer-Encoding: chunked\r\n\r\n'


def redirect(to):
    return b'HTTP/1.1 302 Found\r\nLocation: ' + to + b'\r\n\r\n'


def sends(*parts):
    """Return a behaviour: send these, without end if one is ``...``."""

    def behave(send):
        for part in parts:
            if part is ...:
                while True:
                    send(DATA)
            send(part)

    return behave


def stalls(*parts, forever=b''):
    """Return a behaviour: send these, then wait, or send a little again and again."""

    def behave(send):
        for part in parts:
            send(part)
        for _ in range(100):
            time.sleep(0.05)
            send(forever)

    return behave


SERVERS = {
    'closes at once': (sends(), 'broke off .RemoteDisconnected'),
    'no HTTP': (sends(b'\x1b[2Jgarbage\r\n\r\n'), 'broke off .BadStatusLine'),
    'endless status': (sends(b'H' * 100_000), 'broke off .LineTooLong'),
    'endless header': (sends(OK, b'X: ' + b'y' * 100_000), 'broke off .LineTooLong'),
    'many headers': (sends(OK, b'X: y\r\n' * 1000), 'broke off .HTTPException'),
    'error': (sends(b'HTTP/1.1 500 Sorry\r\n\r\n'), 'cannot be downloaded .Sorry'),
    'cut': (sends(OK, LENGTH, DATA[:1000]), 'broke off .*1,000 of 256,000 bytes came'),
    'cut without a length': (sends(OK, b'\r\n', DATA[:1000]), 'broke off .*1,000 of 256,000'),
    'length no number': (
        sends(OK, b'Content-Length: many\r\n\r\n', DATA[:-1]),
        'broke off .*255,999 of',
    ),
    'length below 0': (sends(OK, b'Content-Length: -5\r\n\r\n', DATA[:9]), 'broke off .*9 of'),
    'length of 10^30': (
        sends(OK, b'Content-Length: 1' + b'0' * 30 + b'\r\n\r\n', DATA, DATA),
        'more than its 256,000',
    ),
    'length too small': (sends(OK, b'Content-Length: 9\r\n\r\n', DATA), '9 of 256,000'),
    'too long': (sends(OK, b'\r\n', DATA, b'x'), 'more than its 256,000 bytes came'),
    'endless': (sends(OK, b'\r\n', ...), 'more than its 256,000 bytes came'),
    'endless chunks': (sends(CHUNKED, b'FFFFFFFFFF\r\n', ...), 'more than its 256,000'),
    'chunked garbage': (sends(CHUNKED, b'zz\r\n', DATA), 'broke off .IncompleteRead'),
    'cut chunk': (sends(CHUNKED, b'FFFF\r\n', DATA[:99]), 'broke off'),
    'wrong digest': (sends(OK, LENGTH, DATA[:-1] + b'x'), 'not the published file .MD5'),
    'another file': (sends(OK, b'\r\n', b'<html>'), 'broke off .*6 of 256,000 bytes'),
    'to a file': (sends(redirect(b'file:///etc/passwd')), 'cannot be downloaded .*file:'),
    'to nowhere': (sends(redirect(b'http://127.0.0.1:9/')), 'cannot be downloaded'),
    'to no URL': (sends(redirect(b'http://[::1/\x00')), 'broke off|cannot be downloaded'),
    'to a bad port': (sends(redirect(b'http://127.0.0.1:x/')), 'broke off|cannot be downloaded'),
    'to itself': (sends(redirect(b'/data.gz')), 'cannot be downloaded'),
    'silent': (stalls(), 'broke off .TimeoutError|cannot be downloaded'),
    'silent later': (stalls(OK, LENGTH, DATA[:9]), 'broke off .TimeoutError'),
    'slow': (stalls(OK, LENGTH, forever=b'x'), 'less than 1,000 bytes a second'),
}


@pytest.mark.parametrize('name', SERVERS)
def test_misbehaving_servers(name, cache, monkeypatch):
    behave, words = SERVERS[name]
    monkeypatch.setattr(download, '_TIMEOUT', 0.3)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            with contextlib.suppress(OSError):
                behave(self.request.sendall)

    with serving(Handler) as url:
        refused(url, words, cache)
