"""Find objects on a photo over the Open Inference Protocol: on ``blu serve`` or on Triton, the same calls.

pip install 'tritonclient[http,grpc]'
python examples/triton_client.py street.jpg                            # blu serve
python examples/triton_client.py street.jpg --url localhost:8001 --grpc # Triton, with blu export triton's repository
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException


def class_names(client: Any, model: str, grpc: bool) -> list[str]:
    """The model's class names by class id, as the server has them in the model's configuration."""
    config = client.get_model_config(model, as_json=True)["config"] if grpc else client.get_model_config(model)
    names: list[str] = json.loads(config["parameters"]["spec"]["string_value"])["class_names"]
    return names


def detect(client: Any, protocol: Any, model: str, photo: bytes) -> dict[str, Any]:
    """What the model finds on an encoded photo: rois, class_ids, scores and masks as COCO RLE."""
    image = protocol.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([photo], dtype=np.object_))
    names = ("rois", "class_ids", "scores", "masks_rle")
    answer = client.infer(model, [image], outputs=[protocol.InferRequestedOutput(name) for name in names])
    found = {name: answer.as_numpy(name) for name in names}
    return found | {"masks_rle": [json.loads(text) for text in found["masks_rle"]]}


def main() -> None:
    """Print one line per object; what goes wrong is one line on stderr, and the exit code is 1."""
    parser = argparse.ArgumentParser(description="Find objects on a photo.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--model", default="garments")
    parser.add_argument("--grpc", action="store_true", help="gRPC instead of HTTP")
    options = parser.parse_args()
    if options.grpc:
        import tritonclient.grpc as protocol
    else:
        import tritonclient.http as protocol
    try:
        photo = options.photo.read_bytes()
        with protocol.InferenceServerClient(options.url) as client:
            names = class_names(client, options.model, options.grpc)
            found = detect(client, protocol, options.model, photo)
    except (OSError, InferenceServerException) as error:
        sys.exit(f"error: {error}")
    for roi, class_id, score in zip(found["rois"], found["class_ids"], found["scores"], strict=True):
        y1, x1, y2, x2 = roi.tolist()
        print(f"{names[class_id]}  {score:.3f}  x {x1}..{x2}  y {y1}..{y2}")


if __name__ == "__main__":
    main()
