"""Plain torch modules around one timm ViT. They know nothing of Avalanche and can be used alone."""
