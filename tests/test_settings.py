"""Settings belong to a thread, and end with their block."""

import concurrent.futures
import pathlib

import pytest

from trainer.settings import settings


def test_each_thread_has_its_own():
    with concurrent.futures.ThreadPoolExecutor(1) as other, settings.using(plans=1, threads=3):
        assert (settings.plans, settings.threads) == (1, 3)
        assert other.submit(lambda: (settings.plans, settings.threads)).result() == (6, None)


def test_they_are_restored():
    with pytest.raises(KeyError), settings.using(plans=2):
        with settings.using(plans=3, fallback=False):
            assert (settings.plans, settings.fallback) == (3, False)
        assert (settings.plans, settings.fallback) == (2, True)
        raise KeyError
    assert settings.plans == 6


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match='plan'), settings.using(plan=1):
        pass


def test_they_stand_in_one_place():
    trainer = pathlib.Path(__file__).parent.parent / 'trainer'
    sets = [
        p.name for p in trainer.rglob('*.py') if 'chainer.global_config.' in p.read_text('utf-8')
    ]
    assert sets == ['settings.py']
