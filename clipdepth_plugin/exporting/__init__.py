"""Tower and depth as files for engines, each verified against PyTorch."""
