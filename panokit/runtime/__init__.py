"""The runtime: devices, precision, and the ranks that share windows, on Lightning Fabric."""

from panokit.runtime.runtime import Runtime

__all__ = ["Runtime"]
