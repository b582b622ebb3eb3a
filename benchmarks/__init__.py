"""Programs that use every room at once: the demo, and measurements of speed."""
