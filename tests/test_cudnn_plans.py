"""Finding, timing and caching of cuDNN's plans, and the fallback without one."""

import ast
import io
import os
import re
import sys
import time

import numpy as np
import pytest
from conftest import relative

from trainer import files
from trainer.engines import autograd
from trainer.engines import cudnn as engine
from trainer.engines.cudnn import generic, graphs, library, provider, timing
from trainer.settings import settings

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('no_plans')]

X, W = (2, 16, 9, 7), (32, 4, 3, 3)


def given(seed=0):
    """Return an image and weights on the GPU, of NHWC memory."""
    import cupy

    rng = np.random.default_rng(seed)
    found = []
    for shape in (X, W):
        array = generic.empty(cupy, shape, np.float32)
        array[...] = cupy.asarray(rng.standard_normal(shape).astype(np.float32))
        found.append(array)
    return found


def graph():
    return graphs.conv_forward(X, W, 2, 1, False, 'f', 'float32')


def run(g):
    import cupy

    x, w = given()
    y = generic.empty(cupy, graphs.out_shape(X, W, 2, 1), np.float32)
    g(x, w, y)
    return y


def refuse(monkeypatch, error):
    def check_support(self):
        raise error

    monkeypatch.setattr(library.frontend().pygraph, 'check_support', check_support)


@pytest.fixture
def unsupported(monkeypatch):
    """cuDNN has no plan for anything."""
    refuse(
        monkeypatch, library.frontend().cudnnGraphNotSupportedError('No execution plans\nEngine 0')
    )
    provider._warn.cache_clear()


class TestWithoutAPlan:
    def test_it_is_named_once(self, unsupported):
        x, w = given()
        with pytest.warns(UserWarning) as caught:
            for _ in range(2):
                found = provider._conv_forward(x, w, 2, 1, 4)
        (warning,) = map(str, (w.message for w in caught))
        assert '\n' not in warning and 'Engine 0' not in warning
        for word in ("'conv_forward'", str(X), str(W), 'float32', 'No execution plans', 'slower'):
            assert word in warning
        expected = generic.conv_forward(x.get(), w.get(), 2, 1, 4)
        assert relative(expected, found.get()) < 1e-5

    def test_a_layer_names_each_of_its_graphs(self, unsupported):
        import cupy

        x, w = given()
        gy = generic.conv_forward(x, w, 2, 1, 4)
        mean, var, b = (cupy.ones(W[0], np.float32) for _ in range(3))
        running = autograd.Running(mean, var, 1e-5, 0.9, 0.0)
        with pytest.warns(UserWarning) as caught:
            provider._conv_statistics(x, w, 2, 1, 4, running=running)
            provider.conv_backward_data(gy, w, X, 2, 1, 4, x)
            provider.conv_backward_weights(x, gy, W, 2, 1, 4)
            provider.conv_bias(x, w, b, 2, 1, 4, None, True, False)
        texts = [str(w.message) for w in caught]
        for name in ('forward', 'backward_data', 'backward_weights', 'bias'):
            assert sum(f"'conv_{name}'" in text for text in texts) == 1, name

    def test_the_try_out_fails(self, unsupported):
        why = engine.unavailable.__wrapped__(0)
        assert 'NoPlan' in why and "'conv_forward'" in why

    def test_errors_of_libraries_are_no_answer(self, monkeypatch):
        refuse(monkeypatch, RuntimeError('Unable to load any libcudart.so.* library.'))
        with pytest.raises(RuntimeError, match='libcudart'):
            provider._conv_forward(*given(), 2, 1, 4)
        assert 'libcudart' in engine.unavailable.__wrapped__(0)

    def test_plans_that_all_fail_are_not_built_again(self):
        g = graph()
        g.graph = Plans(4, fails=range(4))
        for _ in range(2):
            with pytest.raises(graphs.NoPlan, match='conv_forward.*plan 3 fails'):
                run(g)
        assert g.graph.built == [0, 1, 2, 3]


class TestDevices:
    @pytest.fixture
    def made(self, monkeypatch):
        """Arguments of the graphs that are made."""
        found, plain = [], library.frontend().pygraph

        def pygraph(**arguments):
            found.append(arguments)
            return plain(**arguments)

        monkeypatch.setattr(library.frontend(), 'pygraph', pygraph)
        return found

    def test_libraries_are_loaded_first(self, monkeypatch):
        from cuda import pathfinder

        loaded = []
        monkeypatch.setattr(pathfinder, 'load_nvidia_dynamic_lib', loaded.append)
        library.frontend.__wrapped__()
        assert loaded == ['cudart', 'nvrtc']

    def test_all_graphs_share_a_handle(self, made):
        import cupy

        assert engine.unavailable.__wrapped__(0) is None
        assert len(made) >= 9
        (handle,) = {arguments['handle'] for arguments in made}
        assert handle == library.device().handle is not None
        (sm_version,) = {arguments['sm_version'] for arguments in made}
        assert str(sm_version) == cupy.cuda.Device(0).compute_capability

    def test_graphs_belong_to_a_device(self, monkeypatch):
        first = library.device()
        second = first._replace(handle=library.frontend().create_handle())
        one = graph()
        monkeypatch.setattr(library, 'device', lambda: second)
        other = graph()
        assert (one.device, other.device) == (first, second)
        monkeypatch.setattr(library, 'device', lambda: first)
        assert graph() is one


class Plans:
    """A cuDNN graph with plans that compute nothing."""

    def __init__(self, count, compiled=(), fails=(), never_captured=()):
        self.count, self.compiled, self.fails = count, compiled, fails
        self.never_captured, self.built, self.captured = never_captured, [], []

    def get_execution_plan_count(self):
        return self.count

    def get_plan_name_at_index(self, index):
        return f'plan {index}'

    def get_behavior_notes_for_plan_at_index(self, index):
        return [library.frontend().behavior_note.RUNTIME_COMPILATION] * (index in self.compiled)

    def build_plan_at_index(self, index):
        self.built.append(index)
        if index in self.fails:
            raise library.frontend().cudnnGraphNotSupportedError(f'plan {index} fails')

    def get_workspace_size_plan_at_index(self, index):
        return 0

    def execute_plan_at_index(self, pack, workspace, index, handle):
        import cupy

        if cupy.cuda.get_current_stream().is_capturing():
            if index in self.never_captured:
                raise RuntimeError('operation not permitted when stream is capturing')
            self.captured.append(index)


class TestTiming:
    @pytest.fixture(autouse=True)
    def timed(self):
        with settings.using(plans=6):
            yield

    def test_few_plans_are_compiled(self):
        g = graph()
        g.graph = Plans(12, compiled=(0, 1, 2, 3, 4, 6), fails=(1,))
        run(g)
        assert g.graph.built == [0, 1, 2, 3, 5, 7, 8]
        assert set(g.graph.captured) == {0, 2, 3, 5, 7, 8}
        assert timing.choices()[g.key] == g.graph.get_plan_name_at_index(g.plan[0])

    @pytest.mark.parametrize('plans', [1, 6])
    def test_what_cannot_be_captured_is_not_chosen(self, plans):
        g = graph()
        g.graph = Plans(3, fails=(0,), never_captured=(1,))
        with settings.using(plans=plans):
            run(g)
        assert g.plan == (2, 0)

    def test_a_choice_is_taken_up(self):
        g = graph()
        g.graph = Plans(5)
        timing.keep(g.key, 'plan 3')
        run(g)
        assert (g.plan, g.graph.built) == ((3, 0), [3])
        timing.keep(g.key, 'of another version')
        g.plan, g.graph.built = None, []
        run(g)
        assert g.graph.built == [0, 1, 2, 3, 4]

    def test_choices_that_come_with_the_project(self, monkeypatch, tmp_path):
        g = graph()
        monkeypatch.setattr(timing, '_OURS', str(tmp_path))
        path = tmp_path / timing._file()
        files.save_json(path, {g.key: 'plan 3', 'another': 'plan 1'})
        g.graph = Plans(5)
        run(g)
        assert (g.plan, g.graph.built) == ((3, 0), [3])
        assert not os.path.exists(timing._path())
        timing.keep(g.key, 'plan 2')  # a choice made here comes first
        assert files.read_json(timing._path()) == {g.key: 'plan 2'}
        g.plan, g.graph.built = None, []
        run(g)
        assert g.graph.built == [2]

    def test_a_way_more_is_timed_again(self):
        import cupy

        x = cupy.zeros(4, np.float32)
        ways = {'first': lambda: x.fill(1), 'second': lambda: x.fill(2)}
        timing.by_time('key', ways)
        (key,) = timing.choices()
        assert key == 'key of first, second'
        timing.by_time('key', {**ways, 'third': lambda: x.fill(3)})
        assert len(timing.choices()) == 2

    def test_progress_is_shown_on_a_terminal(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        shown = []
        for made in (Terminal, io.StringIO):
            monkeypatch.setattr(sys, 'stderr', made())
            with timing.progress():
                timing.keep('first', 'plan 1')
                assert sys.stderr.getvalue() == ''  # not for what takes no time
                time.sleep(1.1)
                timing.keep('second', 'plan 1')
            shown.append(sys.stderr.getvalue())
        assert 'timed: 2 shapes' in shown[0] and shown[0].endswith('\r')
        assert shown[1] == ''

    def test_choices_of_two_processes(self):
        timing.keep('ours', 'first')
        path = timing._path()
        files.save_json(path, {**files.read_json(path), 'theirs': 'second', 'ours': 'third'})
        timing.keep('more', 'fourth')
        expected = {'ours': 'first', 'theirs': 'second', 'more': 'fourth'}
        assert timing.choices() == files.read_json(path) == expected

    def test_slow_ways_are_timed_once(self, monkeypatch):
        import cupy

        monkeypatch.setattr(timing, 'ROUNDS', 3)
        sequence = iter(
            [3.9, 2, 4.1, 4.9, 1.96, 5, 2]
        )  # the third way drops out after the first round
        monkeypatch.setattr(cupy.cuda, 'get_elapsed_time', lambda begin, end: next(sequence))
        x = cupy.zeros(4, np.float32)
        ways = [(name, lambda: x.fill(1)) for name in ('first', 'second', 'third')]
        for _, way in ways:
            way()
        monkeypatch.setattr(timing, 'HOPELESS', 2)
        assert timing.fastest('key', ways, True) == 'second'
        assert next(sequence, None) is None

    def test_the_least_of_rounds_in_turn(self, monkeypatch):
        import cupy

        start, asked = time.perf_counter(), []
        monkeypatch.setattr(timing, 'ROUNDS', 3)
        monkeypatch.setattr(timing, 'WARM_UP', 0.05)
        sequence = [5, 3, 5, 3, 2, 3]  # each second one is of the other way

        def elapsed(begin, end):
            asked.append(time.perf_counter() - start)
            return sequence[len(asked) - 1]

        monkeypatch.setattr(cupy.cuda, 'get_elapsed_time', elapsed)
        x = cupy.zeros(4, np.float32)
        ways = [('first', lambda: x.fill(1)), ('second', lambda: x.fill(2))]
        for _, way in ways:
            way()
        assert timing.fastest('key', ways, True) == 'first'
        assert len(asked) == 6 and asked[0] > 0.05


def test_the_files_of_choices():
    """Each is of a GPU and a version of cuDNN; plans of graphs alone, whose names are cuDNN's."""
    paths = os.listdir(timing._OURS)
    assert paths
    for path in paths:
        assert re.fullmatch(r'\w+_\d+\.\d+\.\d+\.json', path)
        for key, plan in files.read_json(os.path.join(timing._OURS, path)).items():
            precision, operation = key.split(' ', 1)
            assert precision in engine.PRECISIONS
            assert hasattr(graphs, 'build_' + ast.literal_eval(operation)[0])
            assert re.fullmatch(r'eng\d+(_k\d+=\d+)*', plan)
