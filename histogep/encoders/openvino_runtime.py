"""Import OpenVINO without its telemetry (openvino).

OpenVINO reports each import and conversion to its makers through a separate package, and works
without it where that cannot be imported. Slides are confidential and nothing here uses a network,
so for this process that package is hidden.
"""

from __future__ import annotations

import sys
from typing import Any

modules: dict[str, Any] = sys.modules
modules["openvino_telemetry"] = None

import openvino  # noqa: E402

__all__ = ["openvino"]
