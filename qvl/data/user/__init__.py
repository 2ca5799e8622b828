"""Other people's data: files of conversations, read by position, whatever common layout they are in."""

from qvl.data.user.config import DataConfig, DataFile
from qvl.data.user.source import UserSource

__all__ = ["DataConfig", "DataFile", "UserSource"]
