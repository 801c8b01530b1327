"""What all rooms share: errors, settings, metrics, and the framing of messages between processes."""
