"""Downloads: each file is fetched once, and appears whole and checked."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import chainer
import tqdm

from trainer import files
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.types import Path

_BLOCK = 1 << 18
# Longest silence in seconds; after it, the lowest mean rate in bytes per second.
_TIMEOUT = 30
_SLOWEST = 1000
# Seconds before a broken download is resumed.
_WAIT = 1

_BROKEN = (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException, ValueError)


class Got(NamedTuple):
    """A finished transfer.

    Attributes:
        size: Bytes.
        digest: Hexadecimal.
        headers: Headers of all responses, redirects first.
    """

    size: int
    digest: str
    headers: list[http.client.HTTPMessage]


def folder(*names: str) -> str:
    """Create and return the folder for downloads: ``resnext`` in Chainer's dataset folder
    (``CHAINER_DATASET_ROOT``, by default ``~/.chainer/dataset``)."""
    return chainer.dataset.get_dataset_directory('/'.join(('resnext', *names)))


def fetch(url: str, size: int, md5: str) -> str:
    """Download a dataset's file once, with a progress bar, and check it at every use.

    The file is kept in :func:`folder`. If it is damaged, it is fetched again.

    Args:
        url: Address of the file.
        size: Its size in bytes.
        md5: Its MD5 digest, hexadecimal.

    Returns:
        Path of the checked file.

    Raises:
        trainer.errors.InputError: The download failed, or is not the published file.
        OSError: The file cannot be written.
    """
    path = os.path.join(folder(), os.path.basename(url))
    if not os.path.exists(path) or digest_of(path, 'md5') != md5:
        get(url, path, 'fetch it by another way and name it with --data', size, size, ('md5', md5))
    return path


def digest_of(path: Path, algorithm: str) -> str:
    """Return the digest of a regular file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with files.open_regular(path) as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def get(
    url: str,
    path: str,
    fix: str,
    most: int,
    size: int | None = None,
    digest: tuple[str, str] = ('sha256', ''),
    attempts: int = 1,
    check: Callable[[str], object] | None = None,
) -> Got:
    """Download a file, with a progress bar. It appears whole and checked, or not at all.

    Args:
        url: Address of the file; redirects are followed, but not from https to http.
        path: File to write.
        fix: What the user can do if the download fails, for messages.
        most: Largest size in bytes.
        size: Expected size in bytes; ``None``: the size that the server states.
        digest: Name of a hashlib algorithm, and the first digits of the expected digest.
        attempts: How many times in a row a broken download is resumed without receiving a byte.
        check: Called with the :class:`Got`; raises ValueError if the file is wrong.

    Raises:
        trainer.errors.InputError: The download failed, or is not the published file.
        OSError: The file cannot be written.
    """
    with files.replacing(path) as unfinished, open(unfinished, 'wb') as f:
        try:
            got = _Transfer(url, f, most, size, digest[0]).run(attempts)
            if check is not None:
                check(got)
        except urllib.error.URLError as e:
            raise InputError(f'{url}: cannot be downloaded ({e.reason}); {fix}') from e
        except _BROKEN as e:
            raise InputError(
                f'{url}: the download broke off ({type(e).__name__}: {e}); try again, or {fix}'
            ) from e
        if not got.digest.startswith(digest[1]):
            raise InputError(
                f'{url}: what came is not the published file ({digest[0].upper()} '
                f'{got.digest[: max(len(digest[1]), 8)]} instead of {digest[1]}); try again, '
                f'or {fix}'
            )
    return got


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeps their headers, and does not leave https."""

    def __init__(self):
        self.headers = []

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.full_url.startswith('https:') and not newurl.startswith('https:'):
            raise urllib.error.URLError(f'redirected from https to {newurl:.80}')
        self.headers.append(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Watch:
    """Aborts a download whose server is silent or slow at any point: in the headers, in the
    lengths of chunks, in the file. A socket's own timeout starts over with each byte.

    Args:
        done (callable): Returns how many bytes of the file have arrived.
    """

    def __init__(self, done):
        self._done, self._sockets, self._late = done, [], False
        self._ended = threading.Event()
        watch = self

        class Http(urllib.request.HTTPHandler):
            def http_open(self, req):
                return self.do_open(watch._listening(http.client.HTTPConnection), req)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, req):
                made = watch._listening(http.client.HTTPSConnection)
                return self.do_open(made, req, context=self._context)

        #: For urllib.request.build_opener.
        self.handlers = Http, Https

    def _listening(self, kind):
        class Connection(kind):
            def connect(connection):
                super().connect()
                self._sockets.append(connection.sock)
                self._start, self._begun = time.monotonic(), self._done()

        return Connection

    def __enter__(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        while not self._ended.wait(min(_TIMEOUT / 4, 1)):
            if not self._sockets:
                continue
            came = self._done() - min(self._begun, self._done())  # it may be restarted
            if came < _SLOWEST * (time.monotonic() - self._start - _TIMEOUT):
                self._late = True
                for connected in self._sockets:
                    with contextlib.suppress(OSError):  # closed in the meantime
                        socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def __exit__(self, kind, error, trace):
        self._ended.set()
        self._thread.join()
        if self._late and (kind is None or issubclass(kind, Exception)):
            raise TimeoutError(f'less than {_SLOWEST:,} bytes a second came') from error


class _Transfer:
    """A file in transfer; a broken transfer is resumed where it ended, if the server can."""

    def __init__(self, url, f, most, size, algorithm):
        self._url, self._f, self._most = url, f, most
        self._size, self._algorithm = size, algorithm
        self._version = self._bar = None
        self.begin()

    def begin(self):
        self._f.seek(0)
        self._f.truncate()
        self._done, self._digest = 0, hashlib.new(self._algorithm)

    def run(self, attempts):
        left = attempts
        with contextlib.ExitStack() as stack:
            while True:
                before = self._done
                try:
                    return self._attempt(stack)
                except (*_BROKEN, urllib.error.URLError) as e:
                    # An explicit error of the server will not change.
                    if isinstance(e, urllib.error.HTTPError) or self._done > self._most:
                        raise
                    if isinstance(e, urllib.error.URLError) and not self._done:
                        raise
                    left = attempts if self._done > before else left
                    left -= 1
                    if left <= 0:
                        raise
                time.sleep(_WAIT)

    def _attempt(self, stack):
        headers = {}
        if self._done:
            headers['Range'] = f'bytes={self._done}-'
            if self._version:  # a file that has changed is sent from the beginning
                headers['If-Range'] = self._version
        redirects = _Redirects()
        request = urllib.request.Request(self._url, headers=headers)
        with (
            _Watch(lambda: self._done) as watch,
            urllib.request.build_opener(redirects, *watch.handlers).open(
                request, timeout=_TIMEOUT
            ) as response,
        ):
            size = self._place(response)
            if self._bar is None:
                name = os.path.basename(self._url)
                self._bar = stack.enter_context(tqdm.tqdm(unit='B', unit_scale=True, desc=name))
            self._bar.total, self._bar.n = self._size or size, self._done
            self._bar.refresh()
            self._copy(response)
        wanted = self._size if self._size is not None else size
        if wanted is not None and self._done < wanted:
            raise ValueError(f'{self._done:,} of {wanted:,} bytes came')
        return Got(self._done, self._digest.hexdigest(), [*redirects.headers, response.headers])

    def _place(self, response):
        """Seek to where the response belongs; return the size the server states, or ``None``."""
        if self._done:
            there = re.match(r'bytes (\d{1,15})-', response.headers.get('Content-Range', ''))
            if response.status != 206 or there is None or int(there[1]) != self._done:
                self.begin()
                if response.status == 206:
                    raise ValueError('the server sent another part than requested')
        version = response.headers.get('ETag', '')
        self._version = None if version.startswith('W/') else version
        length = response.headers.get('Content-Length', '')
        return self._done + int(length) if re.fullmatch(r'\d{1,15}', length) else None

    def _copy(self, response):
        for block in iter(lambda: response.read1(_BLOCK), b''):
            self._digest.update(block)
            self._f.write(block)
            self._done += len(block)
            self._bar.update(len(block))
            if self._done > self._most:
                raise ValueError(f'more than its {self._most:,} bytes came')
