"""Backends: four linear maps between image and sinogram, each pair exact transposes of each other."""

from .base import BACKENDS, Backend, make_backend

__all__ = ["BACKENDS", "Backend", "make_backend"]
