"""Pure: what is wanted, what was applied and what is seen -> actions with reasons. Nothing here looks or touches."""
