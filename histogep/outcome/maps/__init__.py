"""Outcome models that read a slide"s predicted maps, in torch."""

__all__ = ["models", "network", "scores", "slide_maps"]
