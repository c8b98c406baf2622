"""What the first convolution lets pass of a perturbation."""
