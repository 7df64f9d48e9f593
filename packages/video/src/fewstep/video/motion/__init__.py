"""What of a clip is motion: representations that a loss can be taken on instead of the clip itself."""
