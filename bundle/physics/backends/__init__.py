"""Backends: four linear maps between image and sinogram, each pair exact transposes of each other."""

from .base import BACKENDS, Backend, is_recorded, make_backend

__all__ = ["BACKENDS", "Backend", "is_recorded", "make_backend"]
