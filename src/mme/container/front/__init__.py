"""The front: speaks HTTP and owns every piece of state. Imports neither torch nor mme.container.workers."""
