"""Self-supervised low-dose CT: noisy sinograms in, restored images out.

The rooms, from the ground up; each imports only what stands above it here, and the six at the end never each other:

- :mod:`bundle.physics`: geometry, projection, reconstruction, dose, units
- :mod:`bundle.io`: files in and out
- :mod:`bundle.transforms`: files and physics as MONAI dictionary transforms
- :mod:`bundle.projection`, :mod:`bundle.autoencoder`, :mod:`bundle.diffusion`: the three trained stages
- :mod:`bundle.inference`: noisy sinogram in, fused and refined image out
- :mod:`bundle.evaluation`: how good it is
- :mod:`bundle.peers`: the methods that it is held against
"""
