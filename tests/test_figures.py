"""Content of figures and tables: colours, classes, runs with equal numbers, distinct names."""

import copy

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from trainer.inference.prediction import Answer, Prediction
from trainer.reports import comparison, console, drawing, ending, evaluation_report, figures
from trainer.reports.log import ACCURACY


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, which are then looked into."""
    saved = []
    monkeypatch.setattr(figures, 'save', lambda figure, path: saved.append(figure))
    return saved


def rows(epochs):
    top5 = 'validation/main/top5_accuracy'
    return [
        {
            'epoch': i + 1,
            'main/loss': 1 / (i + 1),
            'validation/main/loss': 1.5 / (i + 1),
            'main/accuracy': 1 - 0.4 / (i + 1),
            ACCURACY: 1 - 0.5 / (i + 1),
            top5: 1 - 0.1 / (i + 1),
        }
        for i in range(epochs)
    ]


@pytest.mark.parametrize('epochs', [1, 5, 300])
def test_train_and_test_have_one_colour_each(epochs, drawn):
    figures.loss(rows(epochs), 'x')
    figures.accuracy(rows(epochs), 'x', 10)
    figures.accuracy(rows(epochs), 'x', 5)
    shown = [
        [(line.get_label(), line.get_color()) for line in figure.axes[0].lines] for figure in drawn
    ]
    both = [('train', figures.TRAIN), ('test', figures.TEST)]
    assert shown == [both, [*both, ('test, top-5', figures.TEST)], both]
    assert all(figure.legends and not figure.axes[0].get_legend() for figure in drawn)


@pytest.mark.parametrize('n', [2, 20, 60, 1000])
def test_a_confusion_matrix_of_few_or_many_classes(n, drawn):
    matrix = np.diag(np.full(n, 9))
    matrix[0, n - 1] = 3  # 25 % of its label's images
    figures.confusion(matrix, [f'class {i}' for i in range(n)], 'x')
    axes = drawn[0].axes[0]
    shown = axes.images[0].get_array()
    assert len(shown) <= 200 and shown.max() == 100
    assert shown[0, -1] == 25  # seen in however many classes
    texts = [text.get_text() for text in axes.texts]
    if n <= 20:
        assert len(texts) == n * n and texts[n - 1] == '25'
    else:
        assert f' 25 %  class 0\n          as class {n - 1}' in texts[0]
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert (named == [f'class {i}' for i in range(n)]) == (n <= 100)
    width, height = drawn[0].get_size_inches()
    assert max(width, height) < 21


class Compared(comparison.Run):
    def __init__(self, folder, epochs, options, classes=10):
        self.folder, self.epochs, self.options, self.classes = folder, epochs, options, classes


def some_runs(n=7, **options):
    epochs = [{'epoch': i, 'test_error': 50.0 - i, 'test_5_error': 9.0} for i in range(1, 6)]
    for row in epochs:
        row.update(train_error=40.0, test_loss=1.0, train_loss=0.9)
    many = {f'option_{i}': 'a long value ' * 3 for i in range(9)} | options
    return [
        Compared(
            f'runs/{"x" * 15}{i}', copy.deepcopy(epochs), many | {'seed': i, 'option_1': str(i)}
        )
        for i in range(n)
    ]


def test_a_table_fits_a_terminal():
    compared = some_runs()
    compared[2].options['option_3'] = 'b' * 200
    text = comparison.table(compared)
    assert max(map(len, text.splitlines())) <= 80
    blocks = text.split('\n\n')
    assert len(blocks) > 1
    names = [name for block in blocks for name in block.splitlines()[0].split()[1:]]
    assert names == [f'{"x" * 15}{i}' for i in range(7)]
    assert all('last top-5 error' in block for block in blocks)
    for run in compared:
        run.classes = 5
    assert 'top-5' not in comparison.table(compared)


def test_an_option_that_came_later_is_no_difference():
    old, new = some_runs(2)
    del old.options['option_2'], new.options['option_2']
    new.options['ema_decay'] = 0.0  # its default
    assert set(comparison.differences([old, new])) == {'seed', 'option_1'}
    new.options['ema_decay'] = 0.5
    assert comparison.differences([old, new])['ema_decay'] == [0.0, 0.5]


def test_the_key_shows_all_that_differs_beside_the_data(drawn, tmp_path):
    compared = some_runs(2)
    for i in range(9):
        compared[1].options[f'option_{i}'] = f'another value {i}'
    comparison.draw(compared, str(tmp_path / 'x.png'))
    (figure,) = drawn
    assert all(axes.get_legend() is None for axes in figure.axes)
    (legend,) = figure.legends
    first, second, *styles = [text.get_text() for text in legend.get_texts()]
    assert all(f'option_{i} another value {i}' in ' '.join(second.split()) for i in range(9))
    assert 'same numbers as xxxxxxxxxxxxxxx0' in ' '.join(second.split())
    assert len(styles) == 2
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert all(not box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_runs_of_the_same_numbers_are_both_seen(tmp_path):
    comparison.draw(some_runs(2), str(tmp_path / 'x.png'))
    with Image.open(tmp_path / 'x.png') as image:
        above = np.asarray(image.convert('RGB')).astype(int)[: image.height // 2]
    for colour in comparison._COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (abs(above - wanted).max(axis=2) < 8).sum() > 400


def test_equal_names_are_told_apart_and_no_space_stays_blank(tmp_path, drawn):
    sources = []
    for name in ('cat/1.png', 'dog/1.png', 'dog/2.png', 'x/cat/3.png', 'y/cat/3.png'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 40)).save(path)
        sources.append(str(path))
    assert drawing._titles([*sources, sources[0], object()]) == [
        'cat/1.png',
        'dog/1.png',
        '2.png',
        'x/cat/3.png',
        'y/cat/3.png',
        'cat/1.png',
        '',
    ]
    heights = []
    for answers in (3, 6):
        said = [Answer(i, None, f'class {i}', 1 / answers) for i in range(answers)]
        drawing.draw([Prediction(sources[0], said, None)], str(tmp_path / 'out.png'))
        heights.append(drawn[-1].get_size_inches()[1])
        bars = drawn[-1].axes[1]
        bottom, top = bars.get_ylim()
        assert bottom - answers < 1 and top > -1  # as high as there are classes
    assert heights[0] < heights[1]


def test_top5_is_told_where_it_says_something():
    class Tally:
        images, loss, top5, accuracy, top5_accuracy = 4, 1.0, np.array([2, 2]), 0.5, 1.0
        class_accuracy = np.array([0.5, 0.5])

        def __init__(self, classes):
            self.confusion = np.eye(classes, dtype=int)

    for classes in (5, 6):
        text = evaluation_report.table((Tally(classes), [], 1.0, 'Chainer'), ['m'], None)
        assert ('top-5' in text) == (classes > 5)


def test_the_longest_row_fits_a_terminal():
    row = console._ROW.format(
        300, 123.4567, 123.4567, 100.0, '  100.00%', 1.23e-5, '99:59:59', '999:59:59'
    )
    head = console._HEAD.format('    top-5')
    assert len(head) <= len(row) <= 80
    assert console.clock(0.4) == '0:00:00' and console.clock(1047845) == '291:04:05'


def test_commands_at_the_end_are_quoted():
    text = ending.text(rows(2), 'a b', 'best', 3725, 10)
    assert "python predict.py IMAGE -m 'a b'" in text and '1:02:05' in text
