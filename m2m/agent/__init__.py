"""See the package layout in :mod:`m2m`."""
