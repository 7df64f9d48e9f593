"""VSD and SwiftBrush as a recipe: its gradient, what guidance does to it, who is trained by what."""
