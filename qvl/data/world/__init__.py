"""The embedded world: scenes composed of vendored pictures, and every task of the papers asked about them."""

from qvl.data.world.config import WorldConfig
from qvl.data.world.world import World

__all__ = ["World", "WorldConfig"]
