"""Find objects on a photo over the Open Inference Protocol: on ``blu serve`` or on Triton, the same calls.

pip install 'tritonclient[http,grpc]'
python examples/client.py street.jpg                            # blu serve
python examples/client.py street.jpg --url localhost:8001 --grpc # Triton, with blu export triton's repository
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np


def detect(client: Any, protocol: Any, model: str, photo: bytes) -> dict[str, Any]:
    """What the model finds on an encoded photo: rois, class_ids, scores and masks as COCO RLE."""
    image = protocol.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([photo], dtype=np.object_))
    names = ("rois", "class_ids", "scores", "masks_rle")
    answer = client.infer(model, [image], outputs=[protocol.InferRequestedOutput(name) for name in names])
    found = {name: answer.as_numpy(name) for name in names}
    return found | {"masks_rle": [json.loads(text) for text in found["masks_rle"]]}


def main() -> None:
    """Print one line per object."""
    parser = argparse.ArgumentParser(description="Find objects on a photo.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--model", default="garments")
    parser.add_argument("--grpc", action="store_true", help="gRPC instead of HTTP")
    parser.add_argument("--labels", type=Path, help="labels.txt of the repository: names instead of numbers")
    options = parser.parse_args()
    if options.grpc:
        import tritonclient.grpc as protocol
    else:
        import tritonclient.http as protocol
    labels = options.labels.read_text(encoding="utf-8").splitlines() if options.labels else None
    client = protocol.InferenceServerClient(options.url)
    found = detect(client, protocol, options.model, options.photo.read_bytes())
    for roi, class_id, score in zip(found["rois"], found["class_ids"], found["scores"], strict=True):
        y1, x1, y2, x2 = roi.tolist()
        print(f"{labels[class_id] if labels else class_id}  {score:.3f}  x {x1}..{x2}  y {y1}..{y2}")
    client.close()


if __name__ == "__main__":
    main()
