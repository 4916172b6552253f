"""A map in the user's picture and lens: geometry, cameras, placing, stitching, tiling."""
