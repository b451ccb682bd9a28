"""What the commands do once their arguments are parsed; nothing but they imports it."""
