"""Plans, purely: wanted, applied and observed state -> actions with reasons. Nothing here looks or touches."""
