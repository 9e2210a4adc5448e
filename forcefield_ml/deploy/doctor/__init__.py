"""What this installation can do: `diagnose` gathers `findings`, `trial` runs a small model in a process of its own."""
