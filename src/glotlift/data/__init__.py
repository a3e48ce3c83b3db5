"""From files and the hub to items and question pairs."""
