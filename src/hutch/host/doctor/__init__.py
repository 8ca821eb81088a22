"""What this host lacks, and how it is repaired."""
