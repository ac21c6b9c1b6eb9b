"""Plain torch modules around one timm ViT, usable without Avalanche."""
