"""Tune soft prompts on frozen language models and transfer them between tasks and models.

The public names stand in ``__init__.pyi`` and are loaded on first use, so that ``import jpt`` takes
milliseconds and loads no jax.
"""

import lazy_loader

from jpt.errors import DivergedError as DivergedError
from jpt.errors import InputError as InputError
from jpt.errors import StoppedError as StoppedError
from jpt.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
