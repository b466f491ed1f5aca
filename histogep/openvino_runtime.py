"""OpenVINO without its reports: it tells its makers of each import and conversion (openvino).

It does so through a package of its own, and goes without where that cannot be imported. Slides are
confidential and nothing here uses a network, so for this process that package is not there.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None

import openvino  # noqa: E402

__all__ = ["openvino"]
