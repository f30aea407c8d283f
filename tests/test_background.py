"""Writing files while training goes on."""

import threading
from types import SimpleNamespace

import pytest

import resnext
from trainer.training.background import MOST, Background
from trainer.training.extensions import SaveModel
from trainer.weights import npz


def test_writes_happen_in_order_on_another_thread_and_are_done_at_the_end():
    written, free = [], threading.Event()

    def write(n):
        free.wait(10)
        written.append((n, threading.current_thread() is threading.main_thread()))

    with Background() as background:
        for n in range(MOST):
            background(lambda n=n: write(n))
        assert not written  # calls do not wait
        free.set()
        background(lambda: write(MOST))
    assert written == [(n, False) for n in range(MOST + 1)]


def test_no_more_than_an_epochs_files_wait():
    free = threading.Event()
    with Background() as background:
        for _ in range(MOST):
            background(lambda: free.wait(10))
        called = threading.Thread(target=background, args=(lambda: None,))
        called.start()
        called.join(0.2)
        assert called.is_alive()
        free.set()
        called.join(10)
        assert not called.is_alive()


def trainer_after_epoch(epoch, accuracy):
    return SimpleNamespace(
        updater=SimpleNamespace(epoch=epoch), observation={'validation/main/accuracy': accuracy}
    )


def fail():
    raise OSError(28, 'No space left on device', 'model')


def test_an_error_is_raised_by_a_later_call():
    with pytest.raises(OSError, match='No space left'), Background() as background:
        background(fail)
        for _ in range(MOST):
            background(lambda: None)
        pytest.fail('the error was swallowed')


def test_an_error_is_raised_at_the_end():
    with pytest.raises(OSError, match='No space left'), Background() as background:
        background(fail)


@pytest.mark.gpu
def test_a_model_is_the_one_of_its_epoch_though_training_goes_on(tmp_path):
    network = resnext.PaperResNext(10, C=2, d=4, block_num=(1, 1, 1))
    network.weight_initialization(0)
    network.check_gpu(0)
    before = npz.state(network)
    writes = []
    SaveModel(network, str(tmp_path), writes.append)(trainer_after_epoch(1, accuracy=0.5))
    for param in network.params():
        param.array[...] += 1
    assert not list(tmp_path.iterdir())
    for write in writes:
        write()
    for path in ('1', 'best'):
        saved = npz.state(resnext.load(tmp_path / f'{network.name}_{path}.model'))
        assert saved.keys() == before.keys()
        assert all((saved[name] == array).all() for name, array in before.items())
