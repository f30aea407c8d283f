"""Local servers that misbehave in all ways that a download must handle."""

import concurrent.futures
import contextlib
import hashlib
import os
import socketserver
import tempfile
import threading
import time

from trainer import download
from trainer.errors import InputError

DATA = bytes(range(256)) * 1000
MD5 = hashlib.md5(DATA).hexdigest()


@contextlib.contextmanager
def serving(handler):
    """Yield the URL of a file on a server of this machine."""
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}/data.gz'
        server.shutdown()


OK = b'HTTP/1.1 200 OK\r\n'
LENGTH = b'Content-Length: %d\r\n\r\n' % len(DATA)
CHUNKED = OK + b'Transfer-Encoding: chunked\r\n\r\n'


def redirect(to):
    return b'HTTP/1.1 302 Found\r\nLocation: ' + to + b'\r\n\r\n'


def sends(*parts):
    """Return a behaviour: send these parts, endlessly if one is ``...``."""

    def behave(send):
        for part in parts:
            if part is ...:
                while True:
                    send(DATA)
            send(part)

    return behave


def stalls(*parts, forever=b''):
    """Return a behaviour: send these parts, then wait, or send a little repeatedly."""

    def behave(send):
        for part in parts:
            send(part)
        for _ in range(100_000):  # until the other end is gone
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
    'drips its status': (stalls(b'HTTP/1.1 200 ', forever=b'O'), 'less than 1,000 bytes a second'),
    'drips a header': (stalls(OK, b'X: ', forever=b'y'), 'less than 1,000 bytes a second'),
    'drips many headers': (stalls(OK, forever=b'X: y\r\n'), 'less than 1,000 bytes a second'),
    'drips the length of a chunk': (stalls(CHUNKED, forever=b'0'), 'less than 1,000 bytes a sec'),
    'drips a trailer': (
        stalls(CHUNKED, b'9\r\n', DATA[:9], b'\r\n0\r\n', forever=b'X: y\r\n'),
        'less than 1,000 bytes a second',
    ),
    'redirects, then drips': (
        stalls(redirect(b'/data.gz')[:-2], forever=b'X: y\r\n'),
        'less than 1,000 bytes a second',
    ),
    'slow': (stalls(OK, LENGTH, forever=b'x'), 'less than 1,000 bytes a second'),
}


def handler(name):
    """Return a handler that behaves as one of :data:`SERVERS`."""
    behave, _ = SERVERS[name]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            with contextlib.suppress(OSError):
                behave(self.request.sendall)

    return Handler


def all_refused():
    """Download from each server, with the real time limits.

    Returns:
        dict: Name -> (seconds, fault or '', the line).
    """
    with concurrent.futures.ThreadPoolExecutor(len(SERVERS)) as pool:
        return dict(zip(SERVERS, pool.map(_refused, SERVERS)))


def _refused(name):
    start, line, fault = time.monotonic(), '', 'a whole file'
    with tempfile.TemporaryDirectory() as folder, serving(handler(name)) as url:
        try:
            download.get(url, os.path.join(folder, 'x'), 'x', len(DATA), len(DATA), ('md5', MD5))
        except InputError as e:
            line = str(e)
            whole = line.isprintable() and len(line) < 500 and url in line
            fault = '' if whole else 'no printable line that names the file'
        except Exception as e:
            fault = f'{type(e).__name__}: {e}'
        if os.listdir(folder):
            fault = 'something left behind'
    seconds = time.monotonic() - start
    return seconds, fault or ('slow' if seconds > 60 else ''), line
