"""The convolution of Eq. 1 and the Gaussians of the bond lengths."""
