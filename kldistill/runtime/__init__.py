"""What carries every run: errors, components, devices, processes, artifacts, files and trackers."""
