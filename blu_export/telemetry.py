"""What the packages below send or look up on their own account, switched off before any of them is imported.

``import blu_export`` does it, for every command, worker, Ray actor and program that uses the package. Who sets one of
the variables keeps what they set.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    # ONNX Runtime 1.32 and later: lookups of a Microsoft host while idle, a device id in the user's cache. It reads
    # this when it is imported; its function disable_telemetry_events comes too late.
    "ORT_DISABLE_TELEMETRY": "1",
    # Ray: a report of the cluster every hour, unless the user declined at a prompt.
    "RAY_USAGE_STATS_ENABLED": "0",
}
OPENVINO = "openvino_telemetry"
"""What sends an event to Google Analytics with ``import openvino``, which works without it."""
EC2_METADATA = "AWS_EC2_METADATA_DISABLED"
"""s3fs asks 169.254.169.254 for credentials where it finds none, on any machine."""
_EC2_MARKS = (("/sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2"), ("/sys/hypervisor/uuid", "ec2"))
"""Files that tell a machine of Amazon's, and how their content starts."""


def switch_off() -> None:
    """Switch it off for this process and those it starts."""
    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)
    if EC2_METADATA not in os.environ and not on_ec2():
        os.environ[EC2_METADATA] = "true"
    # None: importing it fails as if it were not installed, for which OpenVINO has a stand-in that sends nothing.
    sys.modules.setdefault(OPENVINO, None)  # type: ignore[arg-type]


def on_ec2() -> bool:
    """Whether this is a machine of Amazon's, where credentials may come from the metadata service."""
    return any(_starts(path, mark) for path, mark in _EC2_MARKS)


def _starts(path: str, text: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(len(text)) == text
    except OSError:
        return False
