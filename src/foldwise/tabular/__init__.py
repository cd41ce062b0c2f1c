"""Models on numbers instead of pixels: metadata columns, and embeddings of images."""
