"""What is refused, before the first step (`check`) and during the run (`watch`); docs/guards.md lists all guards."""
