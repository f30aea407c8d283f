"""timm's ``config.json``, which the Hub keeps next to weights: the geometry of images."""

import re

from trainer import files
from trainer.errors import InputError
from trainer.transforms import resize_crop
from trainer.transforms.geometry import Geometry

#: File names of weights on the Hub.
FILES = ('model.safetensors', 'pytorch_model.bin')

# Networks with the same names and shapes as ours that compute something else: they have blurred
# pooling, which has no weights.
_ELSE = re.compile(r'resnextaa|resnetaa|resnetblur|resnext.*blur')


def read(path: str) -> Geometry | None:
    """Return the test geometry in a config, or ``None`` if it has none.

    The sizes for testing are used if it has both (``test_input_size``,
    ``test_crop_pct``), as timm's validate.py does.

    Raises:
        trainer.errors.InputError: The config is damaged, or the weights are of a network that
            differs from ours but has the same weights.
    """
    try:
        config = files.read_json(path)
        architecture = str(config.get('architecture', ''))
        held = config.get('pretrained_cfg')
        if held is None:
            return None
        size = held.get('test_input_size') or held['input_size']
        if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
            raise ValueError(f'images of {size!r:.60}')
        geometry = Geometry(
            size[1],
            held.get('test_crop_pct') or held.get('crop_pct', 0.875),
            held.get('interpolation', 'bicubic'),
            held.get('mean', resize_crop.MEAN),
            held.get('std', resize_crop.STD),
        )
        if held.get('crop_mode', 'center') != 'center':
            raise ValueError(f'crop_mode {held["crop_mode"]!r:.20}')
    except OSError as e:
        raise InputError(f'{path}: cannot be read ({e.strerror or e})') from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path}: not timm's ({type(e).__name__}: {e})") from e
    if _ELSE.search(architecture):
        raise InputError(
            f'{path}: the weights are of {architecture:.60}, whose blurred pooling is not computed '
            'here'
        )
    return geometry
