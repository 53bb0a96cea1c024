"""What a modality measures. Readers, metrics and views choose by quantity, never by a modality's name."""

STREAM_OF_QUANTITY = {"rgb": "rgb", "depth": "depth", "gaze": "gaze", "camera": "camera"}
SCORED_QUANTITIES = (*STREAM_OF_QUANTITY, "generic", "text")
