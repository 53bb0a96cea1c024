"""Video files in one folder: a recording each, RGB only. One video, or tracks beside it, is a plain folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from egom2p.config import strict
from egom2p.data.clips.video_files import VIDEO_SUFFIXES, open_video
from egom2p.data.recordings.reader_parts import frame_stream
from egom2p.data.recordings.recording_formats import FolderSource, FormatReader, Opened
from egom2p.data.recordings.track_files import visible


@strict
class VideosSource(FolderSource):
    """Video files."""

    kind: Literal["videos"]


class VideoFolderReader(FormatReader):
    source, what = VideosSource, "video files, a recording each"

    @classmethod
    def find(cls, root: Path) -> Mapping[str, Path]:
        paths = visible(root)
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
        tracks = [path for path in paths if path.suffix.lower() in (".csv", ".tsv", ".npz") or path.is_dir()]
        if len(videos) < 2 or tracks:
            return {}
        stems = [path.stem for path in videos]
        return {path.stem if stems.count(path.stem) == 1 else path.name: path for path in videos}

    def open(self, name: str, path: Path) -> Opened:
        video = open_video(path)
        return Opened({"rgb": frame_stream(video, video.times_s, "uint8", where=path)}, None, [path])
