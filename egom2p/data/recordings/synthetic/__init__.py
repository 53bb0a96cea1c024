"""The embedded synthetic world: a wearer walks through a furnished room and looks at moving things."""

from egom2p.data.recordings.synthetic.looking import GazeConfig
from egom2p.data.recordings.synthetic.movers import MoversConfig
from egom2p.data.recordings.synthetic.natural import NaturalConfig
from egom2p.data.recordings.synthetic.reader import SyntheticReader, SyntheticWorldConfig
from egom2p.data.recordings.synthetic.rendering import CameraConfig, LampConfig
from egom2p.data.recordings.synthetic.rooms import RoomConfig
from egom2p.data.recordings.synthetic.walking import WalkConfig

__all__ = [
    "CameraConfig",
    "GazeConfig",
    "LampConfig",
    "MoversConfig",
    "NaturalConfig",
    "RoomConfig",
    "SyntheticReader",
    "SyntheticWorldConfig",
    "WalkConfig",
]
