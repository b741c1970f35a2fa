"""What a trained run is worth: numbers on held-out images, samples, figures, and a page."""
