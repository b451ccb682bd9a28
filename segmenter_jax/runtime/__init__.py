"""This process: its command line, its console, its host, and the processes it runs with."""
