"""What a training run costs and how it lies on a mesh, found out before it starts: `jaxft plan`."""
