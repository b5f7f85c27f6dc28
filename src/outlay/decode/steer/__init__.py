"""Methods that steer a text into a constraint or towards a score."""
