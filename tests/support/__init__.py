"""What the tests of several rooms share. Nothing here is a test."""
