"""What a run tells: its log, the console, figures."""
