"""The inference form of each decoder, and CUDA graphs."""
