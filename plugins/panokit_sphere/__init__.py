"""Panoramas on a sphere: a canvas of points, windows that are pinhole views, and a picture that shows all directions."""

from panokit_sphere.fuser import SphereFuser as SphereFuser
from panokit_sphere.layout import SphereLayout as SphereLayout
from panokit_sphere.sphere import Sphere as Sphere

__all__ = ["Sphere", "SphereFuser", "SphereLayout"]
