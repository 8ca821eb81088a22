"""What the tiers share. Nothing in here is a test."""
