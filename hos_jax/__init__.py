"""High-order scores of the data density, learned by denoising; see the README for a tour."""
